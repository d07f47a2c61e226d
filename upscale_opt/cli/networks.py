"""Networks for the commands: built, with nothing zero by accident, on the right device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from upscale_opt.cli.given import Given, is_own
from upscale_opt.cli.own_model import OwnModel, load_weights
from upscale_opt.errors import UpscaleError
from upscale_opt.models import catalogue
from upscale_opt.tracing.examples import map_tensors


def build(name: str, *, seed: int, batch: int, device: torch.device) -> tuple[nn.Module, Any]:
    """The network called ``name`` with random weights, and inputs for it.

    Raises:
        UpscaleError: if there is no such network.
    """
    model = catalogue.build(name, seed=seed)
    inputs = catalogue.example_inputs(name, batch)
    catalogue.randomize(model, seed, inputs)
    return model.to(device), map_tensors(inputs, lambda tensor: tensor.to(device))


def build_any(
    name: str, given: Given, *, seed: int, batch: int, device: torch.device
) -> tuple[nn.Module, Any]:
    """As :func:`build`, but ``"package.module:factory"`` is a model of one's own.

    Args:
        name: of the network.
        given: what else the command line says of it.
        seed: of what is drawn.
        batch: the batch size for networks of the catalogue; one's own have that of their inputs.
        device: where it shall be.

    Raises:
        UpscaleError: if there is no such network, or what is given for it is wrong.
    """
    given.check(name)
    if not is_own(name):
        network, inputs = build(name, seed=seed, batch=batch, device=device)
        if given.weights is not None:
            load_weights(network, given.weights)
        return network, inputs
    network, inputs = OwnModel(name, given).build(seed)
    return network.to(device), map_tensors(inputs, lambda tensor: tensor.to(device))


def find_device(name: str) -> torch.device:
    """The device called ``name``, if it is there and can verify an export.

    Raises:
        UpscaleError: if there is no such device, or it knows no float64.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
        why = (str(error) or type(error).__name__).split(". ")[0].split("\n")[0].rstrip(".")
        raise UpscaleError(
            f"device {name!r} cannot be used ({why}); --device cpu always can"
        ) from None
    return device


@contextmanager
def memory_errors() -> Iterator[None]:
    """Running out of memory is the user's to solve, so it is one of our errors.

    Raises:
        UpscaleError: instead of PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            full = "the GPU's memory is full; use a smaller --batch, or --device cpu"
        elif "can't allocate memory" in str(error):
            full = "the memory is full; use a smaller --batch"
        else:
            raise
        raise UpscaleError(full) from None
