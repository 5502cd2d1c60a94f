"""Studies of many runs: sweeps, reports, tuning, comparison and reproduction."""
