"""The file of a pruned model: written, read, and refused where it does not fit."""
