"""Torchvision's networks: classifiers, and ``segmentation/…``, ``video/…`` and so on.

All are built without weights. Images are as small as a network takes without losing what makes it
hard (windows that are shifted, maps that are pooled), so that a sweep over all of them ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision import models

from upscale_opt.models.catalogue.entries import Entry, Group, noise, picture

_CLASSIFIER_SIZE = 224
_CLASSIFIER_SIZES = {"inception_v3": 299}  # what constructors expect if no weights are named

_SEGMENTATION_SIZE = 128

_CLIPS = {
    "mvit_v1_b": (16, 224),  # as built in
    "mvit_v2_s": (16, 224),
    "s3d": (16, 224),  # its last pooling needs two frames of 7 x 7 after all strides
    "swin3d_b": (8, 128),  # more than one window of 8 x 7 x 7 on the first maps, so that they shift
    "swin3d_s": (8, 128),
    "swin3d_t": (8, 128),
}
"""Frames, and their height and width, where a network needs more than ``_CLIP``."""

_CLIP = (8, 112)

_FLOW_SIZE = 128  # the least: four levels of correlation on maps of an eighth of it

_DETECTION_SIZE = 160
_DETECTION_SIZES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
"""Single-shot detectors scale everything to the size of their anchors."""


def classifiers() -> Group:
    """Return the 80 classifiers; they have no prefix."""
    found: list[str] = models.list_models(module=models)
    return {name: Entry(partial(_build, name), partial(_images, name)) for name in found}


def segmentation() -> Group:
    """Return the networks that classify every pixel; they answer with a dict."""
    images = partial(picture, _SEGMENTATION_SIZE)
    return _group("segmentation", models.segmentation, lambda name: images, weights_backbone=None)


def video() -> Group:
    """Return the networks that classify clips of shape (batch, 3, frames, height, width)."""

    def clips(name: str) -> Callable[[int], Tensor]:
        frames, size = _CLIPS.get(name, _CLIP)
        return lambda batch: noise(3, frames, size, size, batch=batch)

    return _group("video", models.video, clips)


def optical_flow() -> Group:
    """Return the networks that take two images; they answer with one flow per refinement."""

    def pair(batch: int) -> tuple[Tensor, Tensor]:
        first, second = (
            noise(3, _FLOW_SIZE, _FLOW_SIZE, batch=batch, seed=seed) for seed in (0, 1)
        )
        return first, second

    return _group("optical_flow", models.optical_flow, lambda name: pair)


def quantizable() -> Group:
    """Return the classifiers that are made to be quantised, as they are before: in float."""
    found: list[str] = models.list_models(module=models.quantization)
    return {
        f"quantizable/{plain}": Entry(
            partial(_build, name, quantize=False), partial(_images, plain)
        )
        for name, plain in ((name, name.removeprefix("quantized_")) for name in found)
    }


def detection() -> Group:
    """Return the detectors; in eval mode they answer with a list of dicts, one per image."""

    def options(name: str) -> dict[str, Any]:
        return {} if name in _DETECTION_SIZES else {"min_size": _DETECTION_SIZE}

    def images(name: str) -> Callable[[int], tuple[list[Tensor]]]:
        size = _DETECTION_SIZES.get(name, _DETECTION_SIZE)
        return lambda batch: (list(picture(size, batch)),)

    found: list[str] = models.list_models(module=models.detection)
    return {
        f"detection/{name}": Entry(
            partial(_build, name, weights_backbone=None, **options(name)), images(name)
        )
        for name in found
    }


def _group(
    prefix: str,
    module: ModuleType,
    inputs: Callable[[str], Callable[[int], Any]],
    **options: object,
) -> Group:
    found: list[str] = models.list_models(module=module)
    return {
        f"{prefix}/{name}": Entry(partial(_build, name, **options), inputs(name)) for name in found
    }


def _build(name: str, **options: object) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _images(name: str, batch: int) -> Tensor:
    return picture(_CLASSIFIER_SIZES.get(name, _CLASSIFIER_SIZE), batch)
