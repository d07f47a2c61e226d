"""The networks a user can name: torchvision's, timm's, those that people prune, and topologies.

    >>> "resnet18" in names() and "topology/unet" in names()
    True
    >>> "video/r3d_18" in names("video")
    True
    >>> model = build("topology/unet", seed=1)
    >>> tuple(model(example_inputs("topology/unet", batch=2)).shape)
    (2, 3, 8, 8)

Nothing is ever downloaded: the weights are random.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from upscale_opt.errors import ArgumentError
from upscale_opt.models import topologies
from upscale_opt.models.catalogue import timm, torchvision, wild
from upscale_opt.models.catalogue.entries import Entry, ExampleInputs, Group
from upscale_opt.models.catalogue.values import randomize
from upscale_opt.models.topologies import TOPOLOGIES

__all__ = ["GROUPS", "PREFIX", "build", "example_inputs", "group_of", "names", "randomize"]

PREFIX = "topology/"


def _topologies() -> Group:
    return {
        PREFIX + name: Entry(make, partial(topologies.example_inputs, name))
        for name, make in TOPOLOGIES.items()
    }


GROUPS: dict[str, Callable[[], Group]] = {
    "classification": torchvision.classifiers,
    "topology": _topologies,
    "segmentation": torchvision.segmentation,
    "video": torchvision.video,
    "optical_flow": torchvision.optical_flow,
    "quantizable": torchvision.quantizable,
    "detection": torchvision.detection,
    "timm": timm.networks,
    "wild": wild.networks,
}
"""Group → its networks. Classifiers go by torchvision's names; others have the group before them,
as in ``video/r3d_18``."""


def names(group: str | None = None) -> list[str]:
    """Return the names of a group; without one, of the 80 classifiers and the topologies.

    Listing them needs no timm.

    Raises:
        ArgumentError: No such group.
    """
    if group is None:
        return [*_entries("classification"), *_entries("topology")]
    if group not in GROUPS:
        raise ArgumentError(f"there is no group {group!r}; there are {', '.join(GROUPS)}")
    return list(_entries(group))


def group_of(name: str) -> str:
    """Return the group of the network called ``name``.

    Raises:
        ArgumentError: No such network.
    """
    prefix, slash, _ = name.partition("/")
    group = prefix if slash else "classification"
    if group not in GROUPS or name not in _entries(group):
        raise _unknown(name)
    return group


def build(name: str, *, seed: int = 0) -> nn.Module:
    """Return the network called ``name`` with random weights, in eval mode, on the CPU.

    The weights depend on ``seed`` alone, and the global random state is left as it was. They are
    what the constructor draws, zero biases and all; ``randomize`` replaces those.

    Raises:
        ArgumentError: No such network.
        UpscaleError: It comes from a package that is not installed.
    """
    entry = _entries(group_of(name))[name]
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # "init_weights will change its default"
        torch.default_generator.manual_seed(seed)
        return entry.make().eval()


def example_inputs(name: str, batch: int = 1) -> ExampleInputs:
    """Return random inputs that the network called ``name`` accepts, the same at every call.

    A tensor; a dict of keyword arguments for the topology that takes them; two images for optical
    flow; and for detectors one argument, a list of images.

    Raises:
        ArgumentError: No such network.
    """
    return _entries(group_of(name))[name].inputs(batch)


@cache
def _entries(group: str) -> Group:
    return GROUPS[group]()


def _unknown(name: str) -> ArgumentError:
    known = [known for group in GROUPS for known in _entries(group)]
    # A name without its group is the likeliest slip, and difflib would not find it.
    close = [full for full in known if full.partition("/")[2] == name]
    close = close or difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else "`upscale-opt models` lists them all"
    return ArgumentError(f"there is no network called {name!r}; {hint}")
