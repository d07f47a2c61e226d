"""Masks chosen within a budget: which channels every layer reads, at the least loss."""
