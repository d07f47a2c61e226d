"""Your own network, your own masks, one step at a time.

A channel is pruned when its slice of a weight is zero: however the zeros came about, they are the
masks. Here two branches read one tensor and want different channels of it. Both can be served
without a copy if the channels in the middle are those that both want.

    python examples/own_model_own_masks.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import upscale_opt as uo


class TwoBranches(nn.Module):
    """A convolution whose output two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 4, 3, padding=1)
        self.right = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores of a batch of images."""
        x = torch.relu(self.stem(image))
        x = torch.relu(self.left(x)) + torch.relu(self.right(x))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def main() -> None:
    """Mask, trace, solve, materialize, verify."""
    torch.manual_seed(0)
    model = TwoBranches().eval()
    inputs = torch.randn(2, 3, 16, 16)

    with torch.no_grad():
        model.left.weight[:, [1, 3, 5]] = 0  # left reads 0, 2, 4, 6, 7
        model.right.weight[:, [0, 2, 5]] = 0  # right reads 1, 3, 4, 6, 7

    graph = uo.trace(model, inputs)
    masks = uo.masks_of(model, graph)
    for name in ("left.weight", "right.weight"):
        print(f"{name} keeps the input channels {masks.kept[name][1]}")

    for solver in ("identity", "cp-sat"):
        solution = uo.solve(graph, masks, solver=solver)
        print(f"\n{solver}: {solution.objective_value} copied channels ({solution.status})")
        for read in solution.reads:
            print(f"  {read.plan:<6}  {read.name}: {list(read.channels)}")

    pruned = uo.materialize(model, solution)
    report = uo.verify(model, pruned, inputs)
    print(f"\nlargest deviation in float64: {report.float64_error:.1e}\n")
    print(pruned)


if __name__ == "__main__":
    main()
