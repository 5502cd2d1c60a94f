"""The schema of the config, its rules, and what is said when they are broken. Imports neither torch nor flwr."""

from fedresearch.config.check import check
from fedresearch.config.explain import explain
from fedresearch.config.schema import Config, digest, parse, register, runs_elsewhere

__all__ = ["Config", "check", "digest", "explain", "parse", "register", "runs_elsewhere"]
