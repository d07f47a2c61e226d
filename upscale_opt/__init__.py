"""upscale-opt: lossless export of unconstrained channel-pruned PyTorch networks.

    >>> import upscale_opt as uo
    >>> import torch, torchvision
    >>> model = torchvision.models.resnet18().eval()
    >>> pruned = uo.prune(model, torch.zeros(1, 3, 64, 64), amount=0.5)
    >>> pruned.solution.status
    'optimal'

Graphs, masks and solutions can be read and solved without PyTorch; what needs it is loaded when
it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from upscale_opt.errors import (
    DeployError,
    MaskError,
    MaterializeError,
    SchemaError,
    SolverError,
    TraceError,
    UpscaleError,
    VerificationError,
)
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.api import solve
from upscale_opt.solver.checking.audit import check
from upscale_opt.solver.checking.explaining import explain
from upscale_opt.solver.checking.removal import Removal, removal
from upscale_opt.solver.comparing import Comparison, ComparisonRow, compare, compare_instance
from upscale_opt.solver.network.coupling import Group, Member, constrain, groups
from upscale_opt.version import VERSION

if TYPE_CHECKING:
    from upscale_opt.deploying import Deployed, deploy
    from upscale_opt.importance.choosing import choose_masks, magnitude_masks
    from upscale_opt.managers.masking import MaskingManager
    from upscale_opt.managers.pruning import PruningManager
    from upscale_opt.masking.zeros import apply_masks, masks_of
    from upscale_opt.materializing.materialize import materialize
    from upscale_opt.measuring.calibrating import calibrate
    from upscale_opt.measuring.estimating import estimate
    from upscale_opt.measuring.moved_bytes import Movement, moved_bytes
    from upscale_opt.pruning.prune import Pruned, prune
    from upscale_opt.pruning.submodules import prune_submodules
    from upscale_opt.saving.load import load
    from upscale_opt.saving.save import save
    from upscale_opt.tracing import trace
    from upscale_opt.tracing.checking import check_rules
    from upscale_opt.tracing.claims import Claim, RuleError
    from upscale_opt.tracing.rules import Call, local_rules, rule
    from upscale_opt.verifying.verify import VerificationReport, verify

__version__ = VERSION

_WITH_TORCH = {
    "Call": "tracing.rules",
    "Claim": "tracing.claims",
    "Deployed": "deploying",
    "MaskingManager": "managers.masking",
    "Movement": "measuring.moved_bytes",
    "Pruned": "pruning.prune",
    "RuleError": "tracing.claims",
    "PruningManager": "managers.pruning",
    "VerificationReport": "verifying.verify",
    "apply_masks": "masking.zeros",
    "calibrate": "measuring.calibrating",
    "check_rules": "tracing.checking",
    "choose_masks": "importance.choosing",
    "deploy": "deploying",
    "estimate": "measuring.estimating",
    "load": "saving.load",
    "local_rules": "tracing.rules",
    "magnitude_masks": "importance.choosing",
    "masks_of": "masking.zeros",
    "materialize": "materializing.materialize",
    "moved_bytes": "measuring.moved_bytes",
    "prune": "pruning.prune",
    "prune_submodules": "pruning.submodules",
    "rule": "tracing.rules",
    "save": "saving.save",
    "trace": "tracing",
    "verify": "verifying.verify",
}

__all__ = [
    "Call",
    "ChannelGraph",
    "Claim",
    "Comparison",
    "ComparisonRow",
    "CostModel",
    "DeployError",
    "Deployed",
    "Group",
    "MaskError",
    "MaskingManager",
    "Masks",
    "MaterializeError",
    "Member",
    "Movement",
    "Pruned",
    "PruningManager",
    "Removal",
    "RuleError",
    "SchemaError",
    "Solution",
    "SolverError",
    "TraceError",
    "UpscaleError",
    "VerificationError",
    "VerificationReport",
    "apply_masks",
    "calibrate",
    "check",
    "check_rules",
    "choose_masks",
    "compare",
    "compare_instance",
    "constrain",
    "deploy",
    "estimate",
    "explain",
    "groups",
    "load",
    "local_rules",
    "magnitude_masks",
    "masks_of",
    "materialize",
    "moved_bytes",
    "prune",
    "prune_submodules",
    "removal",
    "rule",
    "save",
    "solve",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'upscale_opt' has no attribute {name!r}")
    value = getattr(import_module(f"upscale_opt.{_WITH_TORCH[name]}"), name)
    globals()[name] = value
    return value
