"""What lives inside pruned models: modules and functions that their originals lack."""
