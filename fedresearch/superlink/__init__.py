"""Flower's deployment engine: an experiment on a SuperLink and its SuperNodes."""
