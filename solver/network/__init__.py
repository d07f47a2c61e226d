"""From a channel graph and masks to the problem, and from its answer to a plan."""
