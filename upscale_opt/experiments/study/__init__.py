"""The study: what pruning without constraints buys, on networks trained on real data."""
