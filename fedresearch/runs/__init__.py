"""A run's directory: what it was, how it went, what it measured."""
