"""The prunings that a model has been through, so that its file can say how to repeat them."""

from __future__ import annotations

import zlib
from functools import lru_cache
from itertools import zip_longest

import torch
from pydantic import TypeAdapter
from torch import nn

from upscale_opt.errors import MaterializeError, SchemaError
from upscale_opt.materializing.names import STAGES
from upscale_opt.materializing.origin import Origin, Stage, calls_of
from upscale_opt.materializing.pruned_module import PrunedModule, making_of
from upscale_opt.materializing.used import registered, tensors_of

_ALL = TypeAdapter(tuple[Stage, ...])


def stages_of(model: object) -> tuple[Stage, ...]:
    """All prunings of ``model``, the first one first; none if it was changed since the last.

    What is made of a changed model has that model as its original.
    """
    if isinstance(model, nn.Module) and not isinstance(model, PrunedModule):
        return _own_stages(model)
    making = making_of(model)
    if not isinstance(model, PrunedModule) or making.solution is None or making.origin is None:
        return ()
    if misfit(model, making.origin, tensors_of(model)) is not None:
        return ()
    return (*making.earlier, Stage(solution=making.solution, origin=making.origin))


def packed(stages: tuple[Stage, ...]) -> bytes:
    """The prunings in bytes, for a model of which copies and pickles shall need nothing of ours."""
    return zlib.compress(_ALL.dump_json(stages, exclude_defaults=True))


def _own_stages(model: nn.Module) -> tuple[Stage, ...]:
    """The prunings of a model whose own code calls what they left."""
    kept = vars(model).get(STAGES)
    if not isinstance(kept, bytes):
        return ()
    stages = _unpacked(kept)
    shapes = {name: tuple(tensor.shape) for name, tensor in registered(model)}
    left = stages[-1].origin.shapes
    return stages if all(shapes.get(n, size) == size for n, size in left.items()) else ()


@lru_cache(maxsize=8)
def _unpacked(kept: bytes) -> tuple[Stage, ...]:
    try:
        return _ALL.validate_json(zlib.decompress(kept))
    except (zlib.error, ValueError, SchemaError):
        raise MaterializeError(
            f"what this model says of its earlier prunings (its attribute {STAGES}) cannot be "
            "read: it is damaged, or of another version; delete the attribute, and it counts "
            "as an original of its own"
        ) from None


def misfit(pruned: PrunedModule, origin: Origin, tensors: dict[str, torch.Tensor]) -> str | None:
    """Say how the model (with its ``tensors``) was changed since it was pruned; ``None`` if not."""
    for name in (*origin.shapes, *tensors):
        want, got = origin.shapes.get(name), tensors.get(name)
        if got is None or want is None or tuple(got.shape) != want:
            now = "is gone" if got is None else f"has the shape {tuple(got.shape)}"
            was = "did not exist" if want is None else f"had the shape {want}"
            return f"tensor {name!r} {now}, but {was} when the model was pruned"
    for before, after in zip_longest(origin.calls, calls_of(pruned.graph)):
        if before != after:
            return f"its program was edited after pruning, call {after or before}"
    return None
