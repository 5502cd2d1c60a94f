"""Sweeps beyond Hydra's multirun: jobs are checked before any starts, continued, and counted at the end."""
