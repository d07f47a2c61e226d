"""Checks and explanations of solutions, without trusting whoever made them."""
