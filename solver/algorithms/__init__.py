"""The solvers, by name in the registry: each from an instance to orders, with a bound where it has one."""
