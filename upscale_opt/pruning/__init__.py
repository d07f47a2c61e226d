"""Pruning: the whole chain in one call, or in place by a manager."""

from upscale_opt.managers.mock import MockModel
from upscale_opt.managers.pruning import PruningManager
from upscale_opt.pruning.chain import Pruned, prune
from upscale_opt.pruning.submodules import prune_submodules

__all__ = ["MockModel", "Pruned", "PruningManager", "prune", "prune_submodules"]
