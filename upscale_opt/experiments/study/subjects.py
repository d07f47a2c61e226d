"""Subjects: a network, its graph, and the images to score channels by and to test on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from upscale_opt.experiments.processes import Tell
from upscale_opt.experiments.study.data import Images, load_dataset
from upscale_opt.experiments.study.names import EFFICIENTNET, PHOTOGRAPHS
from upscale_opt.experiments.study.photographs import (
    efficientnet,
    held_out_crops,
    tested_crops,
)
from upscale_opt.experiments.study.records import Unpruned
from upscale_opt.experiments.study.training import Recipe, trained
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.measuring.costs import count_costs
from upscale_opt.tracing import trace

_LARGE = 64
"""From this image size on, batches are small."""


@dataclass(frozen=True)
class Subject:
    """A network to prune.

    Attributes:
        model: in eval mode; not to be changed.
        graph: its channel graph.
        held_out: images for the criteria that look at data. Where it is not known what they show,
            they are labelled with what the network says.
        test: images to measure on, labelled likewise.
        labelled: whether the labels are known to be right.
        logits: what the network says about the test images.
    """

    model: nn.Module
    graph: ChannelGraph
    held_out: Images
    test: Images
    labelled: bool
    logits: Tensor

    @property
    def example(self) -> Tensor:
        """A batch of one image."""
        return self.test.pixels[:1]

    def unpruned(self, recipe: Recipe) -> Unpruned:
        """The network as a row."""
        costs = count_costs(self.model, self.example)
        return Unpruned(
            data=recipe.data,
            net=recipe.net,
            seed=recipe.seed,
            images=len(self.test),
            accuracy=share_right(self.logits, self.test.labels) if self.labelled else None,
            parameters=costs.parameters,
            multiply_adds=costs.multiply_adds,
        )


def share_right(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose greatest logit is at their label."""
    return float((logits.argmax(1) == labels).double().mean())


def pretrained() -> Recipe:
    """Stands for EfficientNet-Lite0, which comes trained."""
    return Recipe(data=PHOTOGRAPHS, net=EFFICIENTNET, seed=0, epochs=0, shift=0)


@lru_cache(maxsize=1)
def load_subject(recipe: Recipe, cache: Path, tell: Tell = lambda text: None) -> Subject:
    """The network that ``recipe`` describes, trained if it is not in ``cache``, and traced.

    Raises:
        UpscaleError: if a package or data set is missing, or the cache is damaged.
    """
    if recipe.net == EFFICIENTNET:
        return _photographed()
    data = load_dataset(recipe.data)
    model = trained(recipe, data, cache / "networks", tell)
    return _subject(model, data.held_out, data.test, labelled=True)


def _photographed() -> Subject:
    model = efficientnet()
    held_out, test = (
        Images(pixels, logits_of(model, pixels).argmax(1))
        for pixels in (held_out_crops(), tested_crops())
    )
    return _subject(model, held_out, test, labelled=False)


def _subject(model: nn.Module, held_out: Images, test: Images, labelled: bool) -> Subject:
    return Subject(
        model=model,
        graph=trace(model, test.pixels[:1]),
        held_out=held_out,
        test=test,
        labelled=labelled,
        logits=logits_of(model, test.pixels),
    )


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """The model's logits for the images, batch by batch; of shape (images, classes)."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in torch.split(pixels, batch_size(pixels))])


def batch_size(pixels: Tensor) -> int:
    """The number of images of that size that go through a network at once."""
    return 8 if pixels.shape[-1] >= _LARGE else 250
