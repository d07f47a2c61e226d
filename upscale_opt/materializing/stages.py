"""The prunings that a model has been through, so that its file can say how to repeat them."""

from __future__ import annotations

from itertools import zip_longest

import torch

from upscale_opt.materializing.origin import Origin, Stage, calls_of
from upscale_opt.materializing.pruned_module import PrunedModule, making_of
from upscale_opt.materializing.used import tensors_of


def stages_of(model: object) -> tuple[Stage, ...]:
    """All prunings of ``model``, the first one first; none if it was changed since the last.

    What is made of a changed model has that model as its original.
    """
    making = making_of(model)
    if not isinstance(model, PrunedModule) or making.solution is None or making.origin is None:
        return ()
    if misfit(model, making.origin, tensors_of(model)) is not None:
        return ()
    return (*making.earlier, Stage(solution=making.solution, origin=making.origin))


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
