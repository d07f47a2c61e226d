"""Criteria that look at the weights alone: magnitudes, LAMP, the geometric median, chance."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upscale_opt.errors import MaskError
from upscale_opt.importance.criterion import Importance

if TYPE_CHECKING:
    from upscale_opt.masking.segments import Segment


class Magnitude(Importance):
    """The L-p norm of every channel's weights.

    L1: Li, Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*, ICLR 2017.
    L2: Wen, Wu, Wang, Chen, Li, *Learning Structured Sparsity in Deep Neural Networks*, NeurIPS
    2016.

    Args:
        p: the order of the norm, a number from 0 to infinity; ``"fro"`` is 2.

    Raises:
        MaskError: if there is no such norm.
    """

    def __init__(self, p: float | str = "fro") -> None:
        self.p = p
        self._order = _order(p)

    def forward(self, x: Tensor) -> Tensor:
        """The norms of the rows of ``x``."""
        norms: Tensor = torch.linalg.vector_norm(x, self._order, dim=1)
        return norms


class L1(Magnitude):
    """The L1 norm of every channel's weights.

    Li, Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*, ICLR 2017.
    """

    def __init__(self) -> None:
        super().__init__(1)


class L2(Magnitude):
    """The L2 norm of every channel's weights.

    Wen, Wu, Wang, Chen, Li, *Learning Structured Sparsity in Deep Neural Networks*, NeurIPS 2016.
    """

    def __init__(self) -> None:
        super().__init__(2)


class LAMP(Magnitude):
    """The magnitude of a channel relative to all that would survive it in its segment.

    Lee, Park, Mo, Ahn, Shin, *Layer-adaptive Sparsity for the Magnitude-based Pruning*, ICLR 2021,
    with channels in place of single weights: the score of channel u is m(u) over the sum of m(v)
    over u and all channels v ranked above it. Of equal channels the first ranks lowest. It is meant
    for ranking all layers together (``is_global``): within a layer it ranks as the magnitude does,
    but the best channel of every layer scores 1, so none loses all of its channels before all are
    down to one.

    Args:
        p: the order of the norm, as for :class:`Magnitude`.
        squared: m is the square of the norm, as in the paper; or the norm itself, as
            ``apple-upscale`` has it.

    Raises:
        MaskError: if there is no such norm.
    """

    def __init__(self, p: float | str = "fro", *, squared: bool = True) -> None:
        super().__init__(p)
        self.squared = squared

    def forward(self, x: Tensor) -> Tensor:
        """The scores, in [0, 1]; channels of zeros score 0."""
        magnitudes = super().forward(x)
        if self.squared:
            magnitudes = magnitudes.square()
        order = torch.argsort(magnitudes, stable=True)
        ascending = magnitudes[order]
        survivors = ascending.flip(0).cumsum(0).flip(0)
        scores = torch.where(survivors == 0, torch.zeros_like(survivors), ascending / survivors)
        return torch.empty_like(scores).index_copy_(0, order, scores)


class FPGM(Importance):
    """The distances of a channel's weights from the segment's other channels', in sum.

    He, Liu, Wang, Hu, Yang, *Filter Pruning via Geometric Median for Deep Convolutional Neural
    Networks Acceleration*, CVPR 2019. Channels near the geometric median of all can be represented
    by the others, so they score low.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The sums of Euclidean distances between the rows of ``x``."""
        # Not by a matrix product, which loses the distances of channels that are nearly equal.
        distances = x.new_zeros(len(x), len(x))
        above = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
        distances[above[0], above[1]] = torch.pdist(x)
        return (distances + distances.T).sum(dim=0)


class Random(Importance):
    """Chance: independent scores from [0, 1), the least that any criterion should beat.

    A segment's scores depend on the seed, its layers and its channels alone, so they are the same
    in every run, and other segments' are independent of them. The global random state is neither
    used nor changed. As a baseline: Mittal, Bhardwaj, Khapra, Ravindran, *Recovering from Random
    Pruning: On the Plasticity of Deep Convolutional Neural Networks*, WACV 2018.

    Args:
        seed: where the random numbers start.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, segment: Segment) -> Tensor:
        """Random numbers for this segment."""
        return self._draw(len(segment.channels), f"{segment.name} {segment.channels}")

    def forward(self, x: Tensor) -> Tensor:
        """Random numbers, the same at every call."""
        return self._draw(len(x), "")

    def _draw(self, count: int, what: str) -> Tensor:
        digest = hashlib.sha256(f"{self.seed} {what}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(count, generator=generator, dtype=torch.float64)


def _order(p: float | str) -> float:
    try:
        order = 2.0 if p == "fro" else float(p)
    except (TypeError, ValueError):
        order = math.nan
    if not order >= 0:
        raise MaskError(f"p must be 'fro' or the order of a norm, from 0 to infinity, not {p!r}")
    return order
