"""Curves of what other budgets would lose: one for each resource, the choice on it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from upscale_opt.ir.choice import Choice, ResourceUse
from upscale_opt.solver.selection.setting import NOUNS

_WIDTH, _HEIGHT = 400.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 22.0, 12.0, 34.0
"""Margins, in the picture's units, which are pixels on a phone."""

_ABOVE = 4.0
"""Pictures end at so many times the choice's own loss."""


def curves(choice: Choice) -> Iterator[str]:
    """The section's HTML; nothing if the choice knows of no other budgets."""
    if len(choice.trade_off) < 2:
        return
    yield '<section class="notes curves"><h2>What other budgets would lose</h2><div>'
    for at, resource in enumerate(choice.resources):
        points = [(point.shares[at], point.loss) for point in choice.trade_off]
        yield _picture(resource, choice.loss, points)
    yield (
        '</div><p class="note">A layer’s loss is the part of what it hands on that its remaining '
        "weights cannot make good, by how much the network’s output feels it. The dot is this "
        "choice, the curve a quick look at others, copies not counted: where it turns steep, "
        "smaller budgets begin to cost accuracy.</p></section>"
    )


def _picture(resource: ResourceUse, loss: float, points: Sequence[tuple[float, float]]) -> str:
    greatest = max(lost for _, lost in points)
    top = min(greatest, _ABOVE * loss) if loss else greatest
    top = max(top, loss) or 1.0

    def place(share: float, lost: float) -> tuple[float, float]:
        across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * min(share, 1.0), _TOP + down * (1 - lost / top)

    def text(x: float, y: float, words: str, anchor: str) -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{html.escape(words)}</text>'

    def line(*ends: float) -> str:
        return '<path class="grid" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>'.format(*ends)

    name = NOUNS[resource.resource]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*p) for p in _cut(points, top)))
    x, y = place(resource.share, loss)
    label = f"{resource.share:.0%} of the {name}, loss {loss:.3g}"
    short = f"{resource.share:.0%}, loss {loss:.3g}"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="Loss against {name}; this choice: {html.escape(label)}">'
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        left, bottom = place(share, 0)
        parts += [line(left, _TOP, left, bottom), text(left, bottom + 14, f"{share:.0%}", "middle")]
    for part in (0.0, 0.5, 1.0):
        left, height = place(0, part * top)
        parts.append(line(left, height, _WIDTH - _RIGHT, height))
        parts.append(text(left - 5, height + 4, f"{part * top:.2g}", "end"))
    after = x < _WIDTH * 0.6
    parts += [
        text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 4, f"{name} left", "middle"),
        f'<path class="curve" d="M{path}"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
        text(x + (9 if after else -9), y - 8, short, "start" if after else "end"),
        "</svg>",
    ]
    return "".join(parts)


def _cut(points: Sequence[tuple[float, float]], top: float) -> Iterator[tuple[float, float]]:
    """The curve up to a loss, where it ends between two points."""
    before: tuple[float, float] | None = None
    for share, lost in points:
        if lost > top:
            if before is not None:
                part = (top - before[1]) / (lost - before[1])
                yield before[0] + part * (share - before[0]), top
            return
        yield share, lost
        before = share, lost
