"""A Flower app as its author writes it."""
