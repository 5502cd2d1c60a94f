"""The two Flower apps and the round loop between them."""
