"""Models of one's own on the command line: a factory, its weights, and example inputs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upscale_opt.cli.given import NOTHING, Given, arguments_of, look_here, matched
from upscale_opt.errors import UpscaleError
from upscale_opt.tracing.examples import DTYPES

_INSIDE = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Entries of checkpoints in which training scripts keep the weights."""

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "ema.")
"""Beginnings of names that wrappings leave: DataParallel, torch.compile, Lightning."""

_TOKENS = 100
"""Example inputs of whole numbers are below it: tokens, or classes."""

_SHOWN = 4


@dataclass(frozen=True)
class OwnModel:
    """A model by its factory.

    Attributes:
        factory: ``"package.module:name"``; the name may have dots, and is called if it can be.
        given: what else is said of it.
    """

    factory: str
    given: Given = NOTHING

    def build(self, seed: int, batch: int | None = None) -> tuple[nn.Module, Any]:
        """The model in eval mode, and its inputs.

        Args:
            seed: of weights and inputs, where they are drawn.
            batch: the batch size of drawn inputs, instead of that given.

        Raises:
            UpscaleError: naming what cannot be found, called or loaded.
        """
        factory = found(self.factory)  # importing it may draw random numbers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = called(factory, self.factory, arguments_of(self.given.arguments))
        inputs = self.inputs(seed, batch)
        if self.given.weights is not None:
            load_weights(model, self.given.weights)
        return model.eval(), inputs

    def inputs(self, seed: int, batch: int | None = None) -> Any:
        """The inputs alone; see :meth:`build`.

        Raises:
            UpscaleError: naming what cannot be read, or what lacks.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._drawn(batch)

    def _drawn(self, batch: int | None) -> Any:
        if self.given.inputs is not None:
            return inputs_in(self.given.inputs)
        self.given.require_inputs(self.factory)
        named = [input_of(text, batch) for text in self.given.shapes]
        if any(name for name, _ in named):
            if not all(name for name, _ in named):
                raise UpscaleError(
                    "give a name to every --input, or to none: --input ids=1x16:int64"
                )
            return dict(named)
        tensors = [tensor for _, tensor in named]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)


def found(factory: str) -> Any:
    """The object called ``"package.module:name"``; modules may lie in the current folder.

    Raises:
        UpscaleError: if there is none.
    """
    place, _, name = factory.partition(":")
    look_here()
    try:
        value = importlib.import_module(place)
    except ImportError as error:
        raise UpscaleError(
            f"cannot import {place!r} ({error}); is it installed, or in the current folder?"
        ) from None
    except Exception as error:
        raise UpscaleError(
            f"importing {place!r} fails with {type(error).__name__}: {first_line(error)}"
        ) from None
    for part in name.split("."):
        if not hasattr(value, part):
            known = [n for n in dir(value) if not n.startswith("_")][:_SHOWN]
            raise UpscaleError(f"{place} has no {name!r}; it has {', '.join(known)} …")
        value = getattr(value, part)
    return value


def called(value: Any, factory: str, arguments: tuple[list[Any], dict[str, Any]]) -> nn.Module:
    """The model that a factory makes, or that it is.

    Raises:
        UpscaleError: if it fails, or makes no model.
    """
    if not isinstance(value, nn.Module):
        if not callable(value):
            raise UpscaleError(f"{factory} is a {type(value).__name__}, which cannot be called")
        try:
            value = value(*arguments[0], **arguments[1])
        except Exception as error:
            raise UpscaleError(
                f"{factory} fails with {type(error).__name__}: {first_line(error)}; its arguments "
                "are given by --model-args"
            ) from None
    if not isinstance(value, nn.Module):
        raise UpscaleError(f"{factory} makes a {type(value).__name__}, not an nn.Module")
    return value


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [""])[0]


def input_of(text: str, batch: int | None = None) -> tuple[str, Tensor]:
    """A name (or none) and random values of a shape.

        >>> name, tensor = input_of("pixels=2x3x8x8")
        >>> name, tuple(tensor.shape)
        ('pixels', (2, 3, 8, 8))
        >>> input_of("1x16:int64")[1].dtype
        torch.int64

    Raises:
        UpscaleError: if it is no shape.
    """
    match = matched(text)
    sizes = [int(size) for size in match["sizes"].split("x")]
    if batch is not None:
        sizes[0] = batch
    dtype = DTYPES.get(match["dtype"] or "float32")
    if dtype is None:
        raise UpscaleError(f"--input {text}: there is no dtype {match['dtype']!r}")
    if dtype.is_floating_point or dtype.is_complex:
        return match["name"] or "", torch.randn(sizes, dtype=dtype)
    high = 2 if dtype is torch.bool else _TOKENS
    return match["name"] or "", torch.randint(high, sizes).to(dtype)


def inputs_in(path: Path) -> Any:
    """Example inputs in a safetensors file: positional if their names are numbers.

    Raises:
        UpscaleError: if the file cannot be read.
    """
    tensors = tensors_in(path)
    if set(tensors) == {str(number) for number in range(len(tensors))}:
        positional = tuple(tensors[str(number)] for number in range(len(tensors)))
        return positional[0] if len(positional) == 1 else positional
    return tensors


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pt`` or ``.pth`` file, by name.

    Pickles are read with ``weights_only``: they run no code.

    Raises:
        UpscaleError: if the file cannot be read, or holds anything else.
    """
    if not path.is_file():
        raise UpscaleError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UpscaleError(
            f"cannot read {path} ({type(error).__name__}: {first_line(error)}); give a safetensors "
            "file, or a state dict saved by torch.save"
        ) from None
    if isinstance(value, Tensor):
        return {"0": value}
    for name in _INSIDE:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            value = value[name]
            break
    tensors = {}
    if isinstance(value, Mapping):
        tensors = {str(name): one for name, one in value.items() if isinstance(one, Tensor)}
    if not tensors:
        raise UpscaleError(f"{path} holds no tensors by name; save model.state_dict()")
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict, with the prefixes that wrappings left stripped.

    Raises:
        UpscaleError: if names or shapes do not fit.
    """
    wanted = model.state_dict()
    tensors = stripped(tensors_in(path), set(wanted))
    absent = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    other = [
        f"{name} ({_shape(tensors[name])} for {_shape(value)})"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    for what, names in (("lacks", absent), ("has other shapes:", other), ("has too much:", extra)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UpscaleError(
                f"{path} does not fit {type(model).__name__}: it {what} "
                f"{', '.join(names[:_SHOWN])}{more}; is it another model's, or are --model-args "
                "missing?"
            )
    model.load_state_dict(tensors)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def stripped(tensors: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The tensors under the names that are wanted, as far as a common prefix was in the way.

    >>> list(stripped({"module.fc.weight": torch.zeros(1)}, {"fc.weight"}))
    ['fc.weight']
    """
    found = dict(tensors)
    while not wanted & set(found):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    counters = ("num_batches_tracked",)
    if wanted & set(found):
        for name in [n for n in found if n not in wanted and n.endswith(counters)]:
            del found[name]
    return found
