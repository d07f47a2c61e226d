"""The networks a user can name: torchvision's classifiers, and `topology/…` from this package.

    >>> "resnet18" in names() and "topology/unet" in names()
    True
    >>> model = build("topology/unet", seed=1)
    >>> tuple(model(example_inputs("topology/unet", batch=2)).shape)
    (2, 3, 8, 8)

Nothing is ever downloaded: the weights are random.
"""

from __future__ import annotations

import difflib
import warnings

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from upscale_opt.errors import UpscaleError
from upscale_opt.models import topologies
from upscale_opt.models.topologies import TOPOLOGIES, Inputs

PREFIX = "topology/"

# What the constructors expect when no pretrained weights are named; all others take 224.
_IMAGE_SIZES = {"inception_v3": 299}


def names() -> list[str]:
    """Return all names that `build` knows: the 80 torchvision classifiers, then the topologies."""
    return _torchvision_names() + [PREFIX + name for name in TOPOLOGIES]


def build(name: str, *, seed: int = 0) -> nn.Module:
    """Return the network called `name` with random weights, in eval mode, on the CPU.

    The weights depend on `seed` alone, and the global random state is left as it was. They are
    what the constructor draws, zero biases and all; `randomize` replaces those.

    Raises:
        UpscaleError: No such network.
    """
    _check(name)
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # "init_weights will change its default"
        torch.default_generator.manual_seed(seed)
        if name.startswith(PREFIX):
            return TOPOLOGIES[name.removeprefix(PREFIX)]().eval()
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        return model.eval()


def example_inputs(name: str, batch: int = 1) -> Inputs:
    """Return random inputs that the network called `name` accepts, the same at every call.

    A tensor, or a dict of keyword arguments for the topology that takes them.

    Raises:
        UpscaleError: No such network.
    """
    _check(name)
    if name.startswith(PREFIX):
        return topologies.example_inputs(name.removeprefix(PREFIX), batch)
    size = _IMAGE_SIZES.get(name, 224)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def randomize(model: nn.Module, seed: int = 0, inputs: Inputs | None = None) -> nn.Module:
    """Make a freshly built network a sharp test object: nothing zero by accident, nothing faint.

    Biases, norm scales and shifts, batch norm statistics, and any other parameter whose values
    are all equal (layer scales, class tokens) are redrawn in place, so that no test passes
    because something happened to be zero or one. Convolution and linear weights keep their
    pattern, zeros included, but each is rescaled as a whole to preserve variance: with the
    weights torchvision draws, MobileNets and EfficientNets fade so quickly that the output
    changes by 1e-7 when the whole input changes, and an error in an early layer would never show.
    The global random state is left as it was.

    Args:
        model: The network; in eval mode if `inputs` are given.
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


def _follow_statistics(model: nn.Module, inputs: Inputs, generator: torch.Generator) -> None:
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
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    finally:
        for handle in handles:
            handle.remove()


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


def _torchvision_names() -> list[str]:
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def _check(name: str) -> None:
    known = names()
    if name not in known:
        # A bare topology name is the likeliest slip, and difflib would not find it.
        close = [PREFIX + name] if name in TOPOLOGIES else difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(close)}?" if close else "`names()` lists them all."
        raise UpscaleError(f"there is no network called {name!r}; {hint}")
