"""Small networks to train in a minute: a residual, a dense and an inverted-residual one.

Each is a real member of its family, with several stages and several blocks in each, so that its
tensors have the readers that make pruning hard: a residual stream is read by every block behind,
the concatenations of a dense block by every later layer.

    >>> model = build_small("densenet", image=8, seed=1)
    >>> tuple(model(torch.zeros(2, 1, 8, 8)).shape)
    (2, 10)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from upscale_opt.errors import ArgumentError


def build_small(name: str, *, image: int, classes: int = 10, seed: int = 0) -> nn.Module:
    """Return the small network called ``name`` with random weights, in eval mode, on the CPU.

    Args:
        name: One of ``SMALL_NETWORKS``.
        image: The height and width of the images of one channel that it takes. From 16 on, the
            first convolution halves them.
        classes: The number of outputs.
        seed: What the weights depend on; the global random state is left as it was.

    Raises:
        ArgumentError: No such network.
    """
    if name not in SMALL_NETWORKS:
        raise ArgumentError(
            f"there is no small network called {name!r}; there are {', '.join(SMALL_NETWORKS)}"
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return SMALL_NETWORKS[name](2 if image >= 16 else 1, classes).eval()


class ResNet(nn.Module):
    """A residual network of basic blocks (He et al., 2016, section 4.2): three stages of three.

    Args:
        stride: Of the first convolution.
        classes: The number of outputs.
    """

    def __init__(self, stride: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv_norm(1, 16, 3, stride)
        blocks: list[nn.Module] = []
        width = 16
        for stage, wider in enumerate((16, 32, 64)):
            for block in range(3):
                blocks.append(_Basic(width, wider, 2 if stage and not block else 1))
                width = wider
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, classes)."""
        x = self.blocks(torch.relu(self.stem(x)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class _Basic(nn.Module):
    """Two 3x3 convolutions, and what came in added at the end."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(width, wider, 3, stride)
        self.second = _conv_norm(wider, wider, 3)
        changes = stride > 1 or width != wider
        self.shortcut = _conv_norm(width, wider, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class DenseNet(nn.Module):
    """A DenseNet-BC (Huang et al., 2017): three dense blocks of six layers, growth 10.

    All widths are multiples of ten, so that a tenth of any tensor's channels is a whole number.

    Args:
        stride: Of the first convolution.
        classes: The number of outputs.
    """

    def __init__(self, stride: int, classes: int) -> None:
        super().__init__()
        growth, width = 10, 20
        self.stem = nn.Conv2d(1, width, 3, stride, 1, bias=False)
        layers: list[nn.Module] = []
        for block in range(3):
            if block:
                layers.append(_transition(width, width // 2))
                width //= 2
            for _ in range(6):
                layers.append(_Dense(width, growth))
                width += growth
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, classes)."""
        x = torch.relu(self.norm(self.layers(self.stem(x))))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class _Dense(nn.Module):
    """A bottleneck of 1x1 and 3x3, behind what it read."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        middle = 4 * growth
        self.new = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.new(x)], 1)


def _transition(width: int, narrower: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, narrower, 1, bias=False),
        nn.AvgPool2d(2, ceil_mode=True),
    )


class MobileNet(nn.Module):
    """Inverted residuals (Sandler et al., 2018): three stages of three.

    The last stage has squeeze-and-excitation and hard swish (Howard et al., 2019).

    Args:
        stride: Of the first convolution.
        classes: The number of outputs.
    """

    def __init__(self, stride: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv_norm(1, 16, 3, stride)
        blocks: list[nn.Module] = []
        width = 16
        for stage, wider in enumerate((16, 24, 40)):
            for block in range(3):
                blocks.append(_Inverted(width, wider, 2 if stage and not block else 1, stage == 2))
                width = wider
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_norm(width, 128, 1)
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (N, classes)."""
        x = self.blocks(nn.functional.relu6(self.stem(x)))
        x = nn.functional.hardswish(self.head(x))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class _Inverted(nn.Module):
    """Expand four times, filter every channel by itself, squeeze, project, and add."""

    def __init__(self, width: int, wider: int, stride: int, squeezed: bool) -> None:
        super().__init__()
        middle = 4 * width
        self.expand = _conv_norm(width, middle, 1)
        self.depthwise = _conv_norm(middle, middle, 3, stride, groups=middle)
        self.squeeze = _Squeeze(middle) if squeezed else nn.Identity()
        self.project = _conv_norm(middle, wider, 1)
        self.activation: nn.Module = nn.Hardswish() if squeezed else nn.ReLU6()
        self.adds = stride == 1 and width == wider

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.depthwise(self.activation(self.expand(x))))
        z: Tensor = self.project(self.squeeze(y))
        return x + z if self.adds else z


class _Squeeze(nn.Module):
    """Squeeze-and-excitation (Hu et al., 2018): every channel times what all of them say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.expand = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        y: Tensor = x * nn.functional.hardsigmoid(scale)
        return y


def _conv_norm(width: int, wider: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(width, wider, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(wider))


SMALL_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet": ResNet,
    "densenet": DenseNet,
    "mobilenet": MobileNet,
}
"""The networks by name; each is made from the first stride and the number of classes."""
