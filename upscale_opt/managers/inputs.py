"""Example inputs for a model whose user gave none: guessed from its first layer, by trying."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from upscale_opt.errors import MaskError, TraceError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.materializing.used import kind_of
from upscale_opt.tracing import trace

_SIZES = (224, 32, 28, 64, 96, 128, 160, 192, 240, 256, 288, 299, 331, 380, 384, 448, 512, 16, 8)
"""Image sizes, the usual ones first."""

_BATCH = 2
"""A batch of one is no input for batch norms of a single value in training mode."""


def trace_without_inputs(model: nn.Module) -> ChannelGraph:
    """The graph of a model with a single input, which must be a batch of images or vectors.

    The number of channels is that of the first layer, and the size the first of the usual ones
    with which the model runs. Which channels flow where does not depend on it.

    Raises:
        MaskError: if none of them does.
    """
    candidates = _candidates(model)
    # A model that needs data (to branch on, say) runs on no meta tensor, but may well be traced.
    fitting = next((one for one in candidates if _runs(model, one)), None)
    why = ""
    for inputs in candidates[:1] if fitting is None else [fitting]:
        try:
            return trace(model, inputs)
        except TraceError as error:
            why = f" (tried {tuple(inputs.shape)}: {error})"
    raise MaskError(
        f"cannot find inputs that {type(model).__name__} takes{why}; give some: "
        "MaskingManager(model, inputs=...) with a tensor, a tuple of arguments, or a dict of "
        "keyword arguments"
    )


def _runs(model: nn.Module, inputs: Tensor) -> bool:
    """Tell whether a copy of the model runs on meta tensors of that shape, which have no data."""
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        on_meta = tensor.detach().to("meta")
        memo[id(tensor)] = (
            nn.Parameter(on_meta, False) if isinstance(tensor, nn.Parameter) else on_meta
        )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(model, memo)(inputs.to("meta"))
    except Exception:
        # Any Python code may run in a forward pass, so there is no list of what can go wrong.
        return False
    return True


def _candidates(model: nn.Module) -> list[Tensor]:
    dtype, device = kind_of(model)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(_BATCH, *shape, dtype=dtype, device=device)

    own = getattr(model, "image_size", None)  # vision transformers know theirs
    sizes = [own, *_SIZES] if isinstance(own, int) else [*_SIZES]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return [zeros(module.in_channels, size, size) for size in sizes]
        if isinstance(module, nn.Conv1d):
            return [zeros(module.in_channels, size) for size in (1024, *_SIZES, 16000)]
        if isinstance(module, nn.Conv3d):
            return [zeros(module.in_channels, 16, size, size) for size in (112, 224, 64, 32, 16)]
        if isinstance(module, nn.Linear):
            return [zeros(module.in_features), zeros(16, module.in_features)]
    return []
