"""From a channel graph and masks to the problem, and from its answer back to a plan for the network."""
