"""The benchmark: variants, ratios, records, tables, and the page."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import call
from torch import Tensor, nn

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.bench.bars import bars
from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.names import DEFAULT_VARIANTS
from upscale_opt.experiments.bench.page import BEGIN, END, read_page, write_page
from upscale_opt.experiments.bench.ratios import geometric_mean, ratio_of
from upscale_opt.experiments.bench.records import (
    BenchRecord,
    Cell,
    Export,
    Machine,
    Ratio,
    Settings,
    Time,
    done_before,
)
from upscale_opt.experiments.bench.sweeping import record_of
from upscale_opt.experiments.bench.tables import tables
from upscale_opt.experiments.bench.variants import Subject
from upscale_opt.experiments.processes import Ended
from upscale_opt.experiments.records import Store
from upscale_opt.materializing.gathered import gathered
from upscale_opt.measuring.in_turn import interleaved

SMALL = "topology/residual_stage"
OURS = ("unpruned", "gather", "constrained", "copies", "floor")
QUICK = Settings(rounds=2, variants=OURS)


# Ratios and rounds.


def test_ratios_are_of_the_same_rounds() -> None:
    base = [1.0, 10.0, 100.0, 1000.0]
    ratio = ratio_of([2 * seconds for seconds in base], base)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_median_and_narrows_with_rounds() -> None:
    few = [1.0, 1.1, 0.9, 1.3, 0.8] * 2
    ratio, many = ratio_of(few, [1.0] * 10), ratio_of(few * 40, [1.0] * 400)
    assert ratio.median == many.median == 1.0
    assert 0.8 <= ratio.low < 1.0 < ratio.high <= 1.3
    assert many.high - many.low < ratio.high - ratio.low
    assert ratio == ratio_of(few, [1.0] * 10), "the same seed, the same interval"


@pytest.mark.parametrize("base", [[], [1.0]])
def test_rounds_must_match(base: list[float]) -> None:
    with pytest.raises(ValueError, match="rounds cannot be compared"):
        ratio_of([1.0, 2.0] if base else [], base)


def test_the_geometric_mean() -> None:
    assert geometric_mean([]) is None
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)


def test_every_round_runs_everything_once_in_a_new_order() -> None:
    order: list[str] = []

    def clock(name: str) -> Any:
        def measure() -> float:
            order.append(name)
            return len(order)

        return measure

    names = ["a", "b", "c"]
    found = interleaved({name: clock(name) for name in names}, rounds=20, seconds=0)
    assert {len(own) for own in found.values()} == {20}
    rounds = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > 2
    assert len(interleaved({"a": clock("a")}, rounds=None, seconds=0)["a"]) == 10


# Variants and records.


def test_a_network_is_timed_in_all_cells() -> None:
    settings = QUICK.model_copy(update={"batches": (1, 3), "formats": ("contiguous",)})
    record = bench(Task(SMALL, settings))
    assert record.problem == ""
    assert [cell.key for cell in record.cells] == [
        (1, "contiguous", "eager"),
        (3, "contiguous", "eager"),
    ]
    cell = record.cells[1]
    assert cell.rounds == 2
    for variant in OURS:
        export, time = record.export(variant, cell), cell.time_of(variant)
        assert export is not None
        assert time is not None
        assert time.problem == export.problem == ""
        assert time.milliseconds is not None
        assert time.milliseconds > 0
        assert time.ratios.keys() == {"unpruned", "floor"} - {variant}
        assert export.parameters > 0
        assert export.multiply_adds > 0
        if variant in ("gather", "constrained", "copies"):
            assert export.deviation is not None
            assert export.deviation < 1e-10
    moved = {e.variant: e.moved["contiguous"] for e in record.exports}
    assert moved["gather"] > moved["copies"] > moved["floor"] == moved["unpruned"] == 0
    floors = [e for e in record.exports if e.variant == "floor"]
    assert [(e.batch, e.format) for e in floors] == [(1, "contiguous"), (3, "contiguous")]
    assert {e.made_of for e in floors} <= {"latency", "copies"}
    assert record.machine.torch == torch.__version__
    assert record.machine.threads == settings.threads
    assert record.machine.cpu
    assert BenchRecord.from_json(record.to_json()) == record


def test_all_variants_are_of_the_same_masked_network() -> None:
    subject = Subject(SMALL, Settings(variants=DEFAULT_VARIANTS))
    inputs = subject.inputs(2)
    want = call(subject.masked, inputs)
    for variant in ("gather", "copies"):
        model = subject.built(variant, 1, "contiguous").model
        assert model is not None
        assert torch.allclose(call(model, inputs), want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(call(subject.unpruned, inputs), want, rtol=1e-2, atol=1e-2)
    constrained = subject.built("constrained", 1, "contiguous")
    assert constrained.export.copied_channels == 0


def test_gathering_everywhere_copies_more() -> None:
    subject = Subject(SMALL, Settings(variants=("copies",)))
    model: Any = subject.built("copies", 1, "contiguous").model
    few = model.solution.copied
    assert few == model.solution.objective_value
    assert gathered(model.solution).copied > few


def test_a_missing_apple_upscale_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upscale", None)
    settings = QUICK.model_copy(update={"variants": ("unpruned", "upscale", "copies")})
    record = bench(Task(SMALL, settings))
    assert record.problem == ""
    (cell,) = record.cells
    for found in (record.export("upscale", cell), cell.time_of("upscale")):
        assert found is not None
        assert "pip install --no-deps apple-upscale" in found.problem
    assert cell.ratio("copies", "upscale") is None
    assert cell.ratio("copies", "unpruned") is not None
    assert "apple-upscale is not installed" in tables([record])


class Theirs:
    """Stands for UPSCALE's manager: leaves the network as it is, or spoils it."""

    spoils = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.spec = self
        self.tensor_to_input_activation_indices = {"a": range(4), "b": [1, 3, 5]}

    def compute(self, inputs: list[Tensor]) -> Theirs:
        return self

    def prune(self, is_not_ane: bool) -> None:
        if self.spoils:
            with torch.no_grad():
                next(self.model.parameters()).mul_(1.5)


@pytest.mark.parametrize("spoils", [False, True])
def test_what_apple_upscale_exports_is_checked(
    monkeypatch: pytest.MonkeyPatch, spoils: bool
) -> None:
    module = type(sys)("upscale")
    monkeypatch.setattr(Theirs, "spoils", spoils)
    monkeypatch.setattr(module, "PruningManager", Theirs, raising=False)
    monkeypatch.setitem(sys.modules, "upscale", module)
    built = Subject(SMALL, QUICK).built("upscale", 1, "contiguous")
    if spoils:
        assert built.model is None
        assert "deviates by" in built.export.problem
    else:
        assert built.export.deviation == 0
        assert built.export.copied_channels == 3


def test_one_variants_error_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("nobody's")

    monkeypatch.setattr("upscale_opt.experiments.bench.variants.constrain", broken)
    settings = QUICK.model_copy(update={"variants": ("unpruned", "constrained", "copies")})
    record = bench(Task(SMALL, settings))
    (cell,) = record.cells
    assert record.problem == ""
    spoiled, other = cell.time_of("constrained"), cell.time_of("copies")
    assert spoiled is not None
    assert other is not None
    assert spoiled.problem == 'KeyError: "nobody\'s"'
    assert other.milliseconds is not None


def test_a_networks_error_is_part_of_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr("upscale_opt.experiments.bench.variants.trace", broken)
    record = bench(Task(SMALL, QUICK))
    assert record.problem == "MemoryError: full"
    assert record.cells == ()


def test_a_killed_process_leaves_a_record(tmp_path: Path) -> None:
    record = record_of(Ended(-9), Task(SMALL, QUICK))
    assert "killed by signal 9" in record.problem
    store = Store(tmp_path, BenchRecord)
    store.put(SMALL, record)
    assert done_before(store, SMALL, QUICK) is None


def test_records_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    record = BenchRecord(name=SMALL, settings=QUICK)
    store = Store(tmp_path, BenchRecord)
    assert done_before(store, SMALL, QUICK) is None
    store.put(SMALL, record)
    assert done_before(store, SMALL, QUICK) == record
    for change in ({"rounds": 3}, {"threads": 2}, {"cost_models": ("0123",)}):
        other = QUICK.model_copy(update=change)
        assert done_before(store, SMALL, other) is None


# Tables and the page.


def made_up(name: str, latency: float, *, upscale: bool = True) -> BenchRecord:
    """A network of which all is known: unpruned 10 ms, UPSCALE 8 ms, floor 5 ms."""
    names = ("unpruned", "upscale", "latency", "floor")
    milliseconds = {"unpruned": 10.0, "upscale": 8.0, "latency": latency, "floor": 5.0}
    problem = "apple-upscale fails: a | b"
    if not upscale:
        del milliseconds["upscale"]

    def ratio(own: float, base: float) -> Ratio:
        return Ratio(median=own / base, low=own / base - 0.1, high=own / base + 0.1)

    times = tuple(
        Time(
            variant=v,
            milliseconds=milliseconds[v],
            ratios={
                b: ratio(milliseconds[v], milliseconds[b])
                for b in ("upscale", "unpruned", "floor")
                if b in milliseconds and b != v
            },
        )
        if v in milliseconds
        else Time(variant=v, problem=problem)
        for v in names
    )
    exports = tuple(
        Export(
            variant=v, multiply_adds=7_000_000, copied_channels=40, moved={"contiguous": 3_140_000}
        )
        for v in names
    )
    return BenchRecord(
        name=name,
        settings=Settings(batches=(8,), variants=names),
        machine=Machine(device="a_chip", cpu="a_chip", torch="2.0", threads=1),
        exports=exports,
        cells=(Cell(batch=8, format="contiguous", rounds=12, times=times),),
    )


def test_tables_say_what_was_measured() -> None:
    records = [made_up("densenet121", 6.0), made_up("one", 9.0), made_up("two", 6.0, upscale=False)]
    text = tables(records)
    assert "Measured on: a\\_chip, float32, torch 2.0, 1 thread;" in text
    lines = text.splitlines()
    own = (
        "| densenet121 | 12 | 10.00 | 8.00 | 6.00 | 5.00 | 0.750 (0.650–0.850) | "
        "0.600 (0.500–0.700) | 1.200 (1.100–1.300) |"
    )
    assert own in lines
    (mean,) = (line for line in lines if "op by op | latency | " in line)
    cells = mean.split(" | ")
    assert cells[2:5] == [
        f"{math.sqrt(0.75 * 9 / 8):.3f} (2)",
        f"{(0.6 * 0.9 * 0.6) ** (1 / 3):.3f} (3)",
        f"{(1.2 * 1.8 * 1.2) ** (1 / 3):.3f} (3)",
    ]
    assert cells[5:] == ["1.125 (one)", "0.900 (one) |"]
    assert "| two | contiguous | MB moved | 3.14 | 3.14 | 3.14 | 3.14 |" in lines
    assert "* *upscale* of two: apple-upscale fails: a \\| b" in lines


def test_bars_are_met_or_missed() -> None:
    key = (8, "contiguous", "eager")
    verdicts = [bar.verdict for bar in bars([made_up("densenet121", 6.0)], key)]
    assert verdicts == ["met", "met", "met", "missed"]
    verdicts = [bar.verdict for bar in bars([made_up("densenet121", 11.0)], key)]
    assert verdicts == ["missed"] * 4
    record = made_up("one", 5.0, upscale=False)
    found = list(bars([record, made_up("two", 5.0)], key))
    assert [bar.verdict for bar in found] == ["met", "not measured", "met", "met"]
    assert found[0].found is not None
    assert found[0].found.name == "two"


def test_a_page_keeps_what_is_around_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text(f"# Mine\n\nabove\n{BEGIN}\nold\n{END}\nbelow\n")
    written = write_page(page, [made_up("one", 6.0)], "upscale-opt bench one")
    text = page.read_text()
    assert text.startswith(f"# Mine\n\nabove\n{BEGIN}\n")
    assert text.endswith(f"{END}\nbelow\n")
    assert "old" not in text
    pictures = [tmp_path / "speed" / f"over-{b}.png" for b in ("upscale", "unpruned", "floor")]
    assert written == [page, *pictures]
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"(speed/{picture.name})" in text
    bytes_before = pictures[0].read_bytes()
    write_page(page, [made_up("one", 6.0)], "upscale-opt bench one")
    assert page.read_text() == text
    assert pictures[0].read_bytes() == bytes_before
    page.write_text("no markers")
    with pytest.raises(UpscaleError, match="no place for the tables"):
        read_page(page)
