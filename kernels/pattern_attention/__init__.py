"""Attention of a whole sequence to itself, sparse by blocks that were chosen once and are kept from step to step."""
