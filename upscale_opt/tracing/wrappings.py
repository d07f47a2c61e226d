"""Wrappings of models and of their tensors by other tools."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from upscale_opt.errors import TraceError

_INSIDE = {
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
}
"""Modules that compute nothing themselves, and the attribute that holds what is in them."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in ``DataParallel``, ``DistributedDataParallel``, ``torch.compile``, an average.

    Its tensors have their own names there, without ``module.`` or ``_orig_mod.``. What is no such
    wrapping is returned as it is.

    Raises:
        TraceError: if a wrapping has forward hooks, which would get lost.
    """
    while isinstance(model, nn.Module):
        kind = type(model)
        inside = _INSIDE.get((kind.__module__, kind.__name__))
        if inside is None:
            break
        if model._forward_hooks or model._forward_pre_hooks:
            raise TraceError(
                f"the model is in a {kind.__name__} that has forward hooks of its own; give the "
                f"model inside, its .{inside}"
            )
        model = getattr(model, inside)
    return model


def masked_by_torch(model: nn.Module) -> list[str]:
    """The tensors that :mod:`torch.nn.utils.prune` masks before every call, by name."""
    return [f"{name}.{tensor}".lstrip(".") for name, _, tensor in _masked(model)]


def computed_by_torch(model: nn.Module) -> list[str]:
    """The tensors that are computed from others before every call, by name.

    Weight norms, spectral norms and other parametrizations, old and new; if they compute the same
    each time.
    """
    return [f"{name}.{tensor}".lstrip(".") for name, _, tensor in _computed(model)]


def make_permanent(model: nn.Module) -> None:
    """Let these tensors be parameters, with the values that they have now, and nothing else."""
    for _, module, tensor in list(_masked(model)):
        prune.remove(module, tensor)  # type: ignore[no-untyped-call]
    for _, module, tensor in list(_computed(model)):
        hooks = module._forward_pre_hooks.values()
        if parametrize.is_parametrized(module):
            _leave_parametrized(module)
        elif any(isinstance(hook, WeightNorm) and hook.name == tensor for hook in hooks):
            remove_weight_norm(module, tensor)
        elif any(isinstance(hook, SpectralNorm) and hook.name == tensor for hook in hooks):
            remove_spectral_norm(module, tensor)


def _masked(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield name, module, hook._tensor_name


def _computed(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            tensors = list(_parametrizations(module))
            if all(_is_constant(module, tensor) for tensor in tensors):
                yield from ((name, module, tensor) for tensor in tensors)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm) or (
                isinstance(hook, SpectralNorm) and not module.training
            ):
                yield name, module, hook.name


def _leave_parametrized(module: nn.Module) -> None:
    """Give a module its own class again, and its tensors their values.

    PyTorch's own function for this takes the tensors away from all modules of the class that it
    made for this one, and so from the model that this one is copied from.
    """
    made = {}
    for name, inside in _parametrizations(module).items():
        value = getattr(module, name).detach().clone()
        is_parameter = any(True for _ in inside.parameters(recurse=False))
        made[name] = nn.Parameter(value) if is_parameter else value
    del module.parametrizations
    module.__class__ = type(module).__mro__[1]
    for name, value in made.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, value)
        else:
            module.register_buffer(name, value)


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    inside = module.parametrizations
    assert isinstance(inside, nn.ModuleDict)
    return dict(inside.items())


def _is_constant(module: nn.Module, tensor: str) -> bool:
    """Tell whether a parametrized tensor is the same each time, and nothing else changes."""
    inside = _parametrizations(module)[tensor]
    if any(part.training for part in inside.modules()):
        return False
    before = {name: one.clone() for name, one in inside.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        first, second = getattr(module, tensor), getattr(module, tensor)
    same = all(_equal(one, before[name]) for name, one in inside.named_buffers())
    return same and isinstance(first, torch.Tensor) and _equal(first, second)


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """The same numbers; definitions that are loaded into may hold NaN."""
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
