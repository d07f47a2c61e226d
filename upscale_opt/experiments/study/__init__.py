"""Trained networks and data: to prune, to refit to, and to measure accuracy on."""
