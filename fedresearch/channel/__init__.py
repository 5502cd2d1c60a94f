"""What a client's update passes through on its way to the strategy."""
