"""CRAFT, a network that finds words on pictures, with its weights."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from upscale_opt.experiments.study.data import need
from upscale_opt.experiments.study.easyocr import with_weights

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

_INK = 0.4
_SURE = 0.7
_FEWEST = 10
"""Scores from which a pixel belongs to a word, and a word is one; and its fewest pixels."""


class Detector(nn.Module):
    """A U-net on VGG-16 with batch norms (Baek et al., 2019), which reads every skip twice.

    Its modules are called as in EasyOCR, so that the weights fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.basenet = _Base()
        self.upconv1 = _Mixed(1536, 512, 256)
        self.upconv2 = _Mixed(768, 256, 128)
        self.upconv3 = _Mixed(384, 128, 64)
        self.upconv4 = _Mixed(192, 64, 32)
        self.conv_cls = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 1),
            nn.ReLU(),
            nn.Conv2d(16, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of characters and of gaps within words, (N, 2, height / 2, width / 2).

        Args:
            x: float images of shape (N, 3, height, width), multiples of 16, normalised as for
                ImageNet.
        """
        second, third, fourth, fifth, last = self.basenet(x)
        y = self.upconv1(torch.cat([last, fifth], 1))
        for skip, mixed in ((fourth, self.upconv2), (third, self.upconv3), (second, self.upconv4)):
            y = functional.interpolate(y, size=skip.shape[2:], mode="bilinear", align_corners=False)
            y = mixed(torch.cat([y, skip], 1))
        scores: Tensor = self.conv_cls(y)
        return scores


class _Base(nn.Module):
    """VGG-16's thirteen convolutions in four slices, and two more; the places as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.slice1 = _slice(0, 3, [64, 64, 0, 128, 128])
        self.slice2 = _slice(14, 128, [256, 256])
        self.slice3 = _slice(20, 256, [256, 0, 512, 512])
        self.slice4 = _slice(30, 512, [512, 0, 512, 512])
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        second = torch.relu(self.slice1(x))
        third = torch.relu(self.slice2(functional.max_pool2d(second, 2)))
        fourth = torch.relu(self.slice3(third))
        fifth = self.slice4(fourth)
        return second, third, fourth, fifth, self.slice5(fifth)


def _slice(place: int, width: int, wider: list[int]) -> nn.Sequential:
    """Convolutions with norms and ReLUs between, from a place on; 0 stands for pooling."""
    made: OrderedDict[str, nn.Module] = OrderedDict()
    for number, channels in enumerate(wider):
        if not channels:
            made[str(place)] = nn.MaxPool2d(2)
            place += 1
            continue
        made[str(place)] = nn.Conv2d(width, channels, 3, padding=1)
        made[str(place + 1)] = nn.BatchNorm2d(channels)
        place, width = place + 2, channels
        if number < len(wider) - 1:
            made[str(place)] = nn.ReLU()
            place += 1
    return nn.Sequential(made)


class _Mixed(nn.Module):
    """Two convolutions that mix what comes from below and the skip beside it."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def detector() -> Detector:
    """The network with its weights, in eval mode.

    Raises:
        UpscaleError: if the package of the weights is missing, or they do not fit.
    """
    return with_weights(Detector(), "craft_mlt_25k.pth")


def boxes(scores: Tensor) -> list[list[Box]]:
    """The words that scores of shape (N, 2, height, width) show; in pixels of the pictures.

    A word is a connected set of pixels of characters and of gaps between them, somewhere surely
    one (Baek et al., 2019, section 3.3); its box is grown by what the scores leave out around it.
    """
    label: Any = need("scipy.ndimage")
    found = []
    for ink, gaps in scores.numpy():
        places, _ = label.label((ink > _INK) | (gaps > _INK))
        own = []
        for number, (rows, columns) in enumerate(label.find_objects(places), 1):
            word = (places[rows, columns] == number) & (ink[rows, columns] > _INK)
            if word.sum() < _FEWEST or ink[rows, columns][word].max() < _SURE:
                continue
            down, right = np.nonzero(word)
            edges = (right.min(), down.min(), right.max() + 1, down.max() + 1)
            left, top, end, bottom = (float(edge) for edge in edges)
            left, top = left + columns.start, top + rows.start
            end, bottom = end + columns.start, bottom + rows.start
            air = (
                word.sum() * min(end - left, bottom - top) / (end - left) / (bottom - top)
            ) ** 0.5
            own.append((2 * left - air, 2 * top - air, 2 * end + air, 2 * bottom + air))
        found.append(own)
    return found
