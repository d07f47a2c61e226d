"""Masks from tensors by name, as other tools keep them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch

from upscale_opt.errors import MaskError
from upscale_opt.ir.graph import ChannelGraph, maskable_axes
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.slices import nonzero_slices

NamedTensors: TypeAlias = Mapping[str, Any]
"""Tensors by the name of a parameter or of a module; or by module, then by parameter."""

_WRAPPERS = ("module.", "_orig_mod.")
_ENDS = ("_mask", "_orig")
"""Endings of what :mod:`torch.nn.utils.prune` keeps: a mask, and the weight without it."""


def masks_in(tensors: NamedTensors, graph: ChannelGraph) -> Masks:
    """Masks from tensors: a slice is kept unless all tensors of its name are zero throughout it.

    Args:
        tensors: masks (of any dtype) or weights, each of the shape of its parameter: by parameter
            (``{"conv.weight": mask}``), by module (``{"conv": mask}`` is its weight's), by both
            (``{"conv": {"weight": mask, "bias": None}}``), or a state dict, also one with the
            ``weight_mask`` and ``weight_orig`` of :mod:`torch.nn.utils.prune`.
        graph: the graph of the model that they are for.

    Raises:
        MaskError: if a name or a shape is not the graph's, or a tensor holds NaN. Of a state dict
            (which has all weights that the graph names), other names are ignored.
    """
    found: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, tensor in _flat(tensors):
        name = _parameter(key, graph)
        if name is None:
            unknown.append(key)
            continue
        if tuple(tensor.shape) != tuple(graph.parameters[name]):
            raise MaskError(
                f"the tensor for {key!r} has the shape {tuple(tensor.shape)}, and parameter "
                f"{name!r} the shape {tuple(graph.parameters[name])}"
            )
        if bool(tensor.isnan().any()):
            raise MaskError(f"the tensor for {key!r} holds NaN, which neither keeps nor drops")
        there = tensor.detach().cpu() != 0
        found[name] = found[name] & there if name in found else there
    axes = maskable_axes(graph)
    if unknown and not (found and axes.keys() <= found.keys()):
        raise MaskError(f"the graph names no parameter, and no layer, called {unknown[0]!r}")
    kept = {
        name: {
            axis: nonzero_slices(found[name], axis, graph.grouped.get(name, 1))
            for axis in axes[name]
        }
        for name in found
        if name in axes
    }
    if not kept:
        raise MaskError("there are no masks: no tensor is that of a parameter with channels")
    return Masks(kept=kept, graph_fingerprint=graph.masks_fingerprint)


def _flat(tensors: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors by dotted names.

    Raises:
        MaskError: if something is no tensor.
    """
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", tensor) for key, tensor in _flat(value))
        elif isinstance(value, torch.Tensor):
            yield str(name), value
        elif value is not None:  # a mask of nothing
            raise MaskError(f"the mask for {name!r} is a {type(value).__name__}, not a tensor")


def _parameter(key: str, graph: ChannelGraph) -> str | None:
    """The parameter that a name stands for."""
    while key.startswith(_WRAPPERS) and key not in graph.parameters:
        key = key.partition(".")[2]
    plain = next((key.removesuffix(end) for end in _ENDS if key.endswith(end)), key)
    return next((n for n in (key, plain, f"{key}.weight") if n in graph.parameters), None)
