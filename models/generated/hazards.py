"""Random networks of hazards: all of them honest, none depends on data or on state.

>>> network = hazardous_network(random.Random(5), max_ops=5)
>>> [call.what for call in network.other_calls(random.Random(0))][:2]
['a batch of one', 'a larger batch']
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upscale_opt.models.generated.basics import BASICS, convolution, full_convolution
from upscale_opt.models.generated.builder import Builder, Kind, Program, Step, Value
from upscale_opt.models.generated.convolutions import CONVOLUTIONS
from upscale_opt.models.generated.hazard_steps import HAZARDS, Given
from upscale_opt.models.generated.layers import LAYERS
from upscale_opt.models.generated.networks import RandomNetwork
from upscale_opt.models.generated.orders import ORDERS

GATES = ("N1HW", "NC11", "N111", "NCHW", "1C11", "float")


@dataclass(frozen=True)
class OtherCall:
    """A later call.

    Attributes:
        what: what is other about it.
        arguments: by name.
    """

    what: str
    arguments: dict[str, Any]


class HazardousNetwork(RandomNetwork):
    """A random network with optional arguments; see `hazard_steps`.

    Args:
        program: what to run.
        given: what the example gives besides the image, by name.
        gate: the shape of the gate, one of `GATES`, and its channels.
    """

    def __init__(self, program: Program, given: dict[str, Any], gate: tuple[str, int]) -> None:
        super().__init__(program)
        self.given = given
        self.gate = gate

    def forward(
        self, x: Tensor, k: Any = 0, flag: Any = False, scale: Any = 1.0, gate: Any = None
    ) -> Any:
        """Run the program."""
        return self.run(x, Given(k, flag, scale, gate))

    def results(self, step: Step, operands: list[Tensor], given: Any = None) -> list[Tensor]:
        """Run one step."""
        if step.op not in HAZARDS:
            return super().results(step, operands)
        held: Any = None
        if step.layer in self.layers:
            held = self.layers[step.layer]
        elif step.layer:
            held = self.scales[step.layer]
        return [HAZARDS[step.op](held, given, *operands, *step.numbers)]

    @property
    def used(self) -> set[str]:
        """The optional arguments that the program reads."""
        names = ("scale", "flag", "k", "gate")
        return {n for n in names for step in self.steps if n in step.op.split("_")}

    def calls(self, batch: int = 2, *, seed: int = 0, **sizes: int) -> dict[str, Any]:
        """The example's arguments, in float64.

        Args:
            batch: the number of images.
            seed: what they are drawn from.
            sizes: rows and columns to add, as `rows` and `columns`.
        """
        generator = torch.Generator().manual_seed(seed)
        channels, height, width = self.program.input_shape
        shape = (batch, channels, height + sizes.get("rows", 0), width + sizes.get("columns", 0))
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        given = dict(self.given)
        if "gate" in given:
            given["gate"] = self._gate(self.gate[0], x, generator)
        return {"x": x, **given}

    def other_calls(self, rng: random.Random) -> list[OtherCall]:
        """Later calls: other batches, image sizes, ranks and arguments."""
        first = self.calls()
        calls = [
            OtherCall("a batch of one", self.calls(1, seed=1)),
            OtherCall("a larger batch", self.calls(rng.randint(3, 5), seed=2)),
            OtherCall("one more row", self.calls(2, seed=3, rows=1)),
            OtherCall("more columns", self.calls(2, seed=4, columns=rng.randint(1, 3))),
            OtherCall("all sizes", self.calls(3, seed=5, rows=2, columns=1)),
            OtherCall("nothing but the image", {"x": first["x"]}),
            OtherCall("one image", {**first, "x": first["x"][0]}),
        ]
        generator = torch.Generator().manual_seed(6)
        values: dict[str, Sequence[Any]] = {
            "k": (0, 1, 2),
            "flag": (True, False),
            "scale": (0.0, 2.5),
            "gate": [self._gate(shape, first["x"], generator) for shape in GATES],
        }
        for name in sorted(self.used):
            for index, value in enumerate(values[name]):
                what = f"a gate of {GATES[index]}" if name == "gate" else f"{name}={value}"
                calls.append(OtherCall(what, {**first, name: value}))
        return calls

    def _gate(self, shape: str, x: Tensor, generator: torch.Generator) -> Any:
        if shape == "float":
            return 1.5
        sizes = {"N": len(x), "C": self.gate[1], "H": x.shape[2], "W": x.shape[3], "1": 1}
        return torch.randn([sizes[s] for s in shape], generator=generator, dtype=x.dtype)


def hazardous_network(rng: random.Random, *, max_ops: int = 12) -> HazardousNetwork:
    """Draw a network of at most `max_ops` steps, four kinds of hazards among them.

    As `random_network`: everything depends on `rng` alone.

    Args:
        rng: where everything comes from.
        max_ops: the most steps.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        builder = Builder(rng, wide=True)
        builder_gate = rng.choice(GATES)
        table = [*BASICS, *rng.sample([*CONVOLUTIONS, *LAYERS, *ORDERS], 2)]
        weight = sum(w for _, w in table) / 6
        table += [(kind, weight) for kind in rng.sample(KINDS, 4)]
        program = builder.build(max_ops, convolution, table)
        network = HazardousNetwork(program, {}, (builder_gate, 1))
        gated = [s for s in program.steps if s.op in ("times_gate", "plus_gate")]
        if gated:
            network.gate = (builder_gate, gated[0].shapes[0][0])
        examples: dict[str, Sequence[Any]] = {
            "k": (0, 0, 1),
            "flag": (False, True),
            "scale": (1.0, 2.0),
            "gate": (None,),
        }
        for name in sorted(network.used):
            value = rng.choice(examples[name])
            if rng.random() < 0.6 or name == "gate":
                network.given[name] = value
        return network.double().eval()


# The kinds of steps.


def _step(b: Builder, op: str, x: Value, *others: Value, **options: Any) -> Value:
    return b.append(op, [x, *others], options.pop("shape", x.shape), **options)


def _wide(b: Builder, least: int = 2) -> Value:
    """An image of at least some channels, the result of a convolution if there is none."""
    x = b.find(lambda v: v.is_image and v.channels >= least and v.index > 0)
    if x is not None:
        return x
    y: Value = full_convolution(b, b.image(), max(least, b.width()), bias=True, same=True)
    return y


def sizes(b: Builder) -> None:
    """Add arithmetic with sizes."""
    x, y = b.values[0], _wide(b)
    op = b.rng.choice(["by_height", "plus_height", "plus_height", "minus_width", "clamp_height"])
    if b.rng.random() < 0.6:
        _step(b, op, y, x, numbers=(x.shape[2 if op == "minus_width" else 1],))
    else:
        op = b.rng.choice(["by_channels", "by_features", "by_batch", "by_area"])
        _step(b, op, y, *([x] if op == "by_batch" else []))


def parameter_sizes(b: Builder) -> None:
    """Add a factor that is the size of a convolution's weight."""
    keys = [key for key, layer in b.layers.items() if isinstance(layer, nn.Conv2d)]
    if keys:
        op = b.rng.choice(["by_fan_in", "by_numel", "by_rows"])
        _step(b, op, _wide(b), layer=b.rng.choice(keys))


def arguments(b: Builder) -> None:
    """Add a factor or a summand that may be given."""
    _step(b, b.rng.choice(["times_scale", "plus_scale"]), _wide(b))


def flags(b: Builder) -> None:
    """Add a choice between two functions."""
    _step(b, b.rng.choice(["flag_flip", "flag_more"]), _wide(b))


def numbers(b: Builder) -> None:
    """Add a number input in a sum, a position or an axis."""
    op = b.rng.choice(["plus_k", "plus_k", "clamp_k", "times_k", "roll_k", "slice_k", "softmax_k"])
    y = _wide(b, 4 if op == "slice_k" else 2)
    shape = (2, *y.rest) if op == "slice_k" else y.shape
    _step(b, op, y, shape=shape)


def gates(b: Builder) -> None:
    """Add a gate, of channels that are all gates' in this program."""
    held = [s.shapes[0] for s in b.steps if s.op in ("times_gate", "plus_gate")]
    rest = b.values[0].rest
    y = b.find(
        lambda v: v.is_image and v.index > 0 and v.rest == rest and (not held or v.shape == held[0])
    )
    if y is None and not held:
        y = full_convolution(b, b.values[0], b.width(), bias=True, same=True)
    if y is not None:
        _step(b, b.rng.choice(["times_gate", "times_gate", "plus_gate"]), y)


def negative_axes(b: Builder) -> None:
    """Add a step along channels, counted from behind."""
    op = b.rng.choice(["cat", "flip", "softmax", "slice", "mean", "halves"])
    y = _wide(b)
    if op == "halves" and y.channels % 2:
        op = "flip"
    if op == "cat":
        _step(b, "cat_negative", y, y, shape=(2 * y.channels, *y.rest))
    elif op == "slice":
        start = b.rng.randint(0, y.channels - 2)
        stop = b.rng.randint(start + 1, y.channels)
        b.view("slice_negative", y, (stop - start, *y.rest), numbers=(start, stop))
    else:
        _step(b, f"{op}_negative", y)


def helpers(b: Builder) -> None:
    """Add a call of a function that a trace does not look into."""
    op = b.rng.choice(["scale", "positions", "groups", "flip", "half"])
    y = _wide(b)
    if op == "groups" and y.channels % 2:
        op = "positions"
    if op != "flip":
        _step(b, f"wrapped_{op}", y)
        return
    key = f"scale{len(b.steps)}"
    values = torch.rand((y.channels, 1, 1), generator=b.generator) + 0.5
    b.parameters[key] = nn.Parameter(values)
    _step(b, "wrapped_flip", y, layer=key)


def dead_summands(b: Builder) -> None:
    """Add a pooled image and a layer of zeros."""
    y = _wide(b)
    conv = nn.Conv2d(b.values[0].channels, y.channels, 1)
    z = b.layer(b.values[0], conv)
    with torch.no_grad():
        conv.weight.zero_()
        assert conv.bias is not None
        conv.bias.zero_()
    _step(b, b.rng.choice(["plus_pooled", "pooled_plus"]), y, z, shape=z.shape)


def positions(b: Builder) -> None:
    """Add a position along channels that depends on a size."""
    op = b.rng.choice(["roll_height", "slice_height", "take_width", "split_height"])
    y = _wide(b, 5 if op == "slice_height" else 3)
    shape = (2, *y.rest) if op == "slice_height" else y.shape
    _step(b, op, y, b.values[0], shape=shape)


def looks(b: Builder) -> None:
    """Add a step that looks at a tensor's type or rank."""
    _step(b, b.rng.choice(["is_tensor", "by_rank"]), _wide(b), b.values[0])


KINDS: list[Kind] = [
    sizes,
    parameter_sizes,
    arguments,
    flags,
    numbers,
    gates,
    negative_axes,
    helpers,
    dead_summands,
    positions,
    looks,
]
"""The kinds of hazards; each network has four of them."""
