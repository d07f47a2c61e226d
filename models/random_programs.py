"""Random programs: which layers and operations a random network runs, drawn step by step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
"""The shape of one example: `(C, H, W)` image, `(T, C)` tokens or `(F,)` vector."""

_LARGEST_SIDE = 12
_LARGEST_CAT = 16


@dataclass(frozen=True)
class Step:
    """One line of a program.

    Attributes:
        op: A key of `random_steps.STEPS`, or "layer" for the call of a module.
        operands: Which tensors it reads, counted from the input, which is 0.
        numbers: Its constants, such as the bounds of a slice.
        layer: The key in `Program.layers` or `.parameters` of the one it uses, if any.
        shapes: The shapes of the tensors it appends.
    """

    op: str
    operands: tuple[int, ...]
    numbers: tuple[int, ...]
    layer: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Program:
    """A random network before it is a module.

    Attributes:
        input_shape: The shape of one example.
        steps: What to run, in order.
        layers: The modules that steps call, by key.
        parameters: The bare parameters that steps use, by key.
        outputs: Which tensors to return.
        as_tuple: Return a tuple even if there is one output only.
    """

    input_shape: Shape
    steps: tuple[Step, ...]
    layers: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]
    outputs: tuple[int, ...]
    as_tuple: bool


def draw_program(rng: random.Random, max_ops: int) -> Program:
    """Draw a program of at most `max_ops` steps (at least one).

    Constructors of modules draw from the global random state on the way; the caller guards it.
    """
    return _Builder(rng, max_ops).build()


@dataclass(frozen=True)
class _Value:
    """What the builder knows of a tensor.

    Attributes:
        index: Its place in the list of tensors.
        shape: Its shape.
        degree: How many streams were multiplied into it, bounded so that values stay finite.
        storage: The index of the tensor whose memory it is, its own unless it is an alias.
    """

    index: int
    shape: Shape
    degree: int
    storage: int

    @property
    def channels(self) -> int:
        """The number of channels: first axis of an image, last of tokens and of vectors."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    @property
    def is_image(self) -> bool:
        """Whether this is a `(C, H, W)` image."""
        return len(self.shape) == 3


class _Builder:
    """Draws a program; each method below `build` adds one kind of step, or nothing if it cannot."""

    def __init__(self, rng: random.Random, max_ops: int) -> None:
        self.rng = rng
        self.max_ops = max_ops
        self.generator = torch.Generator().manual_seed(rng.getrandbits(32))
        side = (rng.randint(4, 6), rng.randint(4, 6))
        self.values = [_Value(0, (rng.randint(2, 8), *side), 1, 0)]
        self.steps: list[Step] = []
        self.layers: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        # Memory that in-place steps must not touch: the caller's, and what views look at.
        self.frozen = {0}
        self.read = {0}

    def build(self) -> Program:
        """Draw the steps and the outputs."""
        count = math.ceil(self.max_ops * self.rng.uniform(0.5, 1))
        kinds, weights = zip(*_KINDS, strict=True)
        self.convolution()
        while len(self.steps) < count:
            self.rng.choices(kinds, weights)[0](self)
        while len(self.steps) > max(count, 1):
            self.drop_last_step()
        outputs = [len(self.values) - 1]
        for _ in range(self.rng.choice([0, 0, 0, 1, 2])):
            extra = self.pick().index
            if extra not in outputs or self.rng.random() < 0.1:
                outputs.insert(self.rng.randint(0, len(outputs)), extra)
        return Program(
            input_shape=self.values[0].shape,
            steps=tuple(self.steps),
            layers=self.layers,
            parameters=self.parameters,
            outputs=tuple(outputs),
            as_tuple=len(outputs) > 1 or self.rng.random() < 0.1,
        )

    def convolution(self) -> None:
        """Add a convolution: full, transposed, depthwise or grouped; at times a layer again."""
        x = self.pick(lambda value: value.is_image)
        again = [k for k, v in self.layers.items() if getattr(v, "in_channels", 0) == x.channels]
        if again and self.rng.random() < 0.1:
            key = self.rng.choice(again)
            self.append_layer_result(x, key)
            return
        style = self.rng.choice(["full"] * 6 + ["transposed", "depthwise", "grouped"])
        channels, bias = self.rng.randint(2, 8), self.rng.random() < 0.6
        if style == "transposed" and max(x.shape[1:]) * 2 <= _LARGEST_SIDE:
            self.layer(x, nn.ConvTranspose2d(x.channels, channels, 2, stride=2, bias=bias))
        elif style == "depthwise":
            times = self.rng.choice([1, 1, 2]) if x.channels <= 8 else 1
            wide = x.channels * times
            self.layer(x, nn.Conv2d(x.channels, wide, 3, 1, 1, groups=x.channels, bias=bias))
        elif style == "grouped" and x.channels % 2 == 0:
            channels += channels % 2
            self.layer(x, nn.Conv2d(x.channels, channels, 3, 1, 1, groups=2, bias=bias))
        else:
            self.full_convolution(x, channels, bias)

    def full_convolution(self, x: _Value, channels: int, bias: bool, same: bool = False) -> _Value:
        """Add a 1x1 or 3x3 convolution, of stride 1 if `same`."""
        kernel = self.rng.choice([1, 3])
        stride = 1 if same or min(x.shape[1:]) < 4 else self.rng.choice([1, 1, 1, 2])
        conv = nn.Conv2d(x.channels, channels, kernel, stride, kernel // 2, bias=bias)
        return self.layer(x, conv)

    def batch_norm(self) -> None:
        """Add a batch norm with random statistics, some channels of it constant zero at times."""
        x = self.pick(lambda value: len(value.shape) != 2)
        kind = nn.BatchNorm2d if x.is_image else nn.BatchNorm1d
        norm = kind(x.channels, affine=self.rng.random() < 0.85)
        self.layer(x, norm)
        if norm.affine and self.rng.random() < 0.3:
            dead = [c for c in range(x.channels) if self.rng.random() < 0.4]
            with torch.no_grad():
                norm.weight[dead] = 0
                norm.bias[dead] = 0

    def activation(self) -> None:
        """Add an elementwise function as a module or as a call, with f(0) = 0 or without."""
        x = self.pick()
        if self.rng.random() < 0.6:
            modules: list[Callable[[], nn.Module]] = [nn.ReLU, nn.ReLU, nn.SiLU, nn.GELU, nn.Tanh]
            modules += [nn.Hardswish, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Dropout]
            self.layer(x, self.rng.choice(modules)())
        else:
            calls = ["relu", "relu", "silu", "tanh", "sigmoid", "exp", "softplus", "add_one"]
            self.append(self.rng.choice(calls), [x], x.shape)

    def inplace_relu(self) -> None:
        """Add an in-place relu of memory that is nobody's view."""
        writable = [v for v in self.values if v.storage not in self.frozen]
        if writable:
            self.layer(self.recent(writable), nn.ReLU(inplace=True))

    def residual(self) -> None:
        """Add an in-place or plain sum of an image and a convolution of the same shape."""
        x = self.pick(lambda value: value.is_image)
        y = self.full_convolution(x, x.channels, bias=self.rng.random() < 0.5, same=True)
        operands = [x, y] if self.rng.random() < 0.5 else [y, x]
        inplace = operands[0].storage not in self.frozen and self.rng.random() < 0.3
        self.append("add_" if inplace else "add", operands, x.shape)

    def combine(self) -> None:
        """Add a sum, difference or product of two tensors, projecting one if none fits."""
        x = self.pick()
        fits = [v for v in self.values[1:] if v.shape == x.shape]
        images = [v for v in self.values if v.is_image and v.shape[1:] == x.shape[1:]]
        if x.is_image and (len(fits) < 2 or self.rng.random() < 0.3):
            y = self.full_convolution(self.recent(images), x.channels, bias=True, same=True)
        else:
            y = self.recent(fits or [x])
        op = self.rng.choice(["add", "add", "add", "add_", "sub", "mul"])
        if op == "add_" and x.storage in self.frozen:
            op = "add"
        self.append(op, [x, y], x.shape)

    def gate(self) -> None:
        """Add a product of an image with its own spatial mean, or with a one-channel map."""
        x = self.pick(lambda value: value.is_image)
        if self.rng.random() < 0.5:
            gate = self.append("mean_keepdim", [x], (x.channels, 1, 1))
            if self.rng.random() < 0.5:
                gate = self.full_convolution(gate, x.channels, bias=True, same=True)
        else:
            gate = self.full_convolution(x, 1, bias=True, same=True)
        gate = self.append("sigmoid", [gate], gate.shape)
        self.append("mul", [x, gate], x.shape)

    def cat(self) -> None:
        """Add a concatenation of two to four tensors, the same one twice at times."""
        x = self.pick()
        rest = x.shape[1:] if x.is_image else x.shape[:-1]
        fits = [
            v
            for v in self.values
            if len(v.shape) == len(x.shape)
            and (v.shape[1:] if v.is_image else v.shape[:-1]) == rest
        ]
        operands = [x]
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            y = self.recent(fits)
            if sum(v.channels for v in operands) + y.channels <= _LARGEST_CAT:
                operands.append(y)
        self.rng.shuffle(operands)
        channels = sum(v.channels for v in operands)
        if len(operands) > 1:
            shape = (channels, *rest) if x.is_image else (*rest, channels)
            self.append("cat" if x.is_image else "cat_last", operands, shape)

    def cut(self) -> None:
        """Add a slice, or all pieces of a chunk, of an image's channels; both are views."""
        x = self.pick(lambda value: value.is_image and value.channels > 1)
        if self.rng.random() < 0.6:
            start = self.rng.randint(0, x.channels - 1)
            stop = self.rng.randint(start + 1, x.channels)
            self.append("slice", [x], (stop - start, *x.shape[1:]), numbers=(start, stop))
        else:
            pieces = self.rng.choice([2, 2, 3])
            size = math.ceil(x.channels / pieces)
            sizes = [min(size, x.channels - at) for at in range(0, x.channels, size)]
            shapes = [(channels, *x.shape[1:]) for channels in sizes]
            self.append("chunk", [x], *shapes, numbers=(pieces, len(sizes)))
        self.frozen.add(x.storage)

    def resample(self) -> None:
        """Add a pooling or an upsampling."""
        x = self.pick(lambda value: value.is_image and min(value.shape[1:]) >= 2)
        channels, height, width = x.shape
        style = self.rng.choice(["avg", "max", "adaptive", "up"])
        if style == "up" and max(height, width) * 2 <= _LARGEST_SIDE:
            mode = self.rng.choice(["nearest", "bilinear"])
            self.layer(x, nn.Upsample(scale_factor=2.0, mode=mode))
        elif style == "adaptive":
            side = self.rng.randint(1, 4)
            self.append("adaptive_pool", [x], (channels, side, side), numbers=(side,))
        elif style == "avg":
            self.append("avg_pool", [x], (channels, height // 2, width // 2))
        else:
            self.layer(x, nn.MaxPool2d(2))

    def to_vector(self) -> None:
        """Add a mean over space or tokens, or a flattening, and often a linear layer behind it."""
        x = self.pick(lambda value: len(value.shape) > 1)
        if self.rng.random() < 0.5:
            y = self.append("mean" if x.is_image else "mean_tokens", [x], (x.channels,))
        else:
            op = self.rng.choice(["flatten", "reshape_batch", "reshape_fixed"])
            numbers = (math.prod(x.shape),) if op == "reshape_fixed" else ()
            y = self.append(op, [x], (math.prod(x.shape),), numbers=numbers)
            self.frozen.add(x.storage)
        if y.channels > 8 or self.rng.random() < 0.5:
            self.layer(y, nn.Linear(y.channels, self.rng.randint(2, 8)))

    def linear(self) -> None:
        """Add a linear layer on the channels of tokens or of a vector, or of a permuted image."""
        x = self.pick()
        channels, bias = self.rng.randint(2, 8), self.rng.random() < 0.6
        if not x.is_image:
            self.layer(x, nn.Linear(x.channels, channels, bias=bias))
            return
        self.frozen.add(x.storage)
        tokens = self.append("to_tokens", [x], (math.prod(x.shape[1:]), x.channels))
        y = self.layer(tokens, nn.Linear(x.channels, channels, bias=bias))
        if self.rng.random() < 0.4:
            shape = (channels, *x.shape[1:])
            self.append("from_tokens", [y], shape, numbers=x.shape[1:])
            self.frozen.add(y.storage)

    def scale(self) -> None:
        """Add a per-channel parameter, multiplied or added, with some zeros at times."""
        x = self.pick()
        values = _signed((x.channels, 1, 1) if x.is_image else (x.channels,), 1.0, self.generator)
        if self.rng.random() < 0.2:
            values *= torch.rand(values.shape, generator=self.generator) < 0.6
        key = f"scale{len(self.steps)}"
        self.parameters[key] = nn.Parameter(values)
        self.append(self.rng.choice(["add", "mul"]), [x], x.shape, layer=key)

    def pick(self, wanted: Callable[[_Value], bool] = lambda value: True) -> _Value:
        """Return a tensor that is wanted, most likely a recent one; there is always the input."""
        return self.recent([value for value in self.values if wanted(value)])

    def recent(self, values: list[_Value]) -> _Value:
        """Return the last of `values`, one that nobody reads yet, or any of them."""
        style = self.rng.random()
        if style < 0.4:
            return values[-1]
        unread = [value for value in values if value.index not in self.read]
        return self.rng.choice(unread if unread and style < 0.75 else values)

    def layer(self, x: _Value, module: nn.Module) -> _Value:
        """Add a call of a new module, whose parameters are redrawn from the builder's generator."""
        _redraw(module, self.generator)
        key = f"{type(module).__name__.lower()}{len(self.steps)}"
        self.layers[key] = module
        return self.append_layer_result(x, key)

    def append_layer_result(self, x: _Value, key: str) -> _Value:
        """Add a call of the module under `key`; its result's shape comes from running it."""
        module = self.layers[key].eval()
        with torch.no_grad():
            shape = tuple(module(torch.zeros(2, *x.shape)).shape[1:])
        return self.append("layer", [x], shape, layer=key)

    def append(
        self,
        op: str,
        operands: list[_Value],
        *shapes: Shape,
        numbers: tuple[int, ...] = (),
        layer: str = "",
    ) -> _Value:
        """Add one step and the tensors it makes; return the first of them."""
        degree = max(value.degree for value in operands)
        if op == "mul" and len(operands) == 2:
            degree = sum(value.degree for value in operands)
            if degree > 4:
                op, degree = "add", max(value.degree for value in operands)
        self.steps.append(Step(op, tuple(v.index for v in operands), numbers, layer, shapes))
        self.read.update(value.index for value in operands)
        first = len(self.values)
        alias = op in _ALIASING or _returns_its_input(self.layers.get(layer))
        for offset, shape in enumerate(shapes):
            index = first + offset
            storage = operands[0].storage if alias else index
            self.values.append(_Value(index, shape, degree, storage))
        return self.values[first]

    def drop_last_step(self) -> None:
        """Take back the last step, with its results and what only it used."""
        step = self.steps.pop()
        del self.values[-len(step.shapes) :]
        if step.layer not in {other.layer for other in self.steps}:
            self.layers.pop(step.layer, None)
            self.parameters.pop(step.layer, None)


_ALIASING = {"add_", "slice", "chunk", "flatten", "reshape_batch", "reshape_fixed"}
_ALIASING |= {"to_tokens", "from_tokens"}

_KINDS: list[tuple[Callable[[_Builder], object], float]] = [
    (_Builder.convolution, 6),
    (_Builder.batch_norm, 2),
    (_Builder.activation, 4),
    (_Builder.inplace_relu, 1),
    (_Builder.residual, 1.5),
    (_Builder.combine, 3),
    (_Builder.gate, 0.5),
    (_Builder.cat, 2.5),
    (_Builder.cut, 1.5),
    (_Builder.resample, 1.5),
    (_Builder.to_vector, 0.7),
    (_Builder.linear, 1),
    (_Builder.scale, 1),
]


def _returns_its_input(module: nn.Module | None) -> bool:
    """Whether the result of a module in eval mode is its own argument."""
    return isinstance(module, nn.Dropout) or (isinstance(module, nn.ReLU) and module.inplace)


def _redraw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters and statistics anew, none of them zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            size = 1.0 if norm and name == "weight" else 1.2 / math.sqrt(fan_in)
            parameter.copy_(_signed(parameter.shape, size if name == "weight" else 0.5, generator))
        for name, buffer in module.named_buffers():
            if name == "running_mean":
                buffer.copy_(_signed(buffer.shape, 0.3, generator))
            elif name == "running_var":
                buffer.copy_(_signed(buffer.shape, 1.5, generator).abs())


def _signed(shape: Shape, size: float, generator: torch.Generator) -> Tensor:
    """Draw values in ±[size / 4, size] of the default dtype."""
    magnitude = size / 4 + size * 0.75 * torch.rand(shape, generator=generator)
    return magnitude * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)
