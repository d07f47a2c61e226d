"""The options that several commands share, and what is checked of them before anything runs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.bench.names import FORMATS, VARIANTS
from upscale_opt.experiments.coverage.names import ALL, GROUPS
from upscale_opt.experiments.study.names import CRITERIA, DATA, METHODS, NETS
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.profiles import PROFILES, profile
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.network.objectives import OBJECTIVES


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


class Method(str, Enum):
    """Whether layers that share a channel drop it together."""

    unconstrained = "unconstrained"
    constrained = "constrained"

    @property
    def words(self) -> str:
        """As it stands in a sentence."""
        return "coupled layers together" if self is Method.constrained else "every layer for itself"


class Model(str, Enum):
    """Where channels are selected."""

    tensor = "tensor"
    segment = "segment"
    arena = "arena"


def _amount(value: float) -> float:
    if not 0 <= value < 1:
        raise typer.BadParameter(f"it must be at least 0 and less than 1, not {value:g}")
    return value


def _amounts(values: list[float]) -> list[float]:
    return list(dict.fromkeys(map(_amount, values)))


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


def _solvers(values: list[str]) -> list[str]:
    return list(dict.fromkeys(map(_solver, values)))


def _objective(value: str) -> str:
    return _one_of(OBJECTIVES, value)


def share(value: float) -> float:
    """A share of the multiply-adds, if it is one.

    Raises:
        typer.BadParameter: if it is negative or not finite.
    """
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"it is a share, such as 0.1 for a tenth, not {value:g}")
    return value


def _groups(values: list[str]) -> list[str]:
    for value in values:
        _one_of((*GROUPS, ALL), value)
    return list(GROUPS) if ALL in values else list(dict.fromkeys(values))


DATA_FREE = ("l2", "l1", "lamp", "fpgm", "batch-norm", "random")
"""The criteria that need no data; named here because importing them would load PyTorch."""


def _criterion(value: str) -> str:
    return _one_of(DATA_FREE, value)


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A network that `upscale-opt models` lists.")
]
Amount = Annotated[
    float,
    typer.Option(callback=_amount, help="The share of every layer's channels to drop, in [0, 1)."),
]
Amounts = Annotated[
    list[float],
    typer.Option(
        "--amount",
        callback=_amounts,
        metavar="FLOAT...",
        help="The shares of every layer's channels to drop, in [0, 1): --amount 0.3 0.5 0.7",
    ),
]
SideOption = Annotated[Side, typer.Option(help="Drop input channels, output channels, or both.")]
LayersOption = Annotated[Layers, typer.Option(help="Prune all layers, or convolutions only.")]
CriterionOption = Annotated[
    str,
    typer.Option(
        "--criterion",
        callback=_criterion,
        help=f"What ranks the channels: {', '.join(DATA_FREE)}.",
    ),
]
MethodOption = Annotated[
    Method,
    typer.Option(help="Every layer for itself, or all layers that share a channel together."),
]
SolverName = Annotated[str, typer.Option(callback=_solver, help=f"{', '.join(SOLVERS)}.")]
SolverNames = Annotated[
    list[str],
    typer.Option(
        "--solver",
        callback=_solvers,
        metavar="SOLVER...",
        help=f"One or several of {', '.join(SOLVERS)}.",
    ),
]
Objective = Annotated[str, typer.Option(callback=_objective, help=f"{', '.join(OBJECTIVES)}.")]
ModelOption = Annotated[
    Model | None,
    typer.Option(
        "--model",
        show_default="tensor; arena for latency",
        help="Select channels wherever it is best for each tensor; or as UPSCALE does, from one "
        "channel set for a whole segment; or as for tensor, with concatenations that share "
        "buffers.",
    ),
]
MaxExtraMacs = Annotated[
    float,
    typer.Option(
        callback=share,
        help="Let windows, which copy nothing, add up to this share of the multiply-adds.",
    ),
]
CostModelOption = Annotated[
    str | None,
    typer.Option(
        "--cost-model",
        metavar="FILE|NAME",
        show_default="cpu",
        help="What kernels cost, for --objective latency: a file of `upscale-opt calibrate`, or "
        f"one of {', '.join(PROFILES)}.",
    ),
]
GroupNames = Annotated[
    list[str],
    typer.Option(
        "--group",
        metavar="NAME...",
        callback=_groups,
        help=f"All networks of a group: {', '.join(GROUPS)}; or {ALL}.",
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="READ=FACTOR",
        help="Multiply the cost of an operation's reads by a whole number; may be repeated.",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, help="Seed of the weights and the solver.")
]
TimeLimit = Annotated[float, typer.Option(callback=_time_limit, help="Seconds for the solver.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads of the solver.")]


def weights_of(options: list[str] | None) -> dict[str, int] | None:
    """The factors that ``--weight`` gives, by read.

        >>> weights_of(["conv1=3", "cat[2]=0"])
        {'conv1': 3, 'cat[2]': 0}

    Raises:
        typer.BadParameter: if one is not READ=FACTOR.
    """
    weights: dict[str, int] = {}
    for option in options or ():
        name, _, factor = option.rpartition("=")
        if not name or not factor.isdecimal():
            raise typer.BadParameter(f"--weight is READ=FACTOR, such as conv1=3, not {option!r}")
        weights[name] = int(factor)
    return weights or None


def cost_model_of(
    option: str | None, objective: str, max_extra_macs: float = 0.0
) -> CostModel | None:
    """The cost model that ``--cost-model`` names, where the objective knows what to do with it.

    Args:
        option: a file, or the name of a built-in one.
        objective: what is minimised.
        max_extra_macs: what windows may add, which is not for every objective, either.

    Raises:
        typer.BadParameter: if an option does not go with the objective, or there is no such file.
        SchemaError: if the file is none of a cost model.
    """
    if max_extra_macs and objective in ("latency", "blocks"):
        reason = "it prices windows" if objective == "latency" else "it has no windows"
        raise typer.BadParameter(f"--max-extra-macs is not for --objective {objective}: {reason}")
    if option is None:
        return None
    if objective != "latency":
        raise typer.BadParameter("--cost-model is for --objective latency only")
    if option in PROFILES:
        return profile(option)
    if not Path(option).is_file():
        raise typer.BadParameter(
            f"--cost-model {option}: there is no such file; built in are {', '.join(PROFILES)}"
        )
    return CostModel.load(option)


def named_networks(networks: Iterable[str], groups: Iterable[str]) -> list[str]:
    """The networks that MODEL and ``--group`` name, each once; loads PyTorch.

    Raises:
        UpscaleError: if there is no such network.
    """
    from upscale_opt.models import catalogue

    for name in networks:
        catalogue.group_of(name)
    return list(dict.fromkeys([*networks, *(n for one in groups for n in catalogue.names(one))]))


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


def spread(arguments: Iterable[str]) -> list[str]:
    """Repeat a flag for each of the values behind it, which is the only way Typer takes several.

        >>> spread(["--amount", "0.3", "0.5", "resnet18"])
        ['--amount', '0.3', '--amount', '0.5', 'resnet18']

    What follows belongs to the flag as long as it can: numbers to ``--amount`` and ``--budgets``,
    names of solvers to ``--solver``, JSON files to ``--instance``.
    """
    result: list[str] = []
    flag, fed = "", False
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in _SEVERAL:
            flag, fed = name, name != argument
        elif flag and not fed:
            fed = True  # whatever it is, it was given as this flag's value
        elif flag and _SEVERAL[flag](argument):
            result.append(flag)
        else:
            flag = ""
        result.append(argument)
    return result


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_SEVERAL: dict[str, Callable[[str], bool]] = {
    "--amount": _is_number,
    "--budgets": _is_number,
    "--batch": str.isdecimal,
    "--format": FORMATS.__contains__,
    "--variants": VARIANTS.__contains__,
    "--solver": SOLVERS.__contains__,
    "--instance": lambda text: text.endswith(".json"),
    "--net": NETS.__contains__,
    "--data": DATA.__contains__,
    "--criterion": CRITERIA.__contains__,
    "--group": (*GROUPS, ALL).__contains__,
    "--method": METHODS.__contains__,
}
"""The flags that may be followed by several values, and what looks like one."""
