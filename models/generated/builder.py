"""The builder of a random program: the tensors so far, and one more step at a time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
"""The shape of one example: ``(C, H, W)`` image, ``(T, C)`` tokens, ``(F,)`` vector, some more."""

LARGEST_SIDE = 12
"""The most pixels a side that an image may grow to."""


@dataclass(frozen=True)
class Step:
    """One line of a program.

    Attributes:
        op: A key of ``random_steps.STEPS``, or "layer" for the call of a module.
        operands: Which tensors it reads, counted from the input, which is 0.
        numbers: Its constants, such as the bounds of a slice.
        layer: The key in ``Program.layers`` or ``.parameters`` of the one it uses, if any.
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


@dataclass(frozen=True)
class Value:
    """A tensor, as far as the builder knows it.

    Attributes:
        index: Its place in the list of tensors.
        shape: Its shape.
        degree: How many streams were multiplied into it, bounded so that values stay finite.
        storage: The index of the tensor whose memory it is, its own unless it is an alias.
        axis: Which axis of the shape runs along channels.
    """

    index: int
    shape: Shape
    degree: int
    storage: int
    axis: int

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.shape[self.axis]

    @property
    def rest(self) -> Shape:
        """The shape without channels."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def is_image(self) -> bool:
        """Tell whether this is a ``(C, H, W)`` image."""
        return len(self.shape) == 3 and self.axis == 0

    @property
    def is_tokens(self) -> bool:
        """Tell whether this is a ``(T, C)`` sequence of tokens."""
        return len(self.shape) == 2 and self.axis == 1

    @property
    def is_last(self) -> bool:
        """Tell whether channels come last, as linear layers want them; a vector's do."""
        return self.axis == len(self.shape) - 1


Kind = Callable[["Builder"], object]
"""A function that adds one kind of step (or a few that belong together), or nothing if it can't."""


class Builder:
    """The state of a program being drawn.

    Args:
        rng: Where everything comes from.
        wide: Draw the numbers of channels from those with many divisors, up to twelve, instead
            of from 2 to 8.

    Attributes:
        values: The tensors so far.
        steps: The steps so far.
        layers: The modules that steps call, by key.
        parameters: The bare parameters that steps use, by key.
        frozen: The memory (see ``Value.storage``) that in-place steps must not touch: the
            caller's, and what views look at.
    """

    def __init__(self, rng: random.Random, *, wide: bool) -> None:
        self.rng = rng
        self.wide = wide
        self.generator = torch.Generator().manual_seed(rng.getrandbits(32))
        side = (rng.randint(4, 6), rng.randint(4, 6))
        self.values = [Value(0, (self.width(), *side), 1, 0, 0)]
        self.steps: list[Step] = []
        self.layers: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.frozen = {0}
        self._read = {0}

    def build(self, max_ops: int, first: Kind, table: Sequence[tuple[Kind, float]]) -> Program:
        """Draw at most ``max_ops`` steps and the outputs.

        Args:
            max_ops: 1 or more.
            first: What every program begins with.
            table: The kinds of steps, and how likely each is.
        """
        count = math.ceil(max_ops * self.rng.uniform(0.5, 1))
        kinds, weights = zip(*table, strict=True)
        first(self)
        while len(self.steps) < count:
            self.rng.choices(kinds, weights)[0](self)
        while len(self.steps) > max(count, 1):
            self._drop_last_step()
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

    def width(self) -> int:
        """Draw a number of channels."""
        return self.rng.choice(_WIDTHS) if self.wide else self.rng.randint(2, 8)

    def divisor(self, number: int, least: int = 1) -> int:
        """Draw a divisor of ``number`` that is at least ``least``, which must not be larger."""
        return self.rng.choice([n for n in range(least, number + 1) if number % n == 0])

    def pick(self, wanted: Callable[[Value], bool] = lambda value: True) -> Value:
        """Return a tensor that is wanted, most likely a recent one; there must be one."""
        return self.recent([value for value in self.values if wanted(value)])

    def find(self, wanted: Callable[[Value], bool]) -> Value | None:
        """Return a tensor that is wanted, most likely a recent one, if there is any."""
        found = [value for value in self.values if wanted(value)]
        return self.recent(found) if found else None

    def image(self) -> Value:
        """Return an image; there is always the input."""
        return self.pick(lambda value: value.is_image)

    def recent(self, values: list[Value]) -> Value:
        """Return the last of ``values``, one that nothing reads yet, or any of them."""
        style = self.rng.random()
        if style < 0.4:
            return values[-1]
        unread = [value for value in values if value.index not in self._read]
        return self.rng.choice(unread if unread and style < 0.75 else values)

    def layer(self, x: Value, module: nn.Module) -> Value:
        """Add a call of a new module, whose parameters are redrawn from the builder's generator."""
        _redraw(module, self.generator)
        key = f"{type(module).__name__.lower()}{len(self.steps)}"
        self.layers[key] = module
        return self.append_layer_result(x, key)

    def append_layer_result(self, x: Value, key: str) -> Value:
        """Add a call of the module under ``key``; its result's shape comes from running it."""
        module = self.layers[key].eval()
        with torch.no_grad():
            shape = tuple(module(torch.zeros(2, *x.shape)).shape[1:])
        degree = 1 if isinstance(module, _NORMALISING) else 0
        return self.append("layer", [x], shape, layer=key, degree=degree)

    def parameter(self, x: Value, shape: Shape, ops: Sequence[str] = ("add", "mul")) -> Value:
        """Add one of ``ops`` with a new parameter of a shape, some of it zero at times."""
        values = _signed(shape, 1.0, self.generator)
        if self.rng.random() < 0.2:
            values *= torch.rand(values.shape, generator=self.generator) < 0.6
        key = f"scale{len(self.steps)}"
        self.parameters[key] = nn.Parameter(values)
        return self.append(self.rng.choice(ops), [x], x.shape, layer=key)

    def view(
        self,
        op: str,
        x: Value,
        *shapes: Shape,
        numbers: tuple[int, ...] = (),
        axis: int | None = None,
    ) -> Value:
        """Add a step whose results may be views of ``x``; nothing writes into that memory again."""
        result = self.append(op, [x], *shapes, numbers=numbers, axis=axis, alias=True)
        self.frozen.add(x.storage)
        return result

    def append(
        self,
        op: str,
        operands: list[Value],
        *shapes: Shape,
        numbers: tuple[int, ...] = (),
        layer: str = "",
        axis: int | None = None,
        degree: int = 0,
        alias: bool = False,
    ) -> Value:
        """Add one step and the tensors it makes; return the first of them.

        Args:
            op: See ``Step``.
            operands: What it reads.
            shapes: What it makes.
            numbers: See ``Step``.
            layer: See ``Step``.
            axis: Which axis of the results runs along channels: unless given, the first
                operand's one where that has as many axes, or the usual one of such a shape.
            degree: Of the results, unless it follows from the operands.
            alias: Whether the results may share their memory with the first operand.
        """
        largest = max(value.degree for value in operands)
        if op == "mul" and len(operands) == 2:
            degree = sum(value.degree for value in operands)
            if degree > 4:
                op, degree = "add", largest
        self.steps.append(Step(op, tuple(v.index for v in operands), numbers, layer, shapes))
        self._read.update(value.index for value in operands)
        first = len(self.values)
        alias = alias or op in _IN_PLACE or _returns_its_input(self.layers.get(layer))
        for offset, shape in enumerate(shapes):
            index = first + offset
            along = _usual_axis(shape) if len(shape) != len(operands[0].shape) else operands[0].axis
            self.values.append(
                Value(
                    index=index,
                    shape=shape,
                    degree=degree or largest,
                    storage=operands[0].storage if alias else index,
                    axis=along if axis is None else axis,
                )
            )
        return self.values[first]

    def _drop_last_step(self) -> None:
        """Take back the last step, with its results and what only it used."""
        step = self.steps.pop()
        del self.values[-len(step.shapes) :]
        if step.layer not in {other.layer for other in self.steps}:
            self.layers.pop(step.layer, None)
            self.parameters.pop(step.layer, None)


_WIDTHS = (2, 3, 4, 4, 5, 6, 6, 8, 8, 8, 9, 10, 12, 12)
_IN_PLACE = {"add_", "mul_", "relu_"}
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.LayerNorm,
    nn.RMSNorm,
)
_NORMALISING = _NORMS[3:]


def _usual_axis(shape: Shape) -> int:
    """The channel axis of images, volumes and vectors is the first, that of tokens the last."""
    return 1 if len(shape) == 2 else 0


def _returns_its_input(module: nn.Module | None) -> bool:
    """Tell whether the result of a module in eval mode is its own argument."""
    return isinstance(module, nn.Dropout) or (isinstance(module, nn.ReLU) and module.inplace)


def _redraw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters and statistics anew, none of them zero."""
    with torch.no_grad():
        for part in module.modules():
            _redraw_one(part, generator)


def _redraw_one(module: nn.Module, generator: torch.Generator) -> None:
    unit = isinstance(module, (*_NORMS, nn.Embedding))
    for name, parameter in module.named_parameters(recurse=False):
        matrix = name.endswith("weight")
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        size = 1.0 if unit and matrix else 1.2 / math.sqrt(fan_in)
        parameter.copy_(_signed(parameter.shape, size if matrix else 0.5, generator))
    for name, buffer in module.named_buffers(recurse=False):
        if name == "running_mean":
            buffer.copy_(_signed(buffer.shape, 0.3, generator))
        elif name == "running_var":
            buffer.copy_(_signed(buffer.shape, 1.5, generator).abs())
        elif name == "constant":
            buffer.copy_(_signed(buffer.shape, 1.0, generator))


def _signed(shape: Shape, size: float, generator: torch.Generator) -> Tensor:
    """Draw values in ±[size / 4, size] of the default dtype."""
    magnitude = size / 4 + size * 0.75 * torch.rand(shape, generator=generator)
    return magnitude * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)
