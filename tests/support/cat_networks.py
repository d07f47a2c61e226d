"""Random networks full of concatenations and of tensors that many layers read."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from upscale_opt.tracing.unchanged import reseed

JOINS = ("cat", "cat", "cat", "add")
"""How tensors come together; concatenations are what these networks are for."""

POINTWISE = ("relu", "sigmoid", "norm", "pool", "inplace", "prelu")


@dataclass(frozen=True)
class Step:
    """One call: what it does, of which earlier tensors, and the name of its layer."""

    kind: str
    inputs: tuple[int, ...]
    layer: str = ""


class CatNetwork(nn.Module):
    """Convolutions, concatenations of concatenations, sums, norms and activations.

    Every tensor that nothing else reads has readers of its own, some have several; their results,
    all of one shape, are summed.

    Args:
        rng: where everything but the weights comes from.
        steps: how many calls before the readers.
        dense: let nothing but concatenations be read, as in dense blocks.
        frozen: let some layers need no gradient.
    """

    def __init__(
        self, rng: random.Random, steps: int, dense: bool = False, frozen: bool = False
    ) -> None:
        super().__init__()
        self.dense = dense
        self.layers = nn.ModuleDict()
        self.steps: list[Step] = []
        self.widths = [3]
        for _ in range(2):
            self._conv(0, rng.randint(2, 6), rng)
        for _ in range(steps):
            self._draw(rng)
        used = {i for step in self.steps for i in step.inputs}
        self.readers: list[Step] = []
        for number, width in enumerate(self.widths[1:], 1):
            if number not in used or self._is_open(number):
                count = rng.choice((1, 2, 3))
            else:
                count = 0 if dense else rng.choice((0, 1, 3))
            for _ in range(count):
                layer = f"reader{len(self.layers)}"
                self.layers[layer] = nn.Conv2d(width, 4, rng.choice((1, 3)), padding="same")
                self.readers.append(Step("conv", (number,), layer))
        for module in self.layers.values() if frozen else ():
            module.requires_grad_(rng.random() < 0.5)
        self.eval()

    def _conv(self, source: int, width: int, rng: random.Random) -> None:
        layer = f"conv{len(self.layers)}"
        self.layers[layer] = nn.Conv2d(
            self.widths[source], width, rng.choice((1, 3)), padding="same"
        )
        self.steps.append(Step("conv", (source,), layer))
        self.widths.append(width)

    def _is_open(self, number: int) -> bool:
        """Whether readers may want some of the channels of a tensor."""
        return not self.dense or number == 0 or self.steps[number - 1].kind == "cat"

    def _draw(self, rng: random.Random) -> None:
        count = len(self.widths)
        chance = rng.random()
        if chance < 0.35:
            source = rng.choice([i for i in range(count) if self._is_open(i)])
            self._conv(source, rng.randint(2, 6), rng)
            return
        source = rng.randrange(1, count)
        if self.dense:
            self._join(rng)
            return
        if chance < 0.6:
            kind = rng.choice(POINTWISE)
            layer = ""
            if kind in ("norm", "prelu"):
                layer = f"{kind}{len(self.layers)}"
                width = self.widths[source]
                self.layers[layer] = nn.BatchNorm2d(width) if kind == "norm" else nn.PReLU(width)
            self.steps.append(Step(kind, (source,), layer))
            self.widths.append(self.widths[source])
            return
        if rng.choice(JOINS) == "add":
            same = [i for i in range(1, count) if self.widths[i] == self.widths[source]]
            self.steps.append(Step("add", (source, rng.choice(same))))
            self.widths.append(self.widths[source])
            return
        inputs = (source, *(rng.randrange(1, count) for _ in range(rng.choice((1, 1, 2)))))
        if sum(self.widths[i] for i in inputs) <= 30:
            self.steps.append(Step("cat", inputs))
            self.widths.append(sum(self.widths[i] for i in inputs))

    def _join(self, rng: random.Random) -> None:
        """Join what was not joined yet to all that was."""
        joined = {i for step in self.steps if step.kind == "cat" for i in step.inputs}
        last = max((i for i in range(1, len(self.widths)) if self._is_open(i)), default=0)
        fresh = [i for i in range(1, len(self.widths)) if i not in joined and not self._is_open(i)]
        inputs = [*([last] if last else []), *fresh]
        if len(inputs) < 2:
            self._conv(last, rng.randint(2, 6), rng)
            return
        self.steps.append(Step("cat", tuple(inputs)))
        self.widths.append(sum(self.widths[i] for i in inputs))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of all readers of an image of shape (N, 3, H, W)."""
        values = [x]
        for step in self.steps:
            values.append(self._run(step, [values[i] for i in step.inputs]))
        results = [self.layers[step.layer](values[step.inputs[0]]) for step in self.readers]
        total: Tensor = results[0]
        for result in results[1:]:
            total = total + result
        return total

    def _run(self, step: Step, inputs: list[Tensor]) -> Tensor:
        if step.layer:
            result: Tensor = self.layers[step.layer](inputs[0])
            return result
        if step.kind == "cat":
            return torch.cat(inputs, 1)
        if step.kind == "add":
            return inputs[0] + inputs[1]
        if step.kind == "pool":
            return functional.max_pool2d(inputs[0], 3, 1, 1)
        if step.kind == "inplace":
            return functional.relu_(inputs[0] if step.inputs[0] % 2 else inputs[0] * 1)
        return torch.sigmoid(inputs[0]) if step.kind == "sigmoid" else torch.relu(inputs[0])


def cat_network(
    seed: int, steps: int = 7, *, dense: bool = False, frozen: bool = False
) -> CatNetwork:
    """The network of this seed, in float64 and evaluation mode; no norm is the identity."""
    with torch.random.fork_rng(devices=[]):
        reseed(seed)
        network = CatNetwork(random.Random(seed), steps, dense, frozen).double()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def image(batch: int = 2, seed: int = 0, *, last: bool = False) -> Tensor:
    """A batch of images in float64, channels last if so wanted."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, 5, 4, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last) if last else x
