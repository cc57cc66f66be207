"""Which sampler a bundle should use by default: the fastest that still says what one token at a time says."""
