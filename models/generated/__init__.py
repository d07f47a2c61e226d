"""Random networks and random masks, for tests and benchmarks; not part of the wheel."""
