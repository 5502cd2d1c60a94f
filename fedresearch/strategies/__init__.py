"""Strategies that Flower does not have: one algorithm a file, the server's half and the client's together."""
