"""Calibration data: batches of inputs that go through a captured program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from upscale_opt.errors import TraceError
from upscale_opt.importance.batches import as_batches
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.tracing.examples import as_call, remake, require_model
from upscale_opt.tracing.executing import placed
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.recent import recall
from upscale_opt.tracing.record import tensors_in
from upscale_opt.tracing.running import run_as

Given = dict[fx.Node, Any]
"""The arguments of one call, by the nodes that stand for them."""


def program_of(model: nn.Module, graph: ChannelGraph) -> Program:
    """The captured program that ``graph`` was made with.

    Raises:
        TraceError: if the model is in training mode, or is not the graph's.
    """
    require_model(model, "reconstruct")
    ChannelGraph.require(graph)
    if any(module.training for module in model.modules()):
        raise TraceError(
            f"the {type(model).__name__} is in training mode, in which its outputs depend on the "
            "batch; call eval() first"
        )
    program = recall(model, graph.example, graph.capture)
    if program is None:
        floats = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        first = floats[0] if floats else torch.zeros(())
        program = run_as(model, *remake(graph.example, first.dtype, first.device), graph.capture)
    if program.graph.fingerprint != graph.fingerprint:
        raise TraceError(
            f"the graph is of another model than this {type(model).__name__}, or of another mode; "
            "trace the model again"
        )
    return program


def listed(data: Iterable[Any]) -> list[Any]:
    """The batches; a single tensor or dict is one.

    Raises:
        TraceError: if there are none.
    """
    try:
        batches = list(as_batches(data))
    except TypeError:
        raise TraceError(
            f"calibration data are batches of inputs, such as [images], not {type(data).__name__}"
        ) from None
    if not batches:
        raise TraceError(
            "there are no calibration batches; give a list of inputs (an iterator gives them once)"
        )
    return batches


def calls_of(program: Program, data: Iterable[Any]) -> list[Given]:
    """Every batch as the program takes it.

    Args:
        program: the captured program.
        data: batches of inputs, as for :func:`upscale_opt.trace`; a tensor or a dict is a batch.

    Raises:
        TraceError: if there are none, or one does not fit the program or holds NaN or infinity.
    """
    return [_call(program, batch, number) for number, batch in enumerate(listed(data))]


def _call(program: Program, batch: Any, number: int) -> Given:
    call = as_call(batch)
    for tensor in tensors_in(call):
        floats = tensor.is_floating_point() or tensor.is_complex()
        if floats and not bool(tensor.isfinite().all()):
            raise TraceError(f"calibration batch {number} holds NaN or infinity")
    alike = len(pytree.tree_leaves(call)) == len(program.captured.leaves)
    given = placed(program.captured, call) if alike else None
    if given is None:
        raise TraceError(
            f"calibration batch {number} does not fit the inputs that the model was traced with; "
            "give batches like those, with as many arguments"
        )
    return given


def samples_in(given: Given) -> int:
    """The length of the first axis of the first tensor: the number of inputs in a batch."""
    tensors: list[Tensor] = tensors_in(list(given.values()))
    return len(tensors[0]) if tensors and tensors[0].ndim else 1
