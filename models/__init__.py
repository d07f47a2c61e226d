"""Networks to prune: the catalogue, topologies, small ones to train, and generated ones."""
