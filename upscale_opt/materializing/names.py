"""Names in pruned models, where the original's are those of something else there, or of Python."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from keyword import iskeyword

from torch import fx, nn

MAKING = "_upscale_opt_making"
"""The attribute in which a pruned model says how it was made."""

STAGES = "_upscale_opt_stages"
"""The attribute in which a model says how it was pruned, if its own code calls what is left."""


@cache
def taken() -> frozenset[str]:
    """The attributes that a pruned model has besides those of any module."""
    plain, graph = nn.Module(), fx.GraphModule(nn.Module(), fx.Graph())
    names = {*dir(graph), *vars(graph), "_in_spec", "_out_spec", MAKING}
    return frozenset(names - {*dir(plain), *vars(plain)})


def new_name(model: nn.Module, target: str, besides: nn.Module | None = None) -> dict[str, str]:
    """The name in a pruned model of what is called ``target`` in the original.

    It is the same one, with underscores behind parts such as ``graph`` and ``class``.

    Args:
        model: the original.
        target: the name of a module or tensor in it.
        besides: a module which has other attributes that must not be replaced.

    Returns:
        The new name, and those of the modules that it lies in, with the old ones.
    """
    names: dict[str, str] = {}
    owner: object = model
    old: list[str] = []
    new: list[str] = []
    for part in target.split("."):
        other = part
        if iskeyword(part) or (not old and part in taken()):
            while iskeyword(other) or other == part or hasattr(owner, other):
                other += "_"
            while not old and besides is not None and hasattr(besides, other):
                other += "_"
        owner = getattr(owner, part, None)
        old.append(part)
        new.append(other)
        names[".".join(new)] = ".".join(old)
    return names


def old_name(name: str, renamed: Mapping[str, str]) -> str:
    """The original's name of what is ``name`` in a pruned model.

    Args:
        name: of a module or tensor.
        renamed: the old names of some modules and tensors, by the new ones.
    """
    place, rest = name, ""
    while place:
        if place in renamed:
            return renamed[place] + rest
        place, dot, last = place.rpartition(".")
        rest = f"{dot}{last}{rest}"
    return name
