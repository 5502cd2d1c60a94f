"""The keys of Flower's run config by which an experiment reaches the apps, and how the ServerApp reports a mistake."""

# An experiment, resolved; or overrides, to compose there.
EXPERIMENT, OVERRIDES = "experiment", "overrides"
# Begins each line of the log that the launcher reports as the user's mistake.
ERROR = "error: "
