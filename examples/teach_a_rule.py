"""Teach upscale-opt an operation that it does not understand.

A layer that it does not know keeps all the channels around it: the export is right, but larger
than it need be. A rule says what the layer does to channels, and is tried on real calls first.

    python examples/teach_a_rule.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import upscale_opt as uo


class Companding(nn.Module):
    """A learnt exponent for every channel, and a running maximum along each row of pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.exponent = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if x.shape[1] != self.channels:
            raise ValueError(f"{x.shape[1]} channels instead of {self.channels}")
        powers = x.sign() * x.abs() ** self.exponent[:, None, None]
        return powers.cummax(dim=-1).values


def network() -> nn.Module:
    """Two convolutions with such a layer between; every other channel is not read."""
    torch.manual_seed(0)
    reader = nn.Conv2d(32, 8, 3)
    with torch.no_grad():
        reader.weight[:, ::2] = 0
    return nn.Sequential(nn.Conv2d(3, 32, 3), Companding(32), nn.ReLU(), reader).eval()


def prune(model: nn.Module, inputs: Tensor) -> None:
    """Prune what is zero, and say how much is left and what was not understood."""
    graph = uo.trace(model, inputs)
    solution = uo.solve(graph, uo.masks_of(model, graph))
    pruned = uo.materialize(model, solution)
    uo.verify(model, pruned, inputs)
    size = sum(parameter.numel() for parameter in pruned.parameters())
    reasons = [f"{op.name}: {op.reason}" for op in graph.operations if op.kind == "opaque"]
    print(f"{size:,} parameters; opaque: {', '.join(reasons) or 'nothing'}")


def main() -> None:
    """Prune without a rule, with a wrong rule, and with the right one."""
    model, inputs = network(), torch.randn(2, 3, 16, 16)
    print("without a rule:", end=" ")
    prune(model, inputs)

    @uo.rule(Companding)
    def forgets_what_it_holds(call: uo.rules.Call) -> uo.rules.Claim:
        return call.channelwise(keeps_zero=True)

    try:
        uo.rules.check_rules(model, inputs)
    except uo.RuleError as error:
        print(f"\na wrong rule: {error}\n")

    @uo.rule(Companding, resize={"channels": "inputs"})
    def companding(call: uo.rules.Call) -> uo.rules.Claim:
        return call.channelwise(keeps_zero=True, parameters={"exponent": "neutral"})

    print("tested at the calls:", *uo.rules.check_rules(model, inputs))
    print("with the rule:", end=" ")
    prune(model, inputs)


if __name__ == "__main__":
    main()
