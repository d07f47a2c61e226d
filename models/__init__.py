"""Networks to prune: the catalogue, small topologies, random networks and masks."""
