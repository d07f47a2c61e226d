"""The networks whose budgets are tried: small ones that are trained, and two with their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pages
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.experiments.study.data import Images, load_dataset
from upscale_opt.experiments.study.detector import boxes, detector
from upscale_opt.experiments.study.photographs import efficientnet, held_out_crops, tested_crops
from upscale_opt.experiments.study.recogniser import read, recogniser
from upscale_opt.experiments.study.sheets import f1, sheets_to_calibrate, sheets_to_read
from upscale_opt.experiments.study.training import (
    EPOCHS,
    Recipe,
    recipe_of,
    share_right,
    trained,
)
from upscale_opt.experiments.study.words import words_to_calibrate, words_to_read

ENGLISH = "english_g2"
CRAFT = "craft"
EFFICIENTNET = "efficientnet-lite0"
SHARES = {
    **dict.fromkeys(("resnet", "densenet", "mobilenet"), (0.2, 0.1, 0.07, 0.05)),
    "glyphs-resnet": (0.5, 0.25, 0.15),
    **dict.fromkeys(("glyphs-densenet", "glyphs-mobilenet"), (0.25, 0.15, 0.08)),
    ENGLISH: (0.5, 0.4, 0.3, 0.2),
    CRAFT: (0.5, 0.4, 0.3),
    EFFICIENTNET: (0.9, 0.8, 0.7),
}
"""Networks, and the shares of their multiply-adds that are left."""

CALIBRATION = 400
"""Images to choose and refit with, of those that the networks learned from; without labels."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, and what is done with it.

    Attributes:
        model: in eval mode.
        graph: its graph.
        batches: to calibrate with.
        test: tells the share that a model gets right.
        example: one input.
        whole: layers whose outputs Torch-Pruning has to leave alone.
        training: how it was trained, and with which images; ``None`` if not here.
        batch: inputs in a call on the clock.
    """

    model: nn.Module
    graph: uo.ChannelGraph
    batches: list[Tensor]
    test: Callable[[nn.Module], float]
    example: Tensor
    whole: tuple[str, ...] = ()
    training: tuple[Recipe, Images] | None = None
    batch: int = 64


@dataclass(frozen=True)
class Task:
    """One network of one seed, and where things are kept."""

    net: str
    seed: int
    cache: Path


@lru_cache(maxsize=1)
def subject(task: Task) -> Subject:
    """The network of a task; of those with weights the seed decides what calibrates them."""
    if task.net == ENGLISH:
        return _english(task.seed)
    if task.net == CRAFT:
        return _craft(task.seed)
    if task.net == EFFICIENTNET:
        return _efficientnet()
    name, _, net = task.net.rpartition("-")
    data = load_dataset(name or "mnist5k")
    recipe = recipe_of(data.name, net, task.seed, EPOCHS[data.name])
    model = trained(recipe, data, task.cache / "networks", pages.say)
    generator = torch.Generator().manual_seed(task.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:CALIBRATION]
    pixels, test = data.train.pixels[chosen], data.test

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            return share_right(
                torch.cat([model(x) for x in torch.split(test.pixels, 250)]), test.labels
            )

    example = test.pixels[:1]
    batches = list(torch.split(pixels, 100))
    training = (recipe, data.train)
    return Subject(model, uo.trace(model, example), batches, right, example, training=training)


def _english(seed: int) -> Subject:
    model, words = recogniser(), words_to_read()

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            texts = [text for x in torch.split(words.pixels, 50) for text in read(model(x))]
        return sum(map(str.__eq__, texts, words.texts)) / len(texts)

    example = words.pixels[:1]
    batches = list(torch.split(words_to_calibrate(seed).pixels, 32))
    whole = ("FeatureExtraction.ConvNet.18",)
    return Subject(model, uo.trace(model, example), batches, right, example, whole, batch=8)


def _craft(seed: int) -> Subject:
    model, sheets = detector(), sheets_to_read()

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            found = [box for x in torch.split(sheets.pixels, 4) for box in boxes(model(x))]
        return f1(found, sheets.boxes)

    example = sheets.pixels[:1]
    batches = list(torch.split(sheets_to_calibrate(seed).pixels, 4))
    whole = ("conv_cls.8",)
    return Subject(model, uo.trace(model, example), batches, right, example, whole, batch=1)


def _efficientnet() -> Subject:
    """What is right is what the unpruned network says: agreement, not accuracy."""
    model, pixels = efficientnet(), tested_crops()

    def said(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(x) for x in torch.split(pixels, 8)])

    labels = said(model).argmax(1)

    def right(model: nn.Module) -> float:
        return share_right(said(model), labels)

    example = pixels[:1]
    batches = list(torch.split(held_out_crops(), 8))
    return Subject(model, uo.trace(model, example), batches, right, example, ("_fc",), batch=1)
