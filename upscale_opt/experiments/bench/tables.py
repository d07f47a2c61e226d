"""The records as Markdown: times and ratios by network, what they come to, and what is moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from upscale_opt.experiments.bench.bars import bars, cell_of, cells_of, ratios, worst
from upscale_opt.experiments.bench.names import BASES, MODES, VARIANTS
from upscale_opt.experiments.bench.ratios import geometric_mean
from upscale_opt.experiments.bench.records import BenchRecord, Cell, Time
from upscale_opt.in_runtimes.timing import SLOWER

Key = tuple[int, str, str]


def tables(records: Sequence[BenchRecord]) -> str:
    """All tables, each under its heading."""
    parts = [_variants(records), _machines(records)]
    cells = cells_of(records)
    if cells:
        parts += ["### Summary", *_summary(cells), "### Bars", *_bars(cells)]
    for key, own in cells.items():
        parts += [f"### Times: {title(key)}", *_times(own, key)]
    if cells:
        parts += ["### Moved bytes", *_moved(records)]
    parts += _problems(records)
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(records: Sequence[BenchRecord]) -> list[str]:
    """A line per cell and variant, for a terminal."""
    lines = []
    for key, own in cells_of(records).items():
        for variant in asked(own):
            found = [
                f"{base} {mean:.3f}"
                for base in BASES
                if (mean := geometric_mean(list(ratios(own, key, variant, base).values())))
            ]
            if found:
                lines.append(f"{title(key)}: {variant} / {', '.join(found)}")
    return lines


SAME = ("unpruned", "gather", "unordered", "eager")
"""Variants that compute what our export for a runtime does, and may be taken instead."""


def best_other(cell: Cell) -> tuple[str, float] | None:
    """The fastest of what may be taken instead, and our export's time over it, in rounds."""
    ratios = {name: cell.ratio("latency", name) for name in SAME}
    found = {name: ratio.median for name, ratio in ratios.items() if ratio is not None}
    if not found:
        return None
    name = max(found, key=lambda name: found[name])
    return name, found[name]


def verdicts(records: Sequence[BenchRecord]) -> list[str]:
    """For runtimes other than PyTorch, a line per network and batch: the plan, and if it pays."""
    lines = []
    for record in records:
        for cell in record.cells:
            export, best = record.export("latency", cell), best_other(cell)
            if record.settings.runtime == "eager" or export is None or best is None:
                continue
            name, ratio = best
            line = f"{record.name}, batch {cell.batch}: the plan ({export.plan}) "
            unpruned = cell.ratio("latency", "unpruned")
            if unpruned is not None and unpruned.median > SLOWER:
                line += f"is slower than the unpruned network, {unpruned.median:.3f} of its time; "
            lines.append(f"{line}takes {ratio:.3f} of the time of the best other, {name}")
            if ratio > SLOWER:
                lines[-1] += f": take that ({VARIANTS[name]})"
    return lines


def title(key: Key) -> str:
    """A cell in words, such as ``"batch 8, contiguous, op by op"``."""
    batch, form, mode = key
    return f"batch {batch}, {form}, {MODES.get(mode, mode)}"


def asked(records: Iterable[BenchRecord]) -> list[str]:
    """The variants that somebody asked for, in their order."""
    found = {variant for record in records for variant in record.settings.variants}
    return [variant for variant in VARIANTS if variant in found]


def _variants(records: Sequence[BenchRecord]) -> str:
    known = asked(records)
    return "\n".join(f"* *{name}*: {VARIANTS[name]}." for name in known)


def _machines(records: Sequence[BenchRecord]) -> str:
    """The machines that ran them, and the settings; once for all records that agree."""
    found: dict[str, None] = {}
    for record in records:
        machine, settings = record.machine, record.settings
        if not machine.torch:
            continue
        layers = "all layers" if settings.layers == "all" else "every convolution"
        found[
            f"{machine.device}, {settings.dtype}, torch {machine.torch}, {machine.threads} "
            f"thread{'s' * (machine.threads != 1)}; "
            f"{100 * settings.amount:g} % of the {settings.side} channels of "
            f"{layers} dropped by L2 norm"
        ] = None
    return "\n".join(f"Measured on: {plain(line)}." for line in found)


def _summary(cells: dict[Key, list[BenchRecord]]) -> Iterator[str]:
    yield (
        "Geometric means over networks of the median ratio of times, in brackets over how many; "
        "and the worst network beside UPSCALE's export and beside the unpruned network."
    )
    rows = []
    for key, records in cells.items():
        for variant in asked(records):
            found = {base: ratios(records, key, variant, base) for base in BASES}
            if not any(found.values()):
                continue
            rows.append(
                [
                    title(key),
                    variant,
                    *(_mean(found[base]) for base in BASES),
                    *(_worst(found[base]) for base in ("upscale", "unpruned")),
                ]
            )
    columns = ["cell", "variant", *(f"/ {base}" for base in BASES)]
    yield table([*columns, "worst / upscale", "worst / unpruned"], rows, text=2)


def _bars(cells: dict[Key, list[BenchRecord]]) -> Iterator[str]:
    rows = []
    for key, records in cells.items():
        for bar in bars(records, key):
            found = "-" if bar.found is None else f"{bar.found.ratio:.3f} ({bar.found.name})"
            verdict = "**missed**" if bar.verdict == "missed" else bar.verdict
            rows.append([title(key), bar.text, f"{bar.limit:g}", found, verdict])
    yield table(["cell", "what", "at most", "found", "verdict"], rows, text=2)


def _times(records: Sequence[BenchRecord], key: Key) -> Iterator[str]:
    known = asked(records)
    best = "latency" if _any_ratio(records, key, "latency") else "copies"
    bases = [base for base in BASES if base in known]
    yield (
        "Milliseconds of one forward pass (median); and the ratio of times in one round, with its "
        "median and 95 % interval over the rounds."
    )
    rows = []
    for record in records:
        cell = cell_of(record, key)
        times = [_milliseconds(cell.time_of(variant)) for variant in known]
        compared = [_ratio(cell, best, base) for base in bases]
        rows.append([plain(record.name), f"{cell.rounds}", *times, *compared])
    columns = ["network", "rounds", *known, *(f"{best} / {base}" for base in bases)]
    yield table(columns, rows)
    breaks = list(_breaks(records, key))
    if breaks:
        yield "Graph breaks of the compiler: " + "; ".join(breaks) + "."


def _any_ratio(records: Sequence[BenchRecord], key: Key, variant: str) -> bool:
    times = [cell_of(record, key).time_of(variant) for record in records]
    return any(time is not None and time.milliseconds is not None for time in times)


def _breaks(records: Sequence[BenchRecord], key: Key) -> Iterator[str]:
    for record in records:
        counts = [
            f"{time.variant} {time.graph_breaks}"
            for time in cell_of(record, key).times
            if time.graph_breaks is not None
        ]
        if counts:
            yield f"{plain(record.name)}: {', '.join(counts)}"


def _moved(records: Sequence[BenchRecord]) -> Iterator[str]:
    yield (
        "Megabytes that one forward pass at batch 1 moves (`uo.measuring.moved_bytes`), "
        "multiply-adds and copied channels by the plan."
    )
    known = asked(records)
    rows = []
    for record in records:
        forms = dict.fromkeys(cell.format for cell in record.cells)
        for form in forms:
            cell = next(cell for cell in record.cells if cell.format == form)
            found = [record.export(variant, cell) for variant in known]
            moved = [None if one is None else one.moved.get(form) for one in found]
            megabytes = ["-" if count is None else f"{count / 1e6:.2f}" for count in moved]
            rows.append([plain(record.name), form, "MB moved", *megabytes])
            if form == next(iter(forms)):
                macs = [one.multiply_adds if one else 0 for one in found]
                copied = [one.copied_channels if one else None for one in found]
                size = [f"{count / 1e6:,.1f}" if count else "-" for count in macs]
                channels = ["-" if count is None else f"{count:,}" for count in copied]
                rows.append([plain(record.name), "", "M multiply-adds", *size])
                rows.append([plain(record.name), "", "copied channels", *channels])
    yield table(["network", "format", "what", *known], rows, text=3)


def _problems(records: Sequence[BenchRecord]) -> list[str]:
    """The reasons why variants are missing; networks with one reason together."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        if record.problem:
            found.setdefault(("the network", record.problem), {})[record.name] = None
        for export in record.exports:
            if export.problem:
                found.setdefault((export.variant, export.problem), {})[record.name] = None
        for cell in record.cells:
            for time in cell.times:
                if time.problem:
                    found.setdefault((time.variant, time.problem), {})[record.name] = None
    lines = [
        f"* *{variant}* of {', '.join(plain(name) for name in names)}: {plain(problem)}"
        for (variant, problem), names in found.items()
    ]
    return ["### What is missing, and why", "\n".join(lines)] if lines else []


def _mean(found: dict[str, float]) -> str:
    mean = geometric_mean(list(found.values()))
    return "-" if mean is None else f"{mean:.3f} ({len(found)})"


def _worst(found: dict[str, float]) -> str:
    most = worst(found)
    return "-" if most is None else f"{most.ratio:.3f} ({plain(most.name)})"


def _milliseconds(time: Time | None) -> str:
    return "-" if time is None or time.milliseconds is None else f"{time.milliseconds:.2f}"


def _ratio(cell: Cell, variant: str, base: str) -> str:
    ratio = cell.ratio(variant, base)
    return "-" if ratio is None else str(ratio)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """A Markdown table; all but the first ``text`` columns are aligned to the right."""
    rules = ["---" if number < text else "---:" for number in range(len(columns))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rules, *rows))


def plain(text: str) -> str:
    """Text that Markdown leaves alone."""
    for sign in "\\`*_<>|":
        text = text.replace(sign, f"\\{sign}")
    return text
