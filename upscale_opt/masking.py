"""Masks from a model's zeros, models that obey masks, and masks by magnitude."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from upscale_opt.errors import MaskError
from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Layer, Operation, maskable_axes
from upscale_opt.ir.masks import Masks

Side = Literal["input", "output", "both"]


def masks_from_model(model: nn.Module, graph: ChannelGraph) -> Masks:
    """What the model's zeros say: a slice is kept unless it is zero throughout.

    Args:
        model: the (masked) model.
        graph: its graph.

    Raises:
        MaskError: if the model lacks a parameter that the graph names, or has it in another shape.
    """
    tensors = state_of(model, graph)
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, axes in maskable_axes(graph).items():
        nonzero = tensors[name].detach() != 0
        kept[name] = {}
        for axis in axes:
            others = [a for a in range(nonzero.ndim) if a != axis]
            slices = nonzero.any(dim=others) if others else nonzero
            kept[name][axis] = tuple(torch.nonzero(slices).flatten().tolist())
    return Masks(kept=kept)


def state_of(model: nn.Module, graph: ChannelGraph) -> dict[str, torch.Tensor]:
    """The parameters and buffers that the graph names, as the model holds them.

    Raises:
        MaskError: if one is missing or has another shape.
    """
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    for name, shape in graph.parameters.items():
        if name not in tensors:
            raise MaskError(
                f"the model has no parameter {name!r}, which the graph names; "
                "was the graph made from another model?"
            )
        if tuple(tensors[name].shape) != shape:
            raise MaskError(
                f"parameter {name!r} has the shape {tuple(tensors[name].shape)} in the model but "
                f"{shape} in the graph; trace the model again"
            )
    return tensors


def apply_masks(model: nn.Module, graph: ChannelGraph, masks: Masks) -> None:
    """Make ``model`` obey ``masks``, in place: what is not kept becomes zero.

    Where the masks drop an output channel of a layer, that channel becomes zero for real: the
    weight's slice, the bias, and the scale and shift of batch norms directly behind.

    Args:
        model: the model to mask.
        graph: its graph.
        masks: what to keep.

    Raises:
        MaskError: if masks, graph and model do not fit together.
    """
    masks.check(graph)
    tensors = state_of(model, graph)
    behind: dict[str, list[Operation]] = {}
    for op in graph.operations:
        for name in op.inputs:
            behind.setdefault(name, []).append(op)
    with torch.no_grad():
        for name, by_axis in masks.kept.items():
            for axis, kept in by_axis.items():
                _zero(tensors[name], axis, _dropped(tensors[name].shape[axis], kept))
        for op in graph.operations:
            if not isinstance(op, Layer):
                continue
            size = graph.parameters[op.weight][op.out_axis]
            dropped = _dropped(size, masks.kept_on(op.weight, op.out_axis, size))
            if op.bias is not None:
                _zero(tensors[op.bias], 0, dropped)
            for norm in _norms_behind(op, behind):
                for use in norm.parameters:
                    if use.role in ("scale", "shift"):
                        _zero(tensors[use.name], use.axis, dropped)


def _norms_behind(op: Layer, behind: dict[str, list[Operation]]) -> list[ChannelWise]:
    """Batch norms and the like that read nothing but this layer's output."""
    return [
        reader
        for reader in behind.get(op.outputs[0], [])
        if isinstance(reader, ChannelWise)
        and any(use.role == "mean" or use.role == "shift" for use in reader.parameters)
    ]


def _dropped(size: int, kept: frozenset[int] | tuple[int, ...]) -> list[int]:
    return sorted(set(range(size)).difference(kept))


def _zero(tensor: torch.Tensor, axis: int, indices: list[int]) -> None:
    if indices:
        tensor.index_fill_(axis, torch.tensor(indices, device=tensor.device), 0)


def magnitude_masks(
    model: nn.Module,
    graph: ChannelGraph,
    amount: float,
    side: Side = "input",
    layers: Literal["all", "conv"] = "all",
) -> Masks:
    """Unconstrained magnitude pruning: every layer drops its channels of least L2 norm.

    Each layer decides for itself. The network's own inputs and outputs are left alone.

    Args:
        model: the model.
        graph: its graph.
        amount: the share of channels to drop in every layer, in [0, 1); rounded down.
        side: drop input channels, output channels, or both.
        layers: prune all layers, or convolutions only.

    Raises:
        MaskError: if ``amount``, ``side`` or ``layers`` is not one of those, or graph and model do
            not fit together.
    """
    if not 0 <= amount < 1:
        raise MaskError(f"amount must be at least 0 and less than 1, not {amount}")
    if side not in ("input", "output", "both"):
        raise MaskError(f"side must be 'input', 'output' or 'both', not {side!r}")
    if layers not in ("all", "conv"):
        raise MaskError(f"layers must be 'all' or 'conv', not {layers!r}")
    tensors = state_of(model, graph)
    given = {name for op in graph.operations if op.kind == "input" for name in op.outputs}
    wanted = {
        c
        for op in graph.operations
        if op.kind == "output"
        for name in op.inputs
        for c in graph.tensors[name].channels
    }
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for op in graph.operations:
        if not isinstance(op, Layer) or (layers == "conv" and tensors[op.weight].ndim < 3):
            continue
        weight = tensors[op.weight].detach()
        axes: dict[int, tuple[int, ...]] = {}
        if side != "output" and op.inputs and op.inputs[0] not in given:
            features = graph.tensors[op.inputs[0]].features
            axes[op.in_axis] = _largest(weight, op.in_axis, amount, features)
        if side != "input" and wanted.isdisjoint(graph.tensors[op.outputs[0]].channels):
            axes[op.out_axis] = _largest(weight, op.out_axis, amount, 1)
        if axes:
            kept[op.weight] = axes
    return Masks(kept=kept)


def _largest(weight: torch.Tensor, axis: int, amount: float, features: int) -> tuple[int, ...]:
    """The slices kept: those of the channels with the largest L2 norms."""
    others = [a for a in range(weight.ndim) if a != axis]
    squares = weight.double().square().sum(others).reshape(-1, features).sum(1)
    count = len(squares) - int(amount * len(squares))
    best = torch.topk(squares, count).indices.sort().values
    slices = best[:, None] * features + torch.arange(features, device=best.device)
    return tuple(slices.flatten().tolist())
