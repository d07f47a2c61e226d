"""Networks to prune: the catalogue, topologies, random ones; masks; and instances without any."""
