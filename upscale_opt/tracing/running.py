"""Trace a model: by torch.fx, or by torch.export where FX fails; with heads where they work."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx, nn

from upscale_opt.errors import TraceError
from upscale_opt.tracing.building import NotInFX
from upscale_opt.tracing.capture import (
    Capture,
    Captured,
    KeepsState,
    StoresResults,
    capture,
)
from upscale_opt.tracing.heads import HeadsRefused
from upscale_opt.tracing.probing import built
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.unchanged import CONTAINERS, same_random_state, unchanged
from upscale_opt.tracing.validating import Trial, compare, validate

_WAYS_OUT = (
    (
        ("control flow", "data-dependent", "DataDependent", "DynamicOutputShape"),
        "Control flow that depends on data must be moved out of the model, or its submodules "
        "traced one by one",
    ),
    (
        ("Cache'>",),
        "A cache of keys and values is no tensor: trace with use_cache=False among the inputs; "
        "a model that keeps its class then generates with its cache as before",
    ),
)
"""Words in torch's refusals, and what can be done about them."""


def run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
    """Trace ``model``: by torch.fx, or by torch.export if that fails.

    Raises:
        TraceError: if neither can capture the model, or it does not run on the inputs.
    """
    reasons: list[str] = []
    kinds: tuple[Capture, ...] = ("fx", "export")
    stored: list[str] = []
    for kind in kinds:
        try:
            with unchanged(model) if stored else nullcontext():
                _forget(model, stored)
                program = run_as(model, args, kwargs, kind)
                _check_updates(model, program, stored)
                return program
        except KeepsState as error:
            raise TraceError(f"{type(model).__name__} cannot be traced: {error}") from None
        except TraceError as error:
            stored = error.names if isinstance(error, StoresResults) else []
            reasons.append(str(error))
    message = f"{type(model).__name__} cannot be traced: " + "; ".join(reasons)
    for words, way_out in _WAYS_OUT:
        if any(word in message for word in words):
            message += f". {way_out}"
    raise TraceError(message)


def _forget(model: nn.Module, names: list[str], *, renew: bool = False) -> None:
    """Delete attributes that are written by the model's code: what reads them first must fail.

    Args:
        model: the model.
        names: of the attributes.
        renew: let those that no class has be ``None`` instead, as before the first call.
    """
    for name in names:
        prefix, _, key = name.rpartition(".")
        module = model.get_submodule(prefix)
        attributes = vars(module)  # but never a buffer
        if isinstance(attributes.get(key), CONTAINERS):
            attributes[key].clear()
        elif renew and not hasattr(type(module), key):
            attributes[key] = None
        else:
            attributes.pop(key, None)


def _check_updates(model: nn.Module, program: Program, stored: list[str]) -> None:
    """Refuse a program that does not update the buffers which the model's code assigns.

    Raises:
        TraceError: naming the first of them.
    """
    updated = {
        str(node.args[0].target)
        for node in program.captured.graph.nodes
        if node.target is torch.ops.aten.copy_.default and isinstance(node.args[0], fx.Node)
    }
    for name, _ in model.named_buffers():
        if name in stored and name not in updated:
            raise TraceError(
                f"the model assigns its buffer {name!r}, which would get lost; update it in place"
            )


def run_as(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: Capture
) -> Program:
    """Trace ``model`` by one tracer. The model and the random state are as before afterwards.

    Raises:
        TraceError: if this tracer cannot capture the model, or it does not run on the inputs.
    """
    try:
        with (
            same_random_state(model, args, dict(kwargs)),
            torch.inference_mode(False),  # whose tensors cannot be looked into
            torch.no_grad(),
            unchanged(model),
        ):
            try:
                return _build(model, args, kwargs, kind, understands_heads=True)
            except HeadsRefused:
                return _build(model, args, kwargs, kind, understands_heads=False)
    except NotInFX as error:
        if kind == "export":
            raise TraceError(str(error)) from None
        raise


def _build(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    kind: Capture,
    *,
    understands_heads: bool,
) -> Program:
    """Capture the model, build its graph, and see whether the program does what the model does."""

    def build(*, on_values: bool = True) -> tuple[Program, Captured]:
        captured = capture(model, args, kwargs, kind)
        program, result, numbers = built(
            model, captured, args, kwargs, understands_heads=understands_heads
        )
        validate(trial, captured, result, numbers, on_values=on_values)
        return program, captured

    trial = Trial(model, args, dict(kwargs))
    program, captured = build()
    kept = trial.kept_for_sizes(captured)
    if kept:
        try:
            with unchanged(model):
                _forget(model, kept, renew=True)
                other, captured = build(on_values=False)
            compare(trial, captured)
            return other
        except TraceError:
            pass
    return program
