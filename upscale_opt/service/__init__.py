"""The service: ``upscale-opt serve`` and ``upscale-opt worker``. Never imports torch."""
