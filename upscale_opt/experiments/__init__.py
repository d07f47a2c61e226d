"""Measurements over many networks: how fast exports are, what is supported, and what pruning costs."""
