"""Whole random networks: a program over a growing list of tensors, as an ``nn.Module``.

>>> network = random_network(random.Random(88), max_ops=5, kinds="basic")
>>> print(network.describe())
v0 (3, 4, 5) = input
v1 (7, 4, 5) = conv2d0: Conv2d(3, 7, kernel_size=(1, 1), stride=(1, 1))(v0)
v2 (14, 4, 5) = cat(v1, v1)
v3 (8, 4, 5) = slice(v2, 3, 11)
v4 (8, 2, 2) = avg_pool(v3)
v5 (8, 2, 2) = scale4: add(v4)
return [v5]
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from upscale_opt.models.generated.builder import Program, Step
from upscale_opt.models.generated.programs import Kinds, draw_program
from upscale_opt.models.generated.steps import STEPS


def random_network(rng: random.Random, *, max_ops: int = 14, kinds: Kinds = "all") -> RandomNetwork:
    """Draw a network of at most ``max_ops`` steps, in eval mode.

    Images have 4 to 6 pixels a side to begin with and layers write 2 to 12 channels, or 2 to 8
    with ``kinds="basic"``. Everything, parameters included, depends on ``rng`` alone; the global
    random state is left as it was. From the same seed, a smaller ``max_ops`` gives a beginning of
    the same program.

    Args:
        rng: Where everything comes from.
        max_ops: The most steps.
        kinds: "basic" for plain convolutional networks; "all" for grouped convolutions, norms,
            shuffles, attention, shared parameters and more among them.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # constructors draw, then we do
        return RandomNetwork(draw_program(rng, max_ops, kinds)).eval()


class RandomNetwork(nn.Module):
    """A network that runs a program; each step appends its results to a list of tensors.

    Args:
        program: What to run. Its modules and parameters become this module's.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.layers = nn.ModuleDict(program.layers)
        self.scales = nn.ParameterDict(program.parameters)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the program."""
        return self.program.steps

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the program."""
        return self.run(x)

    def results(self, step: Step, operands: list[Tensor], given: Any = None) -> list[Tensor]:
        """Run one step; ``given`` is for networks that take more than an image."""
        if step.layer in self.layers:
            return [self.layers[step.layer](*operands)]
        if step.layer:
            return STEPS[step.op](*operands, self.scales[step.layer])
        return STEPS[step.op](*operands, *step.numbers)

    def run(self, x: Tensor, given: Any = None) -> Tensor | tuple[Tensor, ...]:
        """Run all steps."""
        tensors = [x]
        for step in self.program.steps:
            operands = [tensors[index] for index in step.operands]
            tensors += self.results(step, operands, given)
        if self.program.as_tuple:
            return tuple(tensors[index] for index in self.program.outputs)
        return tensors[self.program.outputs[0]]

    def example_inputs(
        self, batch: int = 2, *, seed: int = 0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return a random input, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.program.input_shape, generator=generator).to(dtype)

    def describe(self) -> str:
        """Return the program, one step a line, such as ``v2 (8, 4, 4) = add(v0, v1)``."""
        lines = [f"v0 {self.program.input_shape} = input"]
        count = 1
        for step in self.program.steps:
            names = ", ".join(f"v{count + i} {shape}" for i, shape in enumerate(step.shapes))
            what = step.op
            if step.op == "layer":
                what = " ".join(repr(self.layers[step.layer]).split())
            if step.layer:
                what = f"{step.layer}: {what}"
            operands = [f"v{index}" for index in step.operands] + [str(n) for n in step.numbers]
            lines.append(f"{names} = {what}({', '.join(operands)})")
            count += len(step.shapes)
        outputs = ", ".join(f"v{index}" for index in self.program.outputs)
        lines.append(f"return [{outputs}]" if self.program.as_tuple else f"return {outputs}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.describe()
