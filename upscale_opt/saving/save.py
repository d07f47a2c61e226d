"""Save a pruned model to one file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from upscale_opt.errors import MaterializeError
from upscale_opt.ir.base import write_atomically
from upscale_opt.materializing.origin import Modes, modes_of
from upscale_opt.materializing.pruned_module import PrunedModule, making_of
from upscale_opt.materializing.stages import misfit
from upscale_opt.materializing.used import modules_of, tensors_of
from upscale_opt.saving.file import Contents, Manifest, pack
from upscale_opt.saving.module_settings import settings_of
from upscale_opt.tracing.examples import DTYPES
from upscale_opt.tracing.wrappings import unwrapped
from upscale_opt.version import VERSION


def save(pruned: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned model to ``path``: a safetensors file, written whole or not at all.

    It holds the tensors, the solution and a checksum; no code, and no pickle. :func:`load` reads
    it. What is no tensor, such as the ``p`` of a dropout, comes from the definition then, and must
    be the same there; hooks come from the definition as they are. What ``forward`` does not use,
    such as a loss module, is not saved. A model that was pruned several times is saved with all
    those solutions.

    Args:
        pruned: what :func:`upscale_opt.materialize` returned, or the ``model`` of what
            :func:`upscale_opt.prune` did; it may have been trained, or moved to another device or
            dtype, since.
        path: where to; the usual ending is ``.safetensors``.

    Raises:
        MaterializeError: if it is not a pruned model, or no longer fits its solution.
        OSError: if the file cannot be written; a file that was there is as before.
    """
    module = unwrapped(pruned)
    making = making_of(module)
    solution, origin = making.solution, making.origin
    if not isinstance(module, PrunedModule) or solution is None or origin is None:
        inside = isinstance(getattr(module, "model", None), PrunedModule)
        raise MaterializeError(
            f"a {type(module).__name__} cannot be saved, as it carries no solution; give "
            + (
                "its .model"
                if inside
                else "the model that materialize or prune made (if something wraps that, the "
                "model inside)"
            )
        )
    tensors = tensors_of(module)
    changed = misfit(module, origin, tensors)
    if changed is not None:
        raise MaterializeError(
            f"the model no longer fits its solution: {changed}; save it before changing it, change "
            "the original before pruning, or use torch.save"
        )
    _check_plain(module, tensors)
    # A parameter may have several names. It is stored by the first.
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        first = names.setdefault(id(tensor), name)
        if first != name:
            aliases[name] = first
    manifest = Manifest(
        package=VERSION,
        torch=str(torch.__version__),
        origin=origin,
        modes=_modes(module),
        frozen=tuple(
            name
            for name, tensor in tensors.items()
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad and name not in aliases
        ),
        aliases=aliases,
        settings=settings_of(module),
        earlier=making.earlier,
    )
    stored = {
        name: tensor.detach().cpu().resolve_conj().resolve_neg()
        for name, tensor in tensors.items()
        if name not in aliases
    }
    write_atomically(Path(path), pack(Contents(solution, manifest, stored)))


def _modes(pruned: PrunedModule) -> Modes:
    """The modes of the modules that are saved."""
    modes, saved = modes_of(pruned), modules_of(pruned)
    return Modes(training=modes.training, others=tuple(n for n in modes.others if n in saved))


def _check_plain(pruned: PrunedModule, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse what is not plain numbers."""
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            what = "on the meta device" if tensor.is_meta else "sparse or quantized"
            raise MaterializeError(f"tensor {name!r} is {what}, and cannot be saved so")
        if tensor.dtype not in DTYPES.values():
            raise MaterializeError(f"tensor {name!r} is {tensor.dtype}, and cannot be saved so")
    for name, module in modules_of(pruned).items():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise MaterializeError(
                f"module {name!r} ({type(module).__name__}) has extra state, which only torch.save "
                "can save"
            )
