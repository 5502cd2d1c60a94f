"""Keys of Flower's run config that carry an experiment to the apps, and the mark of a mistake in the log."""

# A resolved experiment; or overrides, which the apps compose.
EXPERIMENT, OVERRIDES = "experiment", "overrides"
# The launcher reports lines of the log that begin with this as the user's mistakes.
ERROR = "error: "
