"""The solvers, by name in the registry: from an instance to orders, most with a bound."""
