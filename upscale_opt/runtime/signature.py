"""The signatures of pruned models: parameters of any names, and results of any structure."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, _custom_builtins, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree


class Signature(_PyTreeCodeGen):
    """Writes a program's code for callers who have other names for its parameters.

    Attributes:
        names: the parameters' names for callers, by those in the program, where they differ.
    """

    def __init__(
        self,
        results: pytree.TreeSpec | None = None,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """A program that returns the leaves of ``results``, if given, in a tuple."""
        flat = pytree.tree_structure(())
        super().__init__(_PyTreeInfo([], flat, results))
        self.names = dict(names)

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **options: Any) -> str:
        """The code in front of the program's own."""
        if not self.names:
            return CodeGen.gen_fn_def(self, free_vars, maybe_return_annotation, **options)
        outer, inner, passed = ["self"], ["self"], ["self"]
        starred = False
        for written in free_vars:
            name, equals, default = map(str.strip, written.partition("="))
            stars, name = name[: name.count("*")], name.lstrip("*")
            given = self.names.get(name, name)
            outer.append(f"{stars}{given}{equals}{default}")
            inner.append(stars + name)
            passed.append(f"{name}={given}" if starred and not stars else stars + given)
            starred = starred or bool(stars)
        program = "program"
        while any(program in names for names in (self.names.values(), inner)):
            program += "_"
        return (
            f"def forward({', '.join(outer)}){maybe_return_annotation}:\n"
            f"    return {program}({', '.join(passed)})\n\n"
            f"def {program}({', '.join(inner)}){maybe_return_annotation}:"
        )

    process_inputs = CodeGen.process_inputs


class Rereader(fx.Tracer):
    """Reads a program again from its code, as pickles of it are."""

    proxy_buffer_attributes = True  # else updates of buffers would run now, and never again


def results_of(graph: fx.Graph) -> pytree.TreeSpec | None:
    """The structure of what a program returns, if its output lists the leaves only."""
    return getattr(getattr(graph._codegen, "pytree_info", None), "out_spec", None)


def name_parameters(graph: fx.Graph) -> None:
    """Rename a program's parameters where its code uses their names for something else.

    Callers go on using the old names.
    """
    places = [node for node in graph.nodes if node.op == "placeholder"]
    known = {str(node.target).lstrip("*") for node in places}
    taken = {*_custom_builtins, *_SPELLED, *_called(graph)} & known
    if not taken:
        return
    names: dict[str, str] = {}
    for node in places:
        name = str(node.target).lstrip("*")
        if name in taken:
            other = name
            while other in known:
                other += "_"
            known.add(other)
            names[other] = name
            node.target = str(node.target).replace(name, other)
    graph.set_codegen(Signature(results_of(graph), names))


_SPELLED = {"getattr", "setattr", "slice", "complex"}
"""Functions that the code of programs uses besides those that are called."""


def _called(graph: fx.Graph) -> set[str]:
    """The names of Python's functions that a program calls."""
    own = {id(value): name for name, value in vars(builtins).items()}
    return {own[id(node.target)] for node in graph.nodes if id(node.target) in own}
