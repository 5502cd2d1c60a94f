"""One experiment: from a checked config to its objects, its run and its checkpoints."""
