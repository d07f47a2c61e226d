"""Pruning in one call: of a model, or of those of its parts that can be traced."""
