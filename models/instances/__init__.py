"""Instances of the problem without networks, for tests and benchmarks; not part of the wheel."""
