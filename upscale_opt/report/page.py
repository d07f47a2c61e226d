"""``page(solution)``: one HTML file with everything in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import Any

from upscale_opt.errors import VerificationError
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.ids import format_ids
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.report.segments import Column, Row, Segment, find_segments, name_of
from upscale_opt.report.summary import Summary, summarise
from upscale_opt.solver.checking.check import damage
from upscale_opt.solver.checking.explaining import Explanation, explain

_SCRIPTS = ("strips.js", "segment.js", "page.js")


def page(
    solution: Solution,
    graph: ChannelGraph | None = None,
    masks: Masks | None = None,
    choice: Choice | None = None,
    *,
    title: str = "Channel orders",
) -> str:
    """A report on ``solution`` as one HTML page that loads nothing from anywhere.

    It shows every layer before and after; for every segment of the network, which channels each
    read takes, before and after ordering; what is copied, and why; and the bound. PyTorch is not
    needed.

    Args:
        solution: what to report on.
        graph: the graph that was solved. Without it, reads that every order serves alike are named
            but not drawn, and the unpruned network's sizes are missing.
        masks: the masks it was solved with. With graph and masks, the solution is checked, and
            compared with the original order of channels.
        choice: what chose the masks, if a budget did: then layers show what they gave up.
        title: the page's heading; the network's name, say.

    Raises:
        VerificationError: if the solution is damaged, or was made for another graph or masks.
        MaskError: if the masks do not fit the graph.
        SchemaError: if something else is given than these documents.
    """
    Solution.require(solution)
    if graph is not None:
        ChannelGraph.require(graph)
        if solution.graph_fingerprint != graph.fingerprint:
            raise VerificationError(
                "the solution was made for another graph; give the one that was solved"
            )
        broken = damage(graph, solution)
        if broken is not None:
            raise VerificationError(f"the solution is damaged: {broken}; solve again")
    if masks is not None:
        Masks.require(masks)
    if choice is not None:
        Choice.require(choice)
        if graph is not None and choice.graph_fingerprint != graph.masks_fingerprint:
            raise VerificationError("the choice was made for another graph; give its own")
    explanations = {found.read: found for found in explain(solution)}
    summary = summarise(solution, graph, masks, choice, tuple(explanations.values()))
    segments = find_segments(solution, graph)
    first_arena = len(solution.orders) - len(solution.arenas)
    fixed = {} if graph is None else {i: s.fixed for i, s in enumerate(graph.spaces) if s.fixed}
    data = {
        "drawn": graph is not None,
        "fixed": fixed,
        "arenas": list(range(first_arena, len(solution.orders))),
        "segments": [_segment(segment, explanations) for segment in segments],
    }
    return _filled(title, summary, data)


def _segment(segment: Segment, explanations: dict[str, Explanation]) -> dict[str, Any]:
    after = [channel for column in segment.columns for channel in column.after]
    place = {channel: i for i, channel in enumerate(after)}
    return {
        "tensors": segment.tensors,
        "channels": len(after),
        "columns": [_column(column) for column in segment.columns],
        "rows": [_row(row, place, explanations) for row in segment.rows],
    }


def _column(column: Column) -> dict[str, Any]:
    data: dict[str, Any] = {"space": column.space, "after": format_ids(column.after)}
    if list(column.before) != sorted(column.before):
        data["before"] = format_ids(column.before)
    return data


def _row(row: Row, place: dict[int, int], explanations: dict[str, Explanation]) -> dict[str, Any]:
    """A read; its channels are places in the segment's columns, as they are stored."""
    read = row.read
    data: dict[str, Any] = {
        "name": name_of(read),
        "tensor": read.tensor,
        "plan": read.plan,
        "count": len(read.channels),
        "at": format_ids(sorted(place[channel] for channel in row.channels)),
    }
    if row.unwanted:
        data["vain"] = format_ids(sorted(place[channel] for channel in row.unwanted))
    if row.before:
        data["before"] = 1
    if read.kind == "place":
        data["place"] = 1
    if read.plan != "view":
        data["why"] = _why(explanations[name_of(read)])
    return data


def _why(found: Explanation) -> dict[str, Any]:
    if found.reason != "conflict":
        return {"reason": found.reason, "text": found.hindrance or ""}
    return {
        "reason": found.reason,
        "space": found.space,
        "witnesses": found.witnesses,
        "members": [
            {"reads": m.reads, "kind": m.kind, "size": m.size, "has": m.witnesses}
            for m in found.members
        ],
    }


def _filled(title: str, summary: Summary, data: dict[str, Any]) -> str:
    """The template with everything in it; what may run is pinned by its hash."""
    style = _part("page.css")
    script = "\n".join(map(_part, _SCRIPTS))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return Template(_part("template.html")).substitute(
        policy=policy,
        title=html.escape(title),
        summary=summary.html(),
        style=style,
        data=_script_json(data),
        script=script,
    )


def _part(name: str) -> str:
    return (files("upscale_opt.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _script_json(data: Any) -> str:
    """JSON that can stand inside a script element, whatever the names in it are."""
    text = json.dumps(data, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
