"""A linear layer in integers: int8 activations, rounded row by row, times a weight of 2, 4 or 8 bits in groups."""
