"""UPSCALE's interface: ``MaskingManager`` and ``PruningManager``, which work in place."""
