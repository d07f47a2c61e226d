"""Masks: which slices of each parameter are kept; all others are zero."""

from __future__ import annotations

from typing import ClassVar

from upscale_opt.errors import MaskError
from upscale_opt.ir.base import Document
from upscale_opt.ir.graph import ChannelGraph, maskable_axes, slices_of
from upscale_opt.ir.ids import Ids


class Masks(Document):
    """Per parameter and axis, the slices kept. What is not listed is kept entirely.

    Attributes:
        kept: for each parameter name, for each axis, the indices of slices that are not (all)
            zero, ascending. Along the short axis of a grouped convolution's weight (see
            :class:`~upscale_opt.ir.graph.Layer`) indices count channels, group after group.
        graph_fingerprint: of the parameters and axes of the graph that they were made for
            (:attr:`~upscale_opt.ir.graph.ChannelGraph.masks_fingerprint`); they fit no other.
            ``None`` for any that has what they name.
    """

    what: ClassVar[str] = "masks"
    article: ClassVar[str] = ""

    kept: dict[str, dict[int, Ids]]
    graph_fingerprint: str | None = None

    def __repr__(self) -> str:
        lists = [kept for by_axis in self.kept.values() for kept in by_axis.values()]
        return (
            f"Masks({sum(map(len, lists)):,} slices kept on {len(lists):,} axes of "
            f"{len(self.kept):,} parameters)"
        )

    def kept_on(self, parameter: str, axis: int, size: int) -> frozenset[int]:
        """The slices of ``parameter`` kept along ``axis``, which has ``size`` slices."""
        kept = self.kept.get(parameter, {}).get(axis)
        return frozenset(range(size)) if kept is None else frozenset(kept)

    def check(self, graph: ChannelGraph) -> None:
        """Check that the masks fit ``graph``.

        Raises:
            MaskError: naming the parameter, axis or index that does not.
            SchemaError: if ``graph`` is not a graph.
        """
        ChannelGraph.require(graph)
        axes = maskable_axes(graph)
        another = self.graph_fingerprint not in (None, graph.masks_fingerprint)
        for name, by_axis in self.kept.items():
            if another:
                raise MaskError(
                    f"these masks are of another graph: {self._differs(graph)}; make masks for "
                    "this one (upscale_opt.masks_of, choose_masks), or trace the model that they "
                    "were made for"
                )
            if name not in graph.parameters:
                raise MaskError(
                    f"masks name the parameter {name!r}, which the graph does not have; "
                    "were they made for another model?"
                )
            for axis, kept in by_axis.items():
                if axis not in axes.get(name, ()):
                    known = ", ".join(map(str, axes.get(name, ()))) or "none"
                    raise MaskError(
                        f"masks name axis {axis} of {name!r}; its channel axes are {known}"
                    )
                size = slices_of(graph, name, axis)
                if kept and max(kept) >= size:
                    raise MaskError(
                        f"masks keep index {max(kept)} on axis {axis} of {name!r}, which has only "
                        f"{size} slices"
                    )
                if len(set(kept)) != len(kept):
                    raise MaskError(f"masks list an index twice on axis {axis} of {name!r}")

    def _differs(self, graph: ChannelGraph) -> str:
        """Say how another graph shows."""
        axes = maskable_axes(graph)
        for name, by_axis in self.kept.items():
            if name not in axes:
                return f"they name the parameter {name!r}, which this graph does not have"
            if by_axis.keys() != set(axes[name]):
                return f"{name!r} has the channel axes {axes[name]} here"
        lacking = next((name for name in axes if name not in self.kept), None)
        return "its parameters have other shapes" if lacking is None else f"it has {lacking!r}, too"
