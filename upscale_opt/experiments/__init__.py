"""Measurements over many networks: speed of exports, what is supported, what pruning costs."""
