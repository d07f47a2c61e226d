"""The table of a network's layers, before and after, as text and for notebooks."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Size:
    """The size of a layer, or of a network.

    Attributes:
        parameters: the numbers in the parameters that the graph knows; buffers do not count, and
            shared ones count where they are used first.
        multiply_adds: of the convolutions and linear layers, with the example's sizes; not those
            of attention, and of what the graph calls opaque.
        nanoseconds: by a cost model, gathers included; 0 without one.
        reads: the channels read; 0 of a network.
        writes: the channels written.
    """

    parameters: int
    multiply_adds: int
    nanoseconds: float = 0.0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: its module's, or the operation's if it has none.
        operation: its name in the graph; ``""`` for the row of everything else.
        kind: what it computes, such as ``"conv 3x3"``.
        before: its size in the unpruned network.
        after: what is left of it; zeros if it is gone, ``None`` without a solution.
        copied: the channels that are gathered for it.
        loss: what the choice gave up there; ``None`` if it did not choose this layer's channels.
    """

    name: str
    operation: str
    kind: str
    before: Size
    after: Size | None = None
    copied: int = 0
    loss: float | None = None


@dataclass(frozen=True)
class LayerTable:
    """A network layer by layer; ``print`` shows it, and so do notebooks.

    Attributes:
        rows: its layers, in the order of execution, then a row of everything else.
        device: whose cost model the times are by; ``""`` if there are none.
    """

    rows: tuple[LayerRow, ...]
    device: str = ""

    @cached_property
    def before(self) -> Size:
        """The size of the unpruned network."""
        return total_of(row.before for row in self.rows)

    @cached_property
    def after(self) -> Size | None:
        """The size of the pruned network; ``None`` without a solution."""
        after = [row.after for row in self.rows if row.after is not None]
        return total_of(after) if after else None

    @property
    def loss(self) -> float | None:
        """The sum of the layers' losses; ``None`` if nothing was chosen."""
        known = [row.loss for row in self.rows if row.loss is not None]
        return sum(known) if known else None

    @property
    def copied(self) -> int:
        """The channels that are gathered, all together."""
        return sum(row.copied for row in self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """The titles: a layer's name and kind, then what there is to say of each."""
        found = ["layer", "kind", "reads", "writes", "parameters", "multiply-adds"]
        if self.device:
            found.append("ms")
        if self.loss is not None:
            found.append("loss")
        if self.after is not None:
            found.append("copied")
        return tuple(found)

    def cells(self) -> Iterator[tuple[str, ...]]:
        """The texts of every row, as :attr:`columns` calls them; the last row is the sum."""
        for row in self.rows:
            yield self._texts(row)
        yield self._texts(
            LayerRow("all", "", "", self.before, self.after, self.copied, self.loss), widths=False
        )

    def _texts(self, row: LayerRow, widths: bool = True) -> tuple[str, ...]:
        pair = (row.before, row.after or row.before)
        (old, new), gone = pair, row.after is not None and not row.after.writes and row.operation
        widths = widths and bool(row.operation)
        texts = [
            row.name,
            "gone" if gone else row.kind,
            _change(old.reads, new.reads) if widths and old.reads else "",
            _change(old.writes, new.writes) if widths and old.writes else "",
            _change(old.parameters, new.parameters),
            _change(old.multiply_adds, new.multiply_adds, _amount),
        ]
        if self.device:
            texts.append(_change(old.nanoseconds, new.nanoseconds, _milliseconds))
        if self.loss is not None:
            texts.append("" if row.loss is None else f"{row.loss:.3g}")
        if self.after is not None:
            texts.append(f"{row.copied:,}" if row.copied else "")
        return tuple(texts)

    @property
    def note(self) -> str:
        """The origin of the times; ``""`` if there are none."""
        return f"ms: estimated by the cost model of {self.device}" if self.device else ""

    def __str__(self) -> str:
        lines = [self.columns, *self.cells()]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def line(texts: Sequence[str]) -> str:
            pairs = list(zip(texts, wide, strict=True))
            left = [text.ljust(width) for text, width in pairs[:2]]
            return "  ".join([*left, *(text.rjust(width) for text, width in pairs[2:])]).rstrip()

        rule = "─" * (sum(wide) + 2 * len(wide) - 2)
        head, *body, total = map(line, lines)
        return "\n".join([head, rule, *body, rule, total, *filter(None, [self.note])])

    def __repr__(self) -> str:
        left = "" if self.after is None else f" of {self.before.parameters:,}"
        size = self.after or self.before
        return f"LayerTable({len(self.rows) - 1} layers, {size.parameters:,}{left} parameters)"

    def _repr_html_(self) -> str:
        """The table in a notebook: wider than its cell, it scrolls."""
        left, right = (
            f' style="text-align:{side};white-space:nowrap;padding:2px 8px"'
            for side in ("left", "right")
        )
        places = [left, left] + [right] * (len(self.columns) - 2)

        def row(tag: str, texts: Sequence[str]) -> str:
            cells = zip(places, texts, strict=True)
            return "".join(f"<{tag}{place}>{html.escape(text)}</{tag}>" for place, text in cells)

        body = "".join(f"<tr>{row('td', texts)}</tr>" for texts in self.cells())
        note = f"<p><small>{html.escape(self.note)}</small></p>" if self.note else ""
        return (
            '<div style="overflow-x:auto"><table><thead><tr>'
            f"{row('th', self.columns)}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )


def total_of(sizes: Iterable[Size]) -> Size:
    """The size of all together, without widths."""
    found = list(sizes)
    return Size(
        sum(size.parameters for size in found),
        sum(size.multiply_adds for size in found),
        sum(size.nanoseconds for size in found),
    )


def _whole(value: float) -> str:
    return f"{round(value):,}"


def _amount(value: float) -> str:
    """Three digits, and thousands or millions behind them.

    >>> _amount(0), _amount(950), _amount(999700), _amount(118013952), _amount(4089184256)
    ('0', '950', '1M', '118M', '4.09G')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            number = f"{value / unit:.3g}" if value < 999.5 * unit else f"{value / unit:,.0f}"
            return f"{number}{letter}"
    return f"{value:.0f}"


def _milliseconds(value: float) -> str:
    return f"{value / 1e6:.3g}"


def _change(old: float, new: float, text: Callable[[float], str] = _whole) -> str:
    """Before and after, or one number if nothing changed."""
    before, after = text(old), text(new)
    return before if before == after else f"{before} → {after}"
