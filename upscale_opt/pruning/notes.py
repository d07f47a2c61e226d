"""Notes on a pruning that would else have to be found: what was not removed, or is fixed now."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import fx, nn

from upscale_opt.errors import LittleRemovedWarning
from upscale_opt.ir.graph import ChannelGraph, ChannelWise
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.checking.removal import Removal, Stays, removal
from upscale_opt.tracing.recent import recall

_LITTLE = 0.1
"""A smaller share of the masked weights removed than this is little."""

_UNMASKED = "nothing was masked"
_REMOVED = "nothing was removed", "little was removed"
_CONSTANTS = "channels whose filters are zero"

_CONSTANT = {"bias", "constant"}


def notes_of(
    masked: nn.Module, pruned: nn.Module, graph: ChannelGraph, masks: Masks, solution: Solution
) -> tuple[str, ...]:
    """Say all there is to say about a pruning.

    Args:
        masked: the masked model.
        pruned: its export.
        graph: its channel graph.
        masks: what its zeros say.
        solution: what it was pruned by.
    """
    found = [
        *_little_removed(masked, pruned, graph, masks, solution),
        *_dead_scales(graph, masks),
        *_fixed_dropout(masked, pruned, graph),
        *_training(masked),
        *_of_capture(masked, solution),
    ]
    return tuple(found)


def warn(notes: Sequence[str]) -> None:
    """Warn the caller of a caller if a pruning was for next to nothing, by its notes."""
    little = [note for note in notes if note.startswith((*_REMOVED, _CONSTANTS))]
    if any(note.startswith(_REMOVED) for note in little):
        warnings.warn(". ".join(little), LittleRemovedWarning, stacklevel=3)


def _of_capture(masked: nn.Module, solution: Solution) -> tuple[str, ...]:
    """Notes that were made while the model was captured, if that is still known."""
    program = recall(masked, solution.example, solution.capture)
    return () if program is None else tuple(program.captured.notes)


def _little_removed(
    masked: nn.Module, pruned: nn.Module, graph: ChannelGraph, masks: Masks, solution: Solution
) -> Iterator[str]:
    before, after = (sum(p.numel() for p in model.parameters()) for model in (masked, pruned))
    if before - after >= 0.5 * before:
        return
    found = removal(graph, masks, solution)
    wide = [one for one in found.parameters if len(graph.parameters[one.name]) > 1]
    if not any(one.masked for one in wide):
        yield (
            f"{_UNMASKED}, as no slice of a weight (a channel or a filter) is zero "
            "throughout: give the amount to drop, such as amount=0.5, or masks"
        )
        return
    if found.gone >= _LITTLE * found.masked:
        return
    what = _REMOVED[after < before]
    reasons, constants = _reasons(found)
    yield (f"{what}: {found.left:,} of {found.masked:,} masked weights stay, mostly as {reasons}")
    if constants:
        yield (
            f"{_CONSTANTS} still are constants where a bias or a norm's shift "
            "follows; to drop the constants as well (which changes what the model computes), give "
            "the masks: prune(model, inputs, masks=upscale_opt.masks_of(model, "
            "upscale_opt.trace(model, inputs)))"
        )


def _reasons(found: Removal) -> tuple[str, bool]:
    """The two most frequent reasons; and whether constants are among them."""
    weights: Counter[str] = Counter()
    examples: dict[str, Stays] = {}
    for parameter in found.parameters:
        for axis in parameter.axes:
            for stays in axis.left:
                weights[stays.why] += stays.weights
                examples.setdefault(stays.why, stays)
    most = [examples[why] for why, _ in weights.most_common(2)]
    return "; or ".join(map(str, most)), any(one.cause in _CONSTANT for one in most)


def _dead_scales(graph: ChannelGraph, masks: Masks) -> Iterator[str]:
    """Norms whose scales are zero throughout, as some libraries initialise the last of a block."""
    dead = {
        use.name: None
        for op in graph.operations
        if isinstance(op, ChannelWise)
        for use in op.parameters
        if use.role == "scale"
        and graph.parameters[use.name][use.axis] > 1
        and masks.kept.get(use.name, {}).get(use.axis) == ()
    }
    if dead:
        names = ", ".join(list(dead)[:3]) + (f" and {len(dead) - 3} more" if len(dead) > 3 else "")
        yield (
            f"scales that are zero throughout make their branches vanish, and they were removed: "
            f"{names}; timm initialises the last norm of each block so: load trained weights, or "
            "create the model with zero_init_last=False"
        )


def _fixed_dropout(masked: nn.Module, pruned: nn.Module, graph: ChannelGraph) -> Iterator[str]:
    """Calls of functional dropout, whose mode a capture fixes; modules have their own."""
    if graph.capture == "export":
        if any(isinstance(module, _DROPOUTS) for module in masked.modules()):
            yield "torch.export captured the model without its dropout: train() changes nothing"
        return
    if not isinstance(pruned, fx.GraphModule):
        return
    calls = [
        node
        for node in pruned.graph.nodes
        if node.op == "call_function" and "dropout" in getattr(node.target, "__name__", "")
    ]
    if calls:
        yield (
            f"{len(calls)} dropout function(s) in forward are fixed as they were when the model "
            "was captured, and do not follow train() and eval(): use nn.Dropout, whose mode is kept"
        )


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def _training(masked: nn.Module) -> Iterator[str]:
    if masked.training:
        yield (
            "the model was pruned in training mode; what it decides by self.training is fixed so: "
            "call model.eval() before, unless that is meant"
        )
