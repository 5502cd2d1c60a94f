"""One client's training and evaluation: torch only."""
