"""Masks: from a model's zeros, and models that obey them; the units that masks are chosen for."""
