"""From the masked model and a plan to a smaller model."""
