"""Modules and functions inside pruned models that their originals lack."""
