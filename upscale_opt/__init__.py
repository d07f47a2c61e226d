"""upscale-opt: lossless export of unconstrained channel-pruned PyTorch networks.

    >>> import upscale_opt as uo
    >>> import torch, torchvision
    >>> model = torchvision.models.resnet18().eval()
    >>> pruned = uo.prune(model, torch.zeros(1, 3, 64, 64), amount=0.5)
    >>> pruned.solution.status
    'optimal'

Graphs, masks and solutions can be read and solved without PyTorch; what needs it is loaded when
it is first used. More is in ``uo.importance`` (criteria), ``uo.rules`` (operations of your own),
``uo.solver`` (solvers side by side, what masks remove), ``uo.measuring`` (costs and times) and
``uo.models`` (networks to try things on).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from upscale_opt.errors import (
    ArgumentError,
    BudgetError,
    DeployError,
    MaskError,
    MaterializeError,
    RuleError,
    SchemaError,
    SolverError,
    TraceError,
    UpscaleError,
    VerificationError,
)
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.api import solve
from upscale_opt.solver.checking.audit import check
from upscale_opt.solver.checking.explaining import explain
from upscale_opt.solver.network.coupling import constrain, groups
from upscale_opt.version import VERSION

if TYPE_CHECKING:
    from upscale_opt import errors as errors
    from upscale_opt import importance as importance
    from upscale_opt import measuring as measuring
    from upscale_opt import models as models
    from upscale_opt import report as report
    from upscale_opt import rules as rules
    from upscale_opt import solver as solver
    from upscale_opt.deploying import deploy
    from upscale_opt.importance.choosing import choose_masks
    from upscale_opt.managers.masking import MaskingManager
    from upscale_opt.managers.pruning import PruningManager
    from upscale_opt.masking.zeros import apply_masks, masks_of
    from upscale_opt.materializing.materialize import materialize
    from upscale_opt.pruning.prune import Pruned, prune
    from upscale_opt.pruning.submodules import prune_submodules
    from upscale_opt.reconstruction.refitting import refit
    from upscale_opt.saving.load import load
    from upscale_opt.saving.save import save
    from upscale_opt.tracing import trace
    from upscale_opt.tracing.rules import rule
    from upscale_opt.verifying.verify import verify

__version__ = VERSION

_WITH_TORCH = {
    "MaskingManager": "managers.masking",
    "Pruned": "pruning.prune",
    "PruningManager": "managers.pruning",
    "apply_masks": "masking.zeros",
    "choose_masks": "importance.choosing",
    "deploy": "deploying",
    "load": "saving.load",
    "masks_of": "masking.zeros",
    "materialize": "materializing.materialize",
    "prune": "pruning.prune",
    "prune_submodules": "pruning.submodules",
    "refit": "reconstruction.refitting",
    "rule": "tracing.rules",
    "save": "saving.save",
    "trace": "tracing",
    "verify": "verifying.verify",
}
"""Names that are looked up when they are first used, and the modules that they come from."""

_ROOMS = ("errors", "importance", "measuring", "models", "report", "rules", "solver")
"""The submodules that belong to the surface."""

__all__ = [
    "ArgumentError",
    "Budget",
    "BudgetError",
    "ChannelGraph",
    "CostModel",
    "DeployError",
    "MaskError",
    "MaskingManager",
    "Masks",
    "MaterializeError",
    "Pruned",
    "PruningManager",
    "RuleError",
    "SchemaError",
    "Solution",
    "SolverError",
    "TraceError",
    "UpscaleError",
    "VerificationError",
    "apply_masks",
    "check",
    "choose_masks",
    "constrain",
    "deploy",
    "explain",
    "groups",
    "load",
    "masks_of",
    "materialize",
    "prune",
    "prune_submodules",
    "refit",
    "rule",
    "save",
    "solve",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"upscale_opt.{name}")
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'upscale_opt' has no attribute {name!r}")
    value = getattr(import_module(f"upscale_opt.{_WITH_TORCH[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    dunder = [name for name in globals() if name.startswith("__")]
    return sorted({*__all__, *_ROOMS, *dunder})
