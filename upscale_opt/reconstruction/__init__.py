"""Reconstruction: what the remaining weights can make good, and the weights that do."""
