"""The IR: channel graph, masks and solution, as JSON documents. Never imports torch."""
