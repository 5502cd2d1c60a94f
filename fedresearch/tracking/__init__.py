"""Where rows of metrics go: the console and the trackers."""
