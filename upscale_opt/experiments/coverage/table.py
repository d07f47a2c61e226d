"""The records as Markdown: a table per group, and why what is opaque is."""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from typing import get_args

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.coverage.records import NetworkRecord, SideRecord
from upscale_opt.verifying.elsewhere import What

BEGIN = "<!-- coverage:begin -->"
END = "<!-- coverage:end -->"

_COLUMNS = (
    ("network", "---"),
    ("parameters", "---:"),
    ("capture", "---"),
    ("deviation", "---:"),
    ("another batch", "---"),
    ("another size", "---"),
    ("removed: input", "---:"),
    ("output", "---:"),
    ("both", "---:"),
    ("copied channels", "---:"),
    ("opaque", "---"),
    ("trace", "---:"),
    ("solve", "---:"),
    ("materialise", "---:"),
    ("memory", "---:"),
)

_OTHERS: tuple[What, ...] = get_args(What)

_STATUSES = ("differs", "failed", "refused", "partly", "equal", "not taken")
"""From the worst to what says nothing about the export."""

_LEGEND = """\
*Deviation*: the largest of the three sides, relative to the largest output; in float64 (up to 1e-10
counts as lossless), or in float32 where it says so (up to 1e-4). *Own noise*: it is more, but no
more than the masked model deviates from itself where it rounds inside, as `verify` allows.
*Another batch*, *another size*: the same export beside the masked model on a batch and on images
that were not traced: equal, refused by name, or not taken by the model itself; *partly*: equal on
one, and another refused where the code decides by sizes. *Removed*: of the
weights that the masks set to zero, the share that the export lacks. *Copied channels*: with masks
on the input side, output side, and both. *Opaque*: operations around which all channels stay, by
reason; these are listed below the table. Seconds are those of the slowest side, on one thread;
memory is the peak of the process."""


def page(before: str | None, records: Sequence[NetworkRecord], heading: str) -> str:
    """A page with the tables between its markers; groups without records keep what they have there.

    Args:
        before: the page as it is; ``None`` if there is none.
        records: of all networks.
        heading: what to say above the tables.

    Raises:
        UpscaleError: if the page has no two markers, in their order.
    """
    text = f"# Model support\n\n{BEGIN}\n{END}\n" if before is None else before
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UpscaleError(f"the page has no place for the tables: no lines {BEGIN} and {END}")
    written = _sections(rest.partition(END)[0]) | _sections(tables(records))
    body = "\n".join(written[group] for group in sorted(written))
    return f"{head}{BEGIN}\n\n{heading}\n\n{_LEGEND}\n\n{body}\n{END}{tail}"


def tables(records: Sequence[NetworkRecord]) -> str:
    """A section for every group."""
    groups: dict[str, list[NetworkRecord]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    return "\n".join(_section(group, of_group) for group, of_group in groups.items())


def _sections(text: str) -> dict[str, str]:
    """The sections of groups, by name."""
    _, *sections = f"\n{text}".split("\n### ")
    return {section.split("\n")[0]: f"### {section.strip()}\n" for section in sections}


def summary(records: Sequence[NetworkRecord]) -> list[str]:
    """A line per group."""
    groups: dict[str, list[NetworkRecord]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    return [f"{group}: {_share_line(of_group)}" for group, of_group in groups.items()]


def _share_line(records: Sequence[NetworkRecord]) -> str:
    lossless = sum(record.lossless for record in records)
    noisy = sum(record.noisy for record in records)
    own = f" ({noisy} up to own noise)" if noisy else ""
    understood = sum(record.understood for record in records)
    masked, left = Counter[str](), Counter[str]()
    for record in records:
        for side in record.sides:
            masked[side.side] += side.masked
            left[side.side] += side.left
    others = "; ".join(
        f"{what}: {', '.join(f'{counts[s]} {s}' for s in _STATUSES if counts[s])}"
        for what in _OTHERS
        if (counts := Counter(_worst(record.sides, what) for record in records)).total()
    )
    removed = ", ".join(
        f"{100 * (1 - left[side] / masked[side]):.1f} % ({side})" for side in masked if masked[side]
    )
    return (
        f"{lossless} of {len(records)} lossless on all sides{own}, {understood} of {len(records)} "
        f"without opaque operations; {others}; removed of what was masked: {removed or '-'}"
    )


def _section(group: str, records: Sequence[NetworkRecord]) -> str:
    letters = _letters(records)
    lines = [f"### {group}", "", f"{_share_line(records)}.", ""]
    lines.append("| " + " | ".join(name for name, _ in _COLUMNS) + " |")
    lines.append("| " + " | ".join(rule for _, rule in _COLUMNS) + " |")
    lines += ["| " + " | ".join(_cells(record, letters)) + " |" for record in records]
    if letters:
        lines.append("")
    for text, letter in letters.items():
        having = [record for record in records if text in _opaque(record)]
        count = sum(_opaque(record)[text] for record in having)
        lines.append(
            f"* **{letter}**: {_plain(text)} ({_counted(count, 'operation')}, "
            f"{_counted(len(having), 'network')})"
        )
    problems = list(_problems(records))
    if problems:
        lines += ["", "What is not lossless, or refused:", "", *problems]
    return "\n".join([*lines, ""])


def _letters(records: Iterable[NetworkRecord]) -> dict[str, str]:
    """A letter for every reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(_opaque(record))
    one = list(string.ascii_lowercase)
    names = [*one, *("".join(pair) for pair in product(one, one))]
    return {text: letter for (text, _), letter in zip(counts.most_common(), names, strict=False)}


def _opaque(record: NetworkRecord) -> dict[str, int]:
    """Operations by reason; the same on all sides, as masks do not change the graph."""
    most: dict[str, int] = {}
    for side in record.sides:
        for reason in side.opaque:
            most[reason.text] = max(most.get(reason.text, 0), reason.operations)
    return most


def _cells(record: NetworkRecord, letters: dict[str, str]) -> list[str]:
    by_side = {side.side: side for side in record.sides}
    sides = [by_side[name] for name in ("input", "output", "both") if name in by_side]
    done = [side for side in sides if side.status != "failed"]
    opaque = ", ".join(f"{count} {letters[text]}" for text, count in _opaque(record).items())
    peak = f"{record.peak_bytes / 2**30:.1f} GB" if record.peak_bytes else "-"
    return [
        record.name.partition("/")[2] or record.name,
        f"{record.parameters / 1e6:.1f} M" if record.parameters else "-",
        ", ".join(dict.fromkeys(side.capture for side in done)) or "-",
        _deviation(done),
        *(_elsewhere(done, what) for what in _OTHERS),
        *([_removed(side) for side in sides] if sides else ["failed"] * 3),
        " / ".join(f"{side.copied:,}" if side in done else "-" for side in sides) or "-",
        opaque or ("-" if done else ""),
        *(
            f"{max(getattr(side, step) for side in done):.1f} s" if done else "-"
            for step in ("trace", "solve", "materialize")
        ),
        peak,
    ]


def _deviation(done: Sequence[SideRecord]) -> str:
    known = [side.deviation for side in done if side.deviation is not None]
    if not known:
        return "-"
    more = [] if done[0].dtype == "float64" else [done[0].dtype]
    more += ["own noise"] if any(side.status == "own noise" for side in done) else []
    return f"{max(known):.0e}" + (f" ({', '.join(more)})" if more else "")


def _elsewhere(done: Sequence[SideRecord], what: str) -> str:
    worst = _worst(done, what)
    return f"**{worst}**" if worst in ("differs", "failed") else worst


def _worst(sides: Sequence[SideRecord], what: str) -> str:
    """The worst status of the sides on other inputs; ``"-"`` if none was tried."""
    found = {other.status for side in sides for other in side.elsewhere if other.what == what}
    return next((status for status in _STATUSES if status in found), "-")


def _removed(side: SideRecord) -> str:
    if side.status == "failed":
        return "failed"
    share = f"{100 * (1 - side.left / side.masked):.1f} %" if side.masked else "-"
    return share if side.status != "lossy" else f"**lossy**, {share}"


def _problems(records: Iterable[NetworkRecord]) -> Iterable[str]:
    for record in records:
        if record.problem:
            yield f"* {record.name}: {_plain(record.problem.splitlines()[0])}"
        for side in record.sides:
            if side.status == "lossy":
                yield f"* {record.name}, {side.side}: deviates by {side.deviation or 0:.1e}"
            elif side.status == "own noise":
                far = f"deviates by {side.deviation or 0:.1e}, as {_plain(side.noise)}"
                yield f"* {record.name}, {side.side}: {far}"
            elif side.status == "failed":
                yield f"* {record.name}, {side.side}: {_plain(side.problem.splitlines()[0])}"
            for other in side.elsewhere:
                if other.reason:
                    what = f"{other.what} {other.status}: {_plain(other.reason.splitlines()[0])}"
                    yield f"* {record.name}, {side.side}, {what}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _plain(text: str) -> str:
    """Text that Markdown leaves alone."""
    for sign in "\\`*_<>|":
        text = text.replace(sign, f"\\{sign}")
    return text
