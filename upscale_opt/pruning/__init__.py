"""Pruning: the whole chain in one call, for a model or for those of its parts that can be traced."""
