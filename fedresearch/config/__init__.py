"""The schema of the config, its rules, and what is said when they are broken. Imports neither torch nor flwr."""

from fedresearch.config.check import check
from fedresearch.config.compose import (
    as_text,
    checked,
    compose,
    default_key_to_type,
    overrides_again,
    quoted,
    refuse_no_options,
)
from fedresearch.config.differences import ConfigDifference, differences, without_classes
from fedresearch.config.explain import cannot_compose, explain, report_error, words_without_key
from fedresearch.config.resolvers import as_typed, register
from fedresearch.config.schema import Config, digest, parse, runs_elsewhere

__all__ = [
    "Config",
    "ConfigDifference",
    "as_text",
    "as_typed",
    "cannot_compose",
    "check",
    "checked",
    "compose",
    "default_key_to_type",
    "differences",
    "digest",
    "explain",
    "overrides_again",
    "parse",
    "quoted",
    "refuse_no_options",
    "register",
    "report_error",
    "runs_elsewhere",
    "without_classes",
    "words_without_key",
]
