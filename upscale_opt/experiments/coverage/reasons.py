"""The reasons why operations are opaque, without the names of single operations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from upscale_opt.experiments.coverage.records import Reason
from upscale_opt.ir.graph import ChannelGraph, Opaque

_CODE = ("aten.", "torch.", "torchvision.", "operator.", "math.")
_NAME = re.compile(r"[A-Za-z_][\w.]*\w")


def reasons(graphs: Iterable[ChannelGraph]) -> tuple[Reason, ...]:
    """The reasons of all opaque operations, the most frequent first."""
    counts: Counter[str] = Counter()
    for graph in graphs:
        known = _names(graph)
        counts.update(
            _anonymous(op.reason, known) for op in graph.operations if isinstance(op, Opaque)
        )
    return tuple(Reason(text=text, operations=count) for text, count in counts.most_common())


def _names(graph: ChannelGraph) -> dict[str, str]:
    """The names of operations and tensors, each with the words that stand for it in a reason.

    Names of one word, such as ``add``, may be words as well, and are left.
    """
    return {
        name: "an operation"
        for name in (*(op.name for op in graph.operations), *graph.tensors)
        if "_" in name or any(sign.isdigit() for sign in name)
    }


def _anonymous(reason: str, names: dict[str, str]) -> str:
    def stands_for(match: re.Match[str]) -> str:
        name = match[0]
        if "." in name and not name.startswith(_CODE):
            return "a parameter"
        return names.get(name, name)

    text = _NAME.sub(stands_for, reason)
    for what in ("operation", "parameter"):
        text = re.sub(rf"an? {what}(, an? {what})+", f"several {what}s", text)
    return text
