"""Values for freshly built networks that make errors visible."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from upscale_opt.models.catalogue.entries import ExampleInputs


def randomize(model: nn.Module, seed: int = 0, inputs: ExampleInputs | None = None) -> nn.Module:
    """Make a freshly built network a sharp test object: nothing zero by accident, nothing faint.

    Biases, norm scales and shifts, batch norm statistics, and any other parameter whose values
    are all equal (layer scales, class tokens) are redrawn in place, so that no test passes
    because something happened to be zero or one. Convolution and linear weights keep their
    pattern, zeros included, but each is rescaled as a whole to preserve variance: with the
    weights torchvision draws, MobileNets and EfficientNets fade so quickly that the output
    changes by 1e-7 when the whole input changes, and an error in an early layer would never show.
    The global random state is left as it was.

    Args:
        model: The network; in eval mode if ``inputs`` are given.
        seed: What the values depend on.
        inputs: Run the model on these once and let the batch norm statistics follow, up to
            random factors, what it computes. Without this a deep residual network grows with
            every block (EfficientNetV2-L to 1e17), next to which a lost bias would not show.

    Returns:
        The same model.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm):
                _fill(module.weight, 0.5, 1.5, generator, done)
                _fill(module.bias, 0.1, 0.5, generator, done)
            if isinstance(module, _NormBase):
                _fill(module.running_mean, 0.05, 0.3, generator, done)
                _fill(module.running_var, 0.5, 1.5, generator, done, signed=False)
            if isinstance(module, _ConvNd | nn.Linear):
                _preserve_variance(module, done)
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].endswith("bias"):
                _fill(parameter, 0.02, 0.1, generator, done)
            elif parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                _fill(parameter, 0.2, 0.6, generator, done)
        if inputs is not None:
            _follow_statistics(model, inputs, generator)
    return model


def _preserve_variance(layer: _ConvNd | nn.Linear, done: set[int]) -> None:
    """Scale a weight to the root mean square that He et al. (2015) derive from its fan-in."""
    weight = layer.weight
    rms = float(weight.double().square().mean().sqrt())
    if rms == 0 or id(weight) in done:
        return
    done.add(id(weight))
    if isinstance(layer, _ConvNd):
        fan_in, gain = layer.in_channels // layer.groups * weight[0, 0].numel(), 2.0
    else:
        fan_in, gain = layer.in_features, 1.0
    weight.mul_((gain / fan_in) ** 0.5 / rms)


def _follow_statistics(model: nn.Module, inputs: ExampleInputs, generator: torch.Generator) -> None:
    """Set each batch norm's statistics near those of what reaches it; the model runs once."""

    def follow(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, _NormBase) and module.running_mean is not None:
            variance, mean = torch.var_mean(args[0], correction=0)
            _fill(module.running_mean, 0.05, 0.3, generator, set())
            _fill(module.running_var, 0.5, 1.5, generator, set(), signed=False)
            if variance > 0 and module.running_var is not None:
                module.running_mean.mul_(variance.sqrt()).add_(mean)
                module.running_var.mul_(variance)

    handles = [module.register_forward_pre_hook(follow) for module in model.modules()]
    try:
        _call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, inputs: ExampleInputs) -> None:
    if isinstance(inputs, dict):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)


def _fill(
    values: Tensor | None,
    low: float,
    high: float,
    generator: torch.Generator,
    done: set[int],
    signed: bool = True,
) -> None:
    """Draw magnitudes in [low, high] with random signs, once per tensor."""
    if values is None or id(values) in done:
        return
    done.add(id(values))
    drawn = torch.empty(values.shape, dtype=torch.float64).uniform_(low, high, generator=generator)
    if signed:
        drawn *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    values.copy_(drawn)
