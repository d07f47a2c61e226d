"""The bars of the benchmark, and whether they are met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from upscale_opt.experiments.bench.ratios import geometric_mean
from upscale_opt.experiments.bench.records import BenchRecord, Cell

DENSE = ("densenet121", "densenet169", "densenet201")


@dataclass(frozen=True)
class Worst:
    """The largest of several ratios.

    Attributes:
        ratio: it.
        name: whose it is.
    """

    ratio: float
    name: str


@dataclass(frozen=True)
class Bar:
    """A bar, in one cell.

    Attributes:
        text: what is asked for.
        limit: the largest ratio allowed.
        found: what was measured, with the network that it is of; ``None`` if nothing was.
    """

    text: str
    limit: float
    found: Worst | None

    @property
    def verdict(self) -> str:
        """``"met"``, ``"missed"`` or ``"not measured"``."""
        if self.found is None:
            return "not measured"
        return "met" if self.found.ratio <= self.limit else "missed"


def cells_of(records: Sequence[BenchRecord]) -> dict[tuple[int, str, str], list[BenchRecord]]:
    """The records by cell (batch size, memory format, mode), in their order."""
    found: dict[tuple[int, str, str], list[BenchRecord]] = {}
    for record in records:
        for cell in record.cells:
            found.setdefault(cell.key, []).append(record)
    return found


def cell_of(record: BenchRecord, key: tuple[int, str, str]) -> Cell:
    """One cell of a record.

    Raises:
        KeyError: if it has no such cell.
    """
    for cell in record.cells:
        if cell.key == key:
            return cell
    raise KeyError(key)


def ratios(
    records: Sequence[BenchRecord], key: tuple[int, str, str], variant: str, base: str
) -> dict[str, float]:
    """For each network with both, the median ratio of one variant's time over another's."""
    found = {}
    for record in records:
        ratio = cell_of(record, key).ratio(variant, base)
        if ratio is not None:
            found[record.name] = ratio.median
    return found


def worst(found: dict[str, float]) -> Worst | None:
    """The largest ratio and its network; ``None`` if there are none."""
    if not found:
        return None
    name = max(found, key=lambda name: found[name])
    return Worst(found[name], name)


def bars(records: Sequence[BenchRecord], key: tuple[int, str, str]) -> Iterator[Bar]:
    """The bars for the variant ``latency``, in one cell of these records."""
    beside_theirs = ratios(records, key, "latency", "upscale")
    dense = {name: beside_theirs[name] for name in DENSE if name in beside_theirs}
    yield Bar("latency / upscale, each network", 1.03, worst(beside_theirs))
    yield Bar("latency / upscale, densenet121, 169 and 201", 0.75, worst(dense))
    yield Bar(
        "latency / unpruned, each network", 1.0, worst(ratios(records, key, "latency", "unpruned"))
    )
    to_floor = ratios(records, key, "latency", "floor")
    mean = geometric_mean(list(to_floor.values()))
    yield Bar(
        "latency / floor, geometric mean",
        1.05,
        None if mean is None else Worst(mean, f"mean of {len(to_floor)}"),
    )
