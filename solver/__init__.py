"""The optimisation: from a channel graph and masks to a proven solution. Never imports torch."""

from upscale_opt.solver.api import instance_of, solve
from upscale_opt.solver.checking.audit import AuditReport, check
from upscale_opt.solver.checking.explaining import Explanation, explain
from upscale_opt.solver.checking.removal import Removal, removal
from upscale_opt.solver.choosing import ChoiceComparison, ChoiceRow, choose, compare_choices
from upscale_opt.solver.comparing import Comparison, ComparisonRow, compare, compare_instance
from upscale_opt.solver.network.coupling import Group, Member, constrain, groups
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.progress import Progress
from upscale_opt.solver.selection.explaining import LayerReason, explain_layer

__all__ = [
    "AuditReport",
    "ChoiceComparison",
    "ChoiceRow",
    "Comparison",
    "ComparisonRow",
    "Explanation",
    "Group",
    "LayerReason",
    "Member",
    "Progress",
    "Removal",
    "SolveOptions",
    "check",
    "choose",
    "compare",
    "compare_choices",
    "compare_instance",
    "constrain",
    "explain",
    "explain_layer",
    "groups",
    "instance_of",
    "removal",
    "solve",
]
