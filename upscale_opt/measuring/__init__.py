"""What a model costs: parameters, multiply-adds, bytes moved, and time."""
