"""The options that several commands share, and what is checked of them before anything runs."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.errors import UpscaleError
from upscale_opt.solver.registry import SOLVERS
from upscale_opt.solver.solve import OBJECTIVES


class Side(str, Enum):
    """Which channels of a layer are dropped."""

    input = "input"
    output = "output"
    both = "both"

    @property
    def words(self) -> str:
        """As it stands in a sentence."""
        return "input and output" if self is Side.both else self.value


class Layers(str, Enum):
    """Which layers are pruned."""

    all = "all"
    conv = "conv"

    @property
    def words(self) -> str:
        """As it stands in a sentence."""
        return "all convolutions" if self is Layers.conv else "all layers"


def _amount(value: float) -> float:
    if not 0 <= value < 1:
        raise typer.BadParameter(f"it must be at least 0 and less than 1, not {value:g}")
    return value


def _time_limit(value: float) -> float:
    if not value > 0:
        raise typer.BadParameter(f"it must be more than 0 seconds, not {value:g}")
    return value


def _one_of(names: tuple[str, ...], value: str) -> str:
    if value not in names:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
    return value


def _solver(value: str) -> str:
    return _one_of(tuple(SOLVERS), value)


def _objective(value: str) -> str:
    return _one_of(OBJECTIVES, value)


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A network that `upscale-opt models` lists.")
]
Amount = Annotated[
    float,
    typer.Option(callback=_amount, help="The share of every layer's channels to drop, in [0, 1)."),
]
SideOption = Annotated[Side, typer.Option(help="Drop input channels, output channels, or both.")]
LayersOption = Annotated[Layers, typer.Option(help="Prune all layers, or convolutions only.")]
SolverName = Annotated[str, typer.Option(callback=_solver, help=f"{', '.join(SOLVERS)}.")]
Objective = Annotated[str, typer.Option(callback=_objective, help=f"{', '.join(OBJECTIVES)}.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, help="Seed of the weights and the solver.")
]
TimeLimit = Annotated[float, typer.Option(callback=_time_limit, help="Seconds for the solver.")]


def check_file(path: Path) -> None:
    """Find out now, not after the work, if ``path`` cannot be written.

    Raises:
        UpscaleError: if it cannot.
    """
    if path.is_dir():
        raise UpscaleError(f"{path} is a folder; name a file in it")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Make ``folder`` if need be, and find out now if no file can be written there.

    Raises:
        UpscaleError: if none can.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UpscaleError(
            f"cannot write to {folder}: {error.strerror}; choose another place with --out"
        ) from None
