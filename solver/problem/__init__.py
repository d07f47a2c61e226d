"""The problem without a network: spaces to order, reads to serve, and what proves an answer."""
