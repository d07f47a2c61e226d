"""Masks from a model's zeros, and models that obey masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from upscale_opt.errors import MaskError
from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    ChannelWise,
    Concat,
    Elementwise,
    Layer,
    Operation,
    PerChannel,
    Select,
    maskable_axes,
    slices_of,
)
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.slices import nonzero_slices, zero_slices
from upscale_opt.masking.tensors import NamedTensors, masks_in
from upscale_opt.tracing.recent import copied_with_trace
from upscale_opt.tracing.wrappings import unwrapped


def masks_of(model: nn.Module | NamedTensors, graph: ChannelGraph) -> Masks:
    """Read masks off the model's zeros: a slice is kept unless it is zero throughout.

    Args:
        model: the (masked) model; or masks, or weights, as tensors by the names of parameters or
            modules (see :func:`upscale_opt.masking.tensors.masks_in`).
        graph: its graph.

    Raises:
        MaskError: if the model lacks a parameter that the graph names, or has it in another shape;
            if tensors do not fit the graph.
    """
    if isinstance(model, Mapping) and not isinstance(model, nn.Module):
        ChannelGraph.require(graph)
        return masks_in(model, graph)
    tensors = state_of(model, graph)
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, axes in maskable_axes(graph).items():
        groups = graph.grouped.get(name, 1)
        kept[name] = {axis: nonzero_slices(tensors[name].detach(), axis, groups) for axis in axes}
    return Masks(kept=kept, graph_fingerprint=graph.masks_fingerprint)


def state_of(model: nn.Module, graph: ChannelGraph) -> dict[str, torch.Tensor]:
    """The parameters and buffers that the graph names, as the model holds them.

    Raises:
        MaskError: if one is missing or has another shape, or there is no model at all.
        SchemaError: if ``graph`` is not a graph.
    """
    if not isinstance(model, nn.Module):
        raise MaskError(f"expected a model, but got an object of class {type(model).__name__}")
    ChannelGraph.require(graph)
    model = unwrapped(model)
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

    Where the masks drop an output channel of a layer, or a filter of a depthwise convolution, that
    channel becomes zero for real: the weight's slice, the bias, and the scales and shifts of batch
    norms and depthwise convolutions behind, up to a sum with a layer that does not drop it.

    Args:
        model: the model to mask.
        graph: its graph.
        masks: what to keep.

    Raises:
        MaskError: if masks, graph and model do not fit together.
    """
    tensors = state_of(model, graph)
    with torch.no_grad():
        for name, axis, indices in masked_slices(graph, masks):
            zero_slices(tensors[name], axis, indices, graph.grouped.get(name, 1))


def masked_copy(model: nn.Module, graph: ChannelGraph, masks: Masks) -> nn.Module:
    """A copy of ``model`` that obeys ``masks``; see :func:`apply_masks`."""
    masked = copied_with_trace(model, graph)
    apply_masks(masked, graph, masks)
    return masked


def masked_slices(graph: ChannelGraph, masks: Masks) -> Iterator[tuple[str, int, list[int]]]:
    """Parameter, axis and indices of all slices that :func:`apply_masks` zeroes.

    Raises:
        MaskError: if the masks do not fit the graph.
    """
    Masks.require(masks)
    masks.check(graph)
    for name, by_axis in masks.kept.items():
        for axis, kept in by_axis.items():
            dropped = sorted(set(range(slices_of(graph, name, axis))).difference(kept))
            if dropped:
                yield name, axis, dropped
    yield from _dropped_behind(graph, masks)


def _dropped_behind(graph: ChannelGraph, masks: Masks) -> Iterator[tuple[str, int, list[int]]]:
    """Yield what must be zero besides, for the output channels that the masks drop to be zero."""
    gone: dict[str, frozenset[int]] = {}  # per tensor, the entries of its channel sequence
    for op in graph.operations:
        if not op.outputs:
            continue
        name = op.outputs[0]
        gone[name] = _gone(
            graph, masks, op, [gone.get(source, frozenset()) for source in op.inputs]
        )
        if not gone[name]:
            continue
        features = graph.tensors[name].features
        slices = [e * features + k for e in sorted(gone[name]) for k in range(features)]
        if isinstance(op, Layer) and op.bias is not None:
            yield op.bias, 0, slices
        elif isinstance(op, ChannelWise):
            for use in op.parameters:
                if use.role != "neutral":
                    yield use.name, use.axis, slices


def _gone(
    graph: ChannelGraph, masks: Masks, op: Operation, inputs: list[frozenset[int]]
) -> frozenset[int]:
    """The entries of the result that are zero because layers drop them."""
    if isinstance(op, Layer):
        size = slices_of(graph, op.weight, op.out_axis)
        features = graph.tensors[op.outputs[0]].features
        kept = {row // features for row in masks.kept_on(op.weight, op.out_axis, size)}
        return frozenset(range(size // features)) - kept
    if isinstance(op, ChannelWise) and op.keeps_zero:
        return inputs[0].union(*(_filters_gone(graph, masks, op, use) for use in op.parameters))
    if isinstance(op, Attention) and op.values:
        return inputs[-1]
    if isinstance(op, Elementwise) and op.zero_if != "never":
        first, *others = inputs
        return first.union(*others) if op.zero_if == "any" else first.intersection(*others)
    if isinstance(op, Concat):
        sizes = [len(graph.tensors[source].channels) for source in op.inputs]
        starts = [sum(sizes[:operand]) for operand in range(len(sizes))]
        pairs = zip(starts, inputs, strict=True)
        gone = frozenset(start + entry for start, entries in pairs for entry in entries)
        if op.positions is not None:
            gone = frozenset(i for i, place in enumerate(op.positions) if place in gone)
        return gone
    if isinstance(op, Select):
        return frozenset(i for i, source in enumerate(op.positions) if source in inputs[0])
    return frozenset()


def _filters_gone(
    graph: ChannelGraph, masks: Masks, op: ChannelWise, use: PerChannel
) -> frozenset[int]:
    """The entries whose depthwise filters are dropped; a scale of one axis is no filter."""
    shape = graph.parameters[use.name]
    if use.role != "scale" or len(shape) < 2:
        return frozenset()
    features = graph.tensors[op.outputs[0]].features
    kept = {i // features for i in masks.kept_on(use.name, use.axis, shape[use.axis])}
    return frozenset(range(shape[use.axis] // features)) - kept
