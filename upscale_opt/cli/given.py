"""The options that say which network a command works on, and what is checked of them at once.

Nothing here loads PyTorch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from upscale_opt.cli.options import Command, replacing
from upscale_opt.errors import UpscaleError

AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A network that `upscale-opt models` lists, or package.module:factory.",
    ),
]
AnyModels = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Networks that `upscale-opt models` lists, or one package.module:factory.",
    ),
]
AnyModelsOrNone = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="Networks that `upscale-opt models` lists, or one package.module:factory.",
    ),
]

SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?\Z")
"""An example input on the command line."""

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")

_OPTIONS: dict[str, tuple[str, Any]] = {
    "model_args": (
        "arguments",
        Annotated[
            str | None,
            typer.Option(
                "--model-args",
                metavar="JSON",
                help="Arguments of the factory, such as '{\"classes\": 10}'.",
            ),
        ],
    ),
    "state": (
        "weights",
        Annotated[
            Path | None,
            typer.Option(
                "--weights",
                metavar="FILE",
                help="Its state dict: .safetensors, or .pt (weights only).",
            ),
        ],
    ),
    "example": (
        "shapes",
        Annotated[
            list[str] | None,
            typer.Option(
                "--input",
                metavar="SHAPE",
                help="An example input: 1x3x640x640, ids=1x16:int64; may be repeated.",
            ),
        ],
    ),
    "examples": (
        "inputs",
        Annotated[
            Path | None,
            typer.Option("--inputs", metavar="FILE", help="Example inputs: a safetensors file."),
        ],
    ),
}
"""By parameter: the field of :class:`Given`, and the option."""


@dataclass(frozen=True)
class Given:
    """The facts about a model that the command line gives, besides its name.

    Attributes:
        arguments: of the factory, as JSON: an object (by name) or a list.
        weights: a file with its state dict.
        shapes: of example inputs: ``"ids=1x16:int64"``.
        inputs: a safetensors file with example inputs, instead.
    """

    arguments: str | None = None
    weights: Path | None = None
    shapes: Sequence[str] = ()
    inputs: Path | None = None

    def words(self) -> list[str]:
        """The same as options of a command.

        >>> Given("[3]", shapes=("1x3",)).words()
        ['--model-args', '[3]', '--input', '1x3']
        """
        pairs: list[tuple[str, Any]]
        pairs = [("--model-args", self.arguments), ("--weights", self.weights)]
        pairs += [("--input", shape) for shape in self.shapes]
        pairs += [("--inputs", self.inputs)]
        return [str(word) for pair in pairs if pair[1] is not None for word in pair]

    def check(self, *names: str) -> None:
        """See whether this goes with the models called so, as far as it shows without PyTorch.

        Raises:
            UpscaleError: naming the option, file or module that is wrong.
        """
        own = [name for name in names if is_own(name)]
        for name in own:
            check_factory(name)
        if len(names) > 1 and (own or self.weights):
            one = own[0] if own else names[0]
            raise UpscaleError(
                f"a model of your own, or --weights, goes alone; give {one!r} and no other"
            )
        if not own and (self.arguments or self.shapes or self.inputs):
            named = f"; {names[0]!r} has none of them" if names else ""
            raise UpscaleError(
                "--model-args, --input and --inputs are for models of your own "
                f"(package.module:factory){named}"
            )
        arguments_of(self.arguments)
        for shape in self.shapes:
            matched(shape)
        for file in (self.weights, self.inputs):
            if file is not None and not file.is_file():
                raise UpscaleError(f"there is no file {file}")
        for name in own:
            self.require_inputs(name)

    def require_inputs(self, name: str) -> None:
        """See whether there are example inputs for the model called so.

        Raises:
            UpscaleError: if there are none.
        """
        if not self.shapes and self.inputs is None:
            raise UpscaleError(
                f"{name} needs example inputs: --input 1x3x224x224, or --inputs with a "
                "safetensors file"
            )


NOTHING = Given()
"""Said of a model by its name alone."""


def digest_of(given: Given) -> str:
    """A digest that tells models of one factory apart: by arguments, inputs, and files' contents.

    >>> digest_of(NOTHING)
    ''
    """
    if given == NOTHING:
        return ""
    parts = [repr((given.arguments, given.shapes)).encode()]
    parts += [b"" if file is None else file.read_bytes() for file in (given.weights, given.inputs)]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(digests).hexdigest()[:12]


def own_model() -> Callable[[Command], Command]:
    """Give a command the options for a model of one's own, in the place of ``given``."""

    def parameters(kind: Any) -> list[inspect.Parameter]:
        return [
            inspect.Parameter(name, kind, default=None, annotation=option)
            for name, (_, option) in _OPTIONS.items()
        ]

    def made(asked: dict[str, Any]) -> Given:
        fields = {_OPTIONS[name][0]: value for name, value in asked.items()}
        return Given(**{**fields, "shapes": tuple(fields["shapes"] or ())})

    return replacing("given", parameters, made)


def is_own(name: str) -> bool:
    """Tell whether a name is that of a factory, and not of a network of the catalogue."""
    return ":" in name


def short_name(name: str) -> str:
    """The name for files and tables: of a factory, without its module.

    >>> short_name("shop.models:classifier"), short_name("topology/unet")
    ('classifier', 'topology/unet')
    """
    return name.partition(":")[2] or name


def check_factory(name: str) -> None:
    """See whether ``"package.module:factory"`` is well formed, and its package is there.

    Raises:
        UpscaleError: if not.
    """
    if not _FACTORY.match(name):
        raise UpscaleError(
            f"a model of your own is package.module:factory, such as shop.models:classifier, "
            f"not {name!r}"
        )
    look_here()
    package = name.partition(":")[0].partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise UpscaleError(
            f"cannot import {package!r} (there is no such module); is it installed, or in the "
            "current folder?"
        )


def look_here() -> None:
    """Let modules lie in the current folder."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def arguments_of(text: str | None) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments in JSON.

    Raises:
        UpscaleError: if it is none, or neither list nor object.
    """
    if text is None:
        return [], {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UpscaleError(f"--model-args is no JSON ({error}): {text}") from None
    if isinstance(value, dict):
        return [], value
    if isinstance(value, list):
        return value, {}
    raise UpscaleError(f"--model-args is a JSON object or list, not {text}")


def matched(text: str) -> re.Match[str]:
    """The parts of an example input: name, sizes and dtype.

    Raises:
        UpscaleError: if it is no shape.
    """
    match = SHAPE.match(text)
    if match is None:
        raise UpscaleError(
            f"--input is a shape such as 1x3x224x224, ids=1x16:int64 for a name and a dtype, "
            f"not {text!r}"
        )
    return match
