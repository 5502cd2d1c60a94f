"""Sweeps: what Hydra's multirun lacks. Jobs are checked before any starts, found again and accounted for at the end."""
