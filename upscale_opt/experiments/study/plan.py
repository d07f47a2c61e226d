"""The plan of one run of the study: the networks to train, and the tasks to carry out on them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product

from upscale_opt.experiments.study.names import (
    AMOUNTS,
    CRITERIA,
    DATA,
    EFFICIENTNET,
    EPOCHS,
    GENTLE_AMOUNTS,
    METHODS,
    TRAINED,
    WEIGHT_DECAY,
)
from upscale_opt.experiments.study.records import Method, Side
from upscale_opt.experiments.study.subjects import pretrained
from upscale_opt.experiments.study.sweep import Task
from upscale_opt.experiments.study.training import Recipe, recipe_of


@dataclass(frozen=True)
class Plan:
    """The options of the command, by which the study is run.

    Attributes:
        net: networks.
        data: data sets, of which every network but EfficientNet-Lite0 is trained on each.
        seeds: how often each is trained.
        amount: shares of channels to drop; if none are given, the usual ones.
        criterion: what ranks channels.
        method: with and without constraints.
        side: which channels of layers are dropped.
        is_global: rank the channels of all layers together.
        epochs: how often training sees every image; ``None`` for the usual.
        weight_decay: of training.
    """

    net: tuple[str, ...] = TRAINED
    data: tuple[str, ...] = DATA[:1]
    seeds: int = 3
    amount: tuple[float, ...] = ()
    criterion: tuple[str, ...] = CRITERIA
    method: tuple[Method, ...] = METHODS
    side: Side = "input"
    is_global: bool = False
    epochs: int | None = None
    weight_decay: float = WEIGHT_DECAY

    def recipes(self) -> list[Recipe]:
        """The networks."""
        found = [
            recipe_of(data, net, seed, self.epochs or EPOCHS[data], self.weight_decay)
            for data, net in product(self.data, self.net)
            if net != EFFICIENTNET
            for seed in range(self.seeds)
        ]
        return found + [pretrained() for net in self.net if net == EFFICIENTNET]

    def tasks(self) -> list[Task]:
        """The tasks to carry out; those about one network lie together."""
        return [
            Task(
                recipe=recipe,
                criterion=criterion,
                methods=self.method,
                side=self.side,
                is_global=self.is_global,
                amounts=self.amount or _usual_amounts(recipe),
            )
            for recipe in self.recipes()
            for criterion in self.criterion
        ]

    def command(self) -> str:
        """The command that asks for this, without what makes no difference to the results."""
        words = ["upscale-opt study"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            words.append("--global" if field.name == "is_global" else _flag(field.name, value))
        return " ".join(words)


def _usual_amounts(recipe: Recipe) -> tuple[float, ...]:
    return GENTLE_AMOUNTS if recipe.net == EFFICIENTNET else AMOUNTS


def _flag(name: str, value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{name.replace('_', '-')}", *map(str, values)])
