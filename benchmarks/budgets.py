"""The accuracy that budgets leave: masks chosen in several ways, all refitted with the same data.

python benchmarks/budgets.py --out docs/budgets.md
python benchmarks/budgets.py resnet --seeds 1 --method joint uniform
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pages
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.experiments.records import Store
from upscale_opt.experiments.study.data import load_dataset
from upscale_opt.experiments.study.names import EPOCHS
from upscale_opt.experiments.study.recogniser import read, recogniser
from upscale_opt.experiments.study.records import code_key
from upscale_opt.experiments.study.subjects import share_right
from upscale_opt.experiments.study.training import recipe_of, trained
from upscale_opt.experiments.study.words import words_to_calibrate, words_to_read
from upscale_opt.ir.base import Document
from upscale_opt.ir.losses import Losses
from upscale_opt.ir.masks import Masks
from upscale_opt.reconstruction.losses import WEIGHTINGS, Weighting, losses_of

ENGLISH = "english_g2"
SHARES = {
    **dict.fromkeys(("resnet", "densenet", "mobilenet"), (0.2, 0.1, 0.07, 0.05)),
    ENGLISH: (0.5, 0.4, 0.3, 0.2),
}
"""Networks, and the shares of their multiply-adds that are left."""

_CALIBRATION = 400
"""Images to choose and refit with, of those that the networks learned from; without labels."""

_VERIFIED = 8


@dataclass(frozen=True)
class Subject:
    """A network, and what is done with it.

    Attributes:
        model: in eval mode.
        graph: its graph.
        batches: to calibrate with.
        test: tells the share that a model gets right.
        example: one input.
    """

    model: nn.Module
    graph: uo.ChannelGraph
    batches: list[Tensor]
    test: Callable[[nn.Module], float]
    example: Tensor


@dataclass(frozen=True)
class Task:
    """One network of one seed, and where things are kept."""

    net: str
    seed: int
    cache: Path


@lru_cache(maxsize=1)
def subject(task: Task) -> Subject:
    """The network of a task; of ``english_g2`` the seed decides what it is calibrated with."""
    if task.net == ENGLISH:
        return _english(task.seed)
    data = load_dataset("mnist5k")
    recipe = recipe_of("mnist5k", task.net, task.seed, EPOCHS["mnist5k"])
    model = trained(recipe, data, task.cache / "networks", pages.say)
    generator = torch.Generator().manual_seed(task.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:_CALIBRATION]
    pixels, test = data.train.pixels[chosen], data.test

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            return share_right(torch.cat([model(x) for x in test.pixels.split(250)]), test.labels)

    example = test.pixels[:1]
    return Subject(model, uo.trace(model, example), list(pixels.split(100)), right, example)


def _english(seed: int) -> Subject:
    model, words = recogniser(), words_to_read()

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            texts = [text for x in words.pixels.split(50) for text in read(model(x))]
        return sum(map(str.__eq__, texts, words.texts)) / len(texts)

    example = words.pixels[:1]
    batches = list(words_to_calibrate(seed).pixels.split(32))
    return Subject(model, uo.trace(model, example), batches, right, example)
