"""Train a small network once; the next time it comes from the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.processes import Tell
from upscale_opt.experiments.study.data import Dataset, Images
from upscale_opt.ir.base import Record, write_atomically
from upscale_opt.models.small_networks import build_small

EPOCHS = {"mnist5k": 8, "digits": 15, "glyphs": 8}
WEIGHT_DECAY = 1.0
"""As much as costs the small networks no accuracy. With less, they survive less pruning."""


class Recipe(Record):
    """All that a trained network depends on.

    Attributes:
        data: the name of the data set.
        net: the name of the small network.
        seed: of the weights and of the order of the images.
        epochs: how often every image is seen.
        batch: images per step.
        learning_rate: the highest; it rises to that and falls again (Smith and Topin, 2019).
        weight_decay: of AdamW (Loshchilov and Hutter, 2019). Pruning depends on it: networks
            that decay little tell the same accuracy by far more channels.
        shift: how many pixels an image may be moved, up or down and left or right.
        torch: the version of PyTorch.
    """

    data: str
    net: str
    seed: int
    epochs: int
    batch: int = 50
    learning_rate: float = 0.01
    weight_decay: float = WEIGHT_DECAY
    shift: int
    torch: str = torch.__version__

    @property
    def key(self) -> str:
        """Sixteen digits that differ where recipes differ."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The name of files about the network."""
        return f"{self.data}-{self.net}-{self.seed}-{self.key}"


def recipe_of(
    data: str, net: str, seed: int, epochs: int, weight_decay: float = WEIGHT_DECAY
) -> Recipe:
    """The recipe by which a network is trained here."""
    shift = 2 if data == "mnist5k" else 1
    return Recipe(
        data=data, net=net, seed=seed, epochs=epochs, weight_decay=weight_decay, shift=shift
    )


def trained(
    recipe: Recipe, data: Dataset, cache: Path, tell: Tell = lambda text: None
) -> nn.Module:
    """The network that ``recipe`` describes, in eval mode; from ``cache`` if it is there.

    Args:
        recipe: what to train, and how.
        data: the data set that the recipe names.
        cache: the folder for the weights and, beside them, the recipe.
        tell: told about every epoch.

    Raises:
        UpscaleError: if what the cache holds cannot be read.
        OSError: if the cache cannot be written.
    """
    model = build_small(recipe.net, image=data.image, classes=data.classes, seed=recipe.seed)
    weights, words = (cache / f"{recipe.name}.{kind}" for kind in ("safetensors", "json"))
    if weights.exists() and words.exists():
        _restore(model, recipe, weights, words)
    else:
        train(model, recipe, data.train, tell)
        write_atomically(weights, save(model.state_dict()))
        write_atomically(words, recipe.model_dump_json(indent=1).encode())
    return model.eval()


def _restore(model: nn.Module, recipe: Recipe, weights: Path, words: Path) -> None:
    try:
        if Recipe.model_validate_json(words.read_bytes()) != recipe:
            raise UpscaleError(f"{words} is another network's recipe; delete it")
        model.load_state_dict(load(weights.read_bytes()))
    except (SafetensorError, RuntimeError, ValidationError):
        raise UpscaleError(f"{weights} is damaged; delete it, and it is trained anew") from None


def train(model: nn.Module, recipe: Recipe, images: Images, tell: Tell = lambda text: None) -> None:
    """Train ``model`` in place, in training mode, and leave it in eval mode.

    Args:
        model: it need not be what the recipe names: a pruned network can be tuned in this way.
        recipe: its seed, epochs, batch, shift and rates are followed.
        images: to learn from.
        tell: told about every epoch.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = len(images) // recipe.batch  # the last, smaller batch is left out: it would be noisy
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps, pct_start=0.2
    )
    model.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(steps):
            batch = images[order[step * recipe.batch : (step + 1) * recipe.batch]]
            optimizer.zero_grad()
            logits = model(_moved(batch.pixels, recipe.shift, generator))
            loss = functional.cross_entropy(logits, batch.labels)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        tell(f"epoch {epoch + 1} of {recipe.epochs}, loss {total / steps:.3f}")
    model.eval()


def share_right(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose greatest logit is at their label."""
    return float((logits.argmax(1) == labels).double().mean())


def _moved(pixels: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Every image moved by up to ``shift`` pixels; what comes in is as its darkest pixel."""
    count, _, height, width = pixels.shape
    padded = functional.pad(pixels, (shift,) * 4, value=float(pixels.min()))
    down, right = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + down)[:, :, None]
    columns = (torch.arange(width) + right)[:, None, :]
    images = torch.arange(count)[:, None, None]
    return padded[images, :, rows, columns].permute(0, 3, 1, 2).contiguous()
