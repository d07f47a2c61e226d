"""The options that several commands share, and what is checked of them before anything runs."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from upscale_opt.errors import SolverError, UpscaleError
from upscale_opt.experiments.bench.names import FORMATS, VARIANTS
from upscale_opt.experiments.coverage.names import ALL, GROUPS
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.profiles import PROFILES
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.network.objectives import OBJECTIVES
from upscale_opt.solver.network.segments import SELECTIONS
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.selection.registry import SELECTORS


class Side(str, Enum):
    """The channels of a layer that are dropped."""

    input = "input"
    output = "output"
    both = "both"

    @property
    def words(self) -> str:
        """As it stands in a sentence."""
        return "input and output" if self is Side.both else self.value


class Layers(str, Enum):
    """The layers that are pruned."""

    all = "all"
    conv = "conv"

    @property
    def words(self) -> str:
        """As it stands in a sentence."""
        return "all convolutions" if self is Layers.conv else "all layers"


class Method(str, Enum):
    """The two ways to drop a channel: layer by layer, or in all layers that share it."""

    unconstrained = "unconstrained"
    constrained = "constrained"

    @property
    def words(self) -> str:
        """As it stands in a sentence."""
        return "coupled layers together" if self is Method.constrained else "every layer for itself"


def _amount(value: float) -> float:
    if not 0 <= value < 1:
        raise typer.BadParameter(f"it must be at least 0 and less than 1, not {value:g}")
    return value


def _amounts(values: list[float]) -> list[float]:
    return list(dict.fromkeys(map(_amount, values)))


def _one_of(names: Sequence[str], value: str) -> str:
    if value not in names:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
    return value


def _checked(field: str, value: Any) -> Any:
    """The value, if it makes sense as this field of the options.

    Raises:
        typer.BadParameter: if not.
    """
    fields: Any = {field: value}
    try:
        SolveOptions.of(**fields)
    except SolverError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def _field(name: str, among: Sequence[str] | None = None, *, text: str, **more: Any) -> Any:
    """The option for a field of the options, checked as that is, and maybe one of some names."""

    def check(value: Any) -> Any:
        if among is not None and value is not None:
            _one_of(among, value)
        return _checked(name, value)

    return typer.Option(callback=check, help=text, **more)


def _solvers(values: list[str]) -> list[str]:
    for value in values:
        _checked("solver", value)
    return list(dict.fromkeys(values))


def _any_solvers(values: list[str]) -> list[str]:
    _solvers([value for value in values if value not in SELECTORS])
    return list(dict.fromkeys(values))


def share(value: float) -> float:
    """A share of the multiply-adds, if it is one.

    Raises:
        typer.BadParameter: if it is negative or not finite.
    """
    return float(_checked("max_extra_macs", value))


def _groups(values: list[str]) -> list[str]:
    for value in values:
        _one_of((*GROUPS, ALL), value)
    return list(GROUPS) if ALL in values else list(dict.fromkeys(values))


DATA_FREE = ("l2", "l1", "lamp", "fpgm", "batch-norm", "random")
"""The criteria that need no data; named here because importing them would load PyTorch."""


def _criterion(value: str) -> str:
    return _one_of(DATA_FREE, value)


def _batches(values: list[int]) -> list[int]:
    for value in values:
        if value < 1:
            raise typer.BadParameter(f"a batch has at least 1 image, not {value}")
    return list(dict.fromkeys(values))


BatchSizes = Annotated[
    list[int],
    typer.Option("--batch", metavar="INT...", callback=_batches, help="Batch sizes: --batch 1 8"),
]
ONE_IMAGE: list[int] = [1]

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
SolverNames = Annotated[
    list[str],
    typer.Option(
        "--solver",
        callback=_any_solvers,
        metavar="SOLVER...",
        help=f"One or several of {', '.join(SOLVERS)}; "
        f"with --losses, of {', '.join(SELECTORS)} (all of them by default).",
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
Seed = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, help="Seed of the weights and the solver.")
]
TimeLimit = Annotated[float, _field("time_limit", text="Seconds for the solver.")]
_SELECTED = {
    "tensor": "wherever that is best for each tensor",
    "segment": "as UPSCALE does, from one channel set for a whole segment",
    "arena": "as for tensor, with concatenations that share buffers",
}


def _objective(names: Sequence[str]) -> Any:
    return Annotated[str, _field("objective", names, text=f"{', '.join(names)}.")]


def _selection(names: Sequence[str]) -> Any:
    texts = "; ".join(f"{name}: {_SELECTED[name]}" for name in names)
    usual = "tensor" + ("; for latency the better of that and arena" if "segment" in names else "")
    option = _field(
        "selection", names, text=f"How to select channels. {texts}.", show_default=usual
    )
    return Annotated[str | None, option]


_DECLARED: dict[str, Any] = {
    "solver": Annotated[str, _field("solver", text=f"{', '.join(SOLVERS)}.")],
    "objective": _objective(OBJECTIVES),
    "selection": _selection(SELECTIONS),
    "max_extra_macs": Annotated[
        float,
        _field(
            "max_extra_macs",
            text="Let windows, which copy nothing, add up to this share of the multiply-adds.",
        ),
    ],
    "cost_model": Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            show_default="cpu",
            help="What kernels cost, for --objective latency: a file of `upscale-opt calibrate`, "
            f"or one of {', '.join(PROFILES)}.",
        ),
    ],
    "weights": Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            metavar="READ=FACTOR",
            help="Multiply the cost of an operation's reads by a whole number; may be repeated.",
        ),
    ],
    "time_limit": TimeLimit,
    "seed": Seed,
    "workers": Annotated[int, typer.Option(min=1, help="Threads of the solver.")],
}
"""The fields of :class:`SolveOptions` as options of the command line."""

Command = Callable[..., None]
_USUAL = SolveOptions()


def solving(
    *fields: str,
    objectives: Sequence[str] = OBJECTIVES,
    selections: Sequence[str] = SELECTIONS,
    defaults: SolveOptions = _USUAL,
) -> Callable[[Command], Command]:
    """Give a command these options, in the place of its parameter ``options``.

    What they say comes to it as one :class:`SolveOptions`.

    Args:
        fields: names of fields of that record; all by default.
        objectives: those that make sense to the command.
        selections: the same of selections.
        defaults: what is taken where nothing is given.
    """
    fields = fields or tuple(_DECLARED)
    narrowed = {"objective": _objective(objectives), "selection": _selection(selections)}
    declared = {**_DECLARED, **narrowed}

    def parameters(kind: Any) -> list[inspect.Parameter]:
        return [
            inspect.Parameter(
                field,
                kind,
                default=getattr(defaults, field),
                annotation=declared[field],
            )
            for field in fields
        ]

    return replacing("options", parameters, _record)


def replacing(
    name: str,
    parameters: Callable[[Any], list[inspect.Parameter]],
    made: Callable[[dict[str, Any]], Any],
) -> Callable[[Command], Command]:
    """Give a command several options in the place of one parameter.

    Args:
        name: of the parameter.
        parameters: the options, of the kind that it has.
        made: what the command gets for it, of the options' values by name.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        found: list[inspect.Parameter] = []
        for one in inspect.signature(command).parameters.values():
            own = one.name != name
            found += [one.replace(annotation=hints[one.name])] if own else parameters(one.kind)
        names = [one.name for one in parameters(inspect.Parameter.KEYWORD_ONLY)]

        def run(**given: Any) -> None:
            asked = {one: given.pop(one) for one in names}
            command(**given, **{name: made(asked)})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {one.name: one.annotation for one in found}
        run.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]
        return run

    return decorate


def _record(asked: dict[str, Any]) -> SolveOptions:
    """The options that a command was given.

    Raises:
        typer.BadParameter: if one makes no sense, or not with the others.
        SchemaError: if the file with the cost model is none.
    """
    fields: Any = dict(asked)
    objective = asked.get("objective", "")
    if "weights" in asked:
        fields["weights"] = weights_of(asked["weights"])
    if "cost_model" in asked:
        fields["cost_model"] = cost_model_of(
            asked["cost_model"], objective, asked.get("max_extra_macs", 0.0)
        )
    return SolveOptions.of(**fields)


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
) -> CostModel | str | None:
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
        return option
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
    "--group": (*GROUPS, ALL).__contains__,
}
"""The flags that may be followed by several values, and what looks like one."""
