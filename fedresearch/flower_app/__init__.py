"""Any Flower app, run from its folder on this machine."""
