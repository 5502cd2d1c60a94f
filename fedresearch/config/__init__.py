"""The schema of the config, its rules, and the messages if one is broken. Imports neither torch nor flwr."""

from fedresearch.config.check import check
from fedresearch.config.compose import (
    as_text,
    checked,
    compose,
    default_key_to_type,
    merge_overrides,
    quoted,
    refuse_invalid_options,
)
from fedresearch.config.differences import ConfigDifference, differences, without_classes
from fedresearch.config.explain import explain, explain_composition, report_error, words_without_key
from fedresearch.config.resolvers import register, unresolved_overrides
from fedresearch.config.schema import Config, digest, parse, runs_elsewhere

__all__ = [
    "Config",
    "ConfigDifference",
    "as_text",
    "check",
    "checked",
    "compose",
    "default_key_to_type",
    "differences",
    "digest",
    "explain",
    "explain_composition",
    "merge_overrides",
    "parse",
    "quoted",
    "refuse_invalid_options",
    "register",
    "report_error",
    "runs_elsewhere",
    "unresolved_overrides",
    "without_classes",
    "words_without_key",
]
