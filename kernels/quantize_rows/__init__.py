"""Rows of floats to the codes that a cache layout stores: the way into the cache that DequantizeRows leads out of."""
