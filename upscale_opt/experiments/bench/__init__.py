"""Benchmarks: how long exports take beside the unpruned network, UPSCALE's, and the floor."""
