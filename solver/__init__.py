"""The optimisation: from a channel graph and masks to a proven solution. Never imports torch."""
