"""The sweep over the catalogue: masks, records, tables, and the command."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upscale_opt.cli import main
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.coverage.covering import BATCH, Task, cover
from upscale_opt.experiments.coverage.masking import mask, run, survey, zeros
from upscale_opt.experiments.coverage.names import GROUPS
from upscale_opt.experiments.coverage.records import (
    NetworkRecord,
    OtherInputs,
    Reason,
    SideRecord,
)
from upscale_opt.experiments.coverage.sweeping import done_before, record_of, sweep
from upscale_opt.experiments.coverage.table import BEGIN, END, page, summary, tables
from upscale_opt.experiments.processes import Ended
from upscale_opt.experiments.records import Store
from upscale_opt.experiments.running import Place
from upscale_opt.models import catalogue
from upscale_opt.pruning.submodules import prune_submodules

SMALL = "topology/residual_stage"


class Grouped(nn.Module):
    """A grouped convolution with a batch norm, and a head that evaluation does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)
        self.auxiliary = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.grouped(self.stem(x))))
        return out


def test_masks_leave_the_ends_alone_and_zero_whole_channels() -> None:
    model = Grouped().eval()
    catalogue.randomize(model)
    x = torch.randn(2, 3, 5, 5)
    seen = survey(model, x)
    assert (seen.first, seen.last) == ({"stem"}, {"last"})
    assert seen.norms == {"grouped": ["norm"]}
    assert not any(name.startswith("auxiliary") for name in seen.used)
    mask(model, "both", 0.5, seen)
    for layer, axis, expected in [
        ("stem", 1, [0]),
        ("stem", 0, [4]),
        ("grouped", 1, [2]),
        ("grouped", 0, [2, 2]),
        ("last", 1, [4]),
        ("last", 0, [0]),
        ("auxiliary", 1, [0]),
    ]:
        weight: Tensor = model.get_submodule(layer).get_parameter("weight")
        zero = (weight.transpose(0, axis).flatten(1) == 0).all(1)
        assert [int(part.sum()) for part in zero.chunk(len(expected))] == expected, layer
    silent = (model.grouped.weight == 0).flatten(1).all(1)
    for name in ("grouped.bias", "norm.weight", "norm.bias"):
        assert torch.equal(model.get_parameter(name) == 0, silent)
    assert zeros(run(model, x)[1]) == 4 * 3 + (8 * 4 - 4 * 2) * 9 + 4 * 4


def test_masks_take_the_slices_of_least_norm() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6))
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([3.0, 1.0, 2.0, 4.0]).expand(6, 4))
    mask(model, "input", 0.5, survey(model, torch.randn(2, 4)))
    assert (model.get_parameter("1.weight") == 0).all(0).tolist() == [0, 1, 1, 0]


class Conv1D(nn.Module):
    """A layer as GPT-2 has it: its weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("width", [6, 4])
def test_masks_know_layers_whose_weight_lies_the_other_way(width: int) -> None:
    model = nn.Sequential(nn.Linear(3, 4), Conv1D(width, 4), nn.Linear(width, 2))
    for side, axis in (("output", 1), ("input", 0)):
        masked = copy.deepcopy(model)
        mask(masked, side, 0.5, survey(masked, torch.randn(2, 3)))
        zero = masked.get_parameter("1.weight") == 0
        assert int(zero.all(1 - axis).sum()) == zero.shape[axis] // 2
        silent = zero.all(0) & (masked.get_parameter("1.bias") == 0)
        assert int(silent.sum()) == (width // 2 if side == "output" else 0)


def test_a_network_is_covered_on_all_sides() -> None:
    record = cover(Task(SMALL))
    assert record is not None
    assert record.lossless
    assert [side.side for side in record.sides] == ["input", "output", "both"]
    for side in record.sides:
        assert side.dtype == "float64"
        assert side.deviation is not None
        assert side.deviation < 1e-10
        assert side.masked > 0
        assert 0 <= side.left < side.masked
        assert side.parameters < record.parameters
        assert [(other.what, other.status) for other in side.elsewhere] == [
            ("another batch", "equal"),
            ("other sizes", "equal"),
        ]
    assert NetworkRecord.from_json(record.to_json()) == record


class Deciding(nn.Module):
    """Its control flow depends on the data; its body's does not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out if bool(out.sum() > 0) else -out


def test_what_cannot_be_traced_is_covered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "build", lambda name, seed: Deciding().eval())
    record = cover(Task(SMALL))
    assert record is not None
    assert record.lossless
    assert not record.understood
    assert {side.capture for side in record.sides} == {"parts"}
    assert all(side.left < side.masked for side in record.sides)
    for side in record.sides:
        assert [other.status for other in side.elsewhere] == ["equal", "equal"]


def test_parts_that_are_wrong_for_another_batch_are_not_lossless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is pruned in place, and yet compared with what it was."""

    def wrong(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        done = prune_submodules(model, *args, **kwargs)
        model.register_forward_hook(lambda *call: call[2] * (1 if len(call[2]) == BATCH else 2))
        return done

    monkeypatch.setattr(catalogue, "build", lambda name, seed: Deciding().eval())
    monkeypatch.setattr("upscale_opt.experiments.coverage.covering.prune_submodules", wrong)
    record = cover(Task(SMALL))
    assert record is not None
    assert [other.status for other in record.sides[0].elsewhere] == ["differs", "equal"]
    assert not record.lossless


def test_large_networks_are_left_out() -> None:
    assert cover(Task(SMALL, skip_larger_than=1)) is None


def test_errors_are_part_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("nobody's")

    monkeypatch.setattr("upscale_opt.experiments.coverage.covering.solve", broken)
    record = cover(Task(SMALL))
    assert record is not None
    assert not record.lossless
    first, *where = record.sides[0].problem.splitlines()
    assert first == 'solve: KeyError: "nobody\'s"'
    assert where


def test_a_deviation_is_lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "upscale_opt.experiments.coverage.covering.deviation", lambda want, got: 1e-9
    )
    record = cover(Task(SMALL))
    assert record is not None
    assert {side.status for side in record.sides} == {"lossy"}
    assert not record.lossless


class Rounding(nn.Module):
    """Normalises in float32, whatever it is cast to; exports have the channels in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 64)
        self.readers = nn.ModuleList(nn.Linear(64, 8) for _ in range(3))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x.flatten(2).transpose(1, 2))
        low = y.float()
        y = (low * torch.rsqrt(low.pow(2).mean(-1, keepdim=True) + 1e-6)).to(y.dtype)
        result: Tensor = self.last(sum(reader(y) for reader in self.readers))
        return result


def test_the_models_own_noise_has_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "build", lambda name, seed: Rounding().eval())
    record = cover(Task(SMALL))
    assert record is not None
    side = record.sides[0]
    assert side.status == "own noise"
    assert side.noise == "the model computes in float32 inside of the model itself"
    assert side.deviation is not None
    assert 1e-10 < side.deviation < 1e-5
    assert record.lossless
    assert record.noisy
    text = tables([record])
    assert "1 of 1 lossless on all sides (1 up to own noise)" in text
    assert "(own noise) |" in text
    assert "inside of the model itself" in text
    assert "lossy" not in text


def test_an_export_that_is_wrong_for_another_batch_is_not_lossless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def export(masked: nn.Module, *_: object) -> nn.Module:
        right = copy.deepcopy(masked)
        forward = right.forward
        right.forward = lambda x: forward(x) * (1 if len(x) == BATCH else 2)
        return right

    monkeypatch.setattr("upscale_opt.experiments.coverage.covering.materialize", export)
    record = cover(Task(SMALL))
    assert record is not None
    assert {side.status for side in record.sides} == {"lossless"}
    for side in record.sides:
        batch, size = side.elsewhere
        assert (batch.status, size.status) == ("differs", "equal")
        assert "deviates" in batch.reason
    assert not record.lossless


def a_record(name: str, group: str = "timm", **side: object) -> NetworkRecord:
    sides = tuple(
        SideRecord.model_validate(
            {"side": one, "status": "lossless", "deviation": 1e-15, "dtype": "float64"}
            | {"capture": "fx", "masked": 100, "left": 25, "copied": 7, **side}
        )
        for one in ("input", "output", "both")
    )
    return NetworkRecord(name=name, group=group, amount=0.5, parameters=2_000_000, sides=sides)


def test_tables_say_what_is_opaque_and_what_is_lossy() -> None:
    rolls = Reason(text="rolls a_b", operations=2)
    batch = OtherInputs(what="another batch", status="refused", reason="a batch of two, only")
    size = OtherInputs(what="other sizes", status="failed", reason="KeyError: 7")
    text = tables(
        [
            a_record("timm/one"),
            a_record("timm/two", opaque=(rolls, Reason(text="pads", operations=1))),
            a_record("timm/three", status="lossy", deviation=0.25),
            a_record("timm/five", elsewhere=(batch, size)),
            NetworkRecord(name="timm/four", group="timm", amount=0.5, problem="build: no timm"),
        ]
    )
    assert "2 of 5 lossless on all sides, 1 of 5 without opaque operations" in text
    assert "another batch: 1 refused; other sizes: 1 failed; removed" in text
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["one"].startswith("| one | 2.0 M | fx | 1e-15 | - | - | 75.0 % | 75.0 % | 75.0 % |")
    assert "| 2 a, 1 b |" in rows["two"]
    assert "**lossy**" in rows["three"]
    assert "| refused | **failed** |" in rows["five"]
    assert "* timm/five, input, other sizes failed: KeyError: 7" in text
    assert "| failed | failed | failed |" in rows["four"]
    assert "* **a**: rolls a\\_b (2 operations, 1 network)" in text
    assert "* timm/three, both: deviates by 2.5e-01" in text
    assert "* timm/four: build: no timm" in text
    some = OtherInputs(what="other sizes", status="partly", reason="2 x 3 x 32 x 48: odd")
    text = tables([a_record("timm/six", elsewhere=(some,))])
    assert "other sizes: 1 partly; removed" in text
    assert "* timm/six, both, other sizes partly: 2 x 3 x 32 x 48: odd" in text
    (line,) = summary([a_record("timm/one")])
    assert line.endswith("75.0 % (input), 75.0 % (output), 75.0 % (both)")


def test_a_page_keeps_what_is_around_the_tables() -> None:
    before = f"# Title\n\nabove\n{BEGIN}\nold\n{END}\nbelow\n"
    text = page(before, [a_record("timm/one")], "heading")
    assert text.startswith(f"# Title\n\nabove\n{BEGIN}\n")
    assert text.endswith(f"{END}\nbelow\n")
    assert "old" not in text
    assert "| one |" in text
    assert page(text, [a_record("timm/one")], "heading") == text
    other = NetworkRecord(name="mine", group="classification", amount=0.5, problem="build: none")
    both = page(text, [other], "heading")  # other groups keep their tables
    assert both.index("### classification") < both.index("| mine |") < both.index("### timm")
    assert page(both, [a_record("timm/one"), other], "heading") == both
    assert "| one |" not in page(both, [a_record("timm/two")], "heading")
    assert "| one |" in page(None, [a_record("timm/one")], "heading")
    for broken in ("no markers", f"{END} {BEGIN}", BEGIN):
        with pytest.raises(UpscaleError, match="no place for the tables"):
            page(broken, [], "")


def run_command(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(["coverage", *arguments])
    return caught.value.code


def test_the_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, out = tmp_path / "page.md", tmp_path / "records"
    arguments = (SMALL, "topology/unet", "--out", str(out), "--page", str(document), "--jobs", "2")
    assert run_command(*arguments) == 0
    assert "topology: 2 of 2 lossless" in capsys.readouterr().out
    text = document.read_text()
    assert "| residual_stage |" in text
    assert "| unet |" in text
    store = Store(out, NetworkRecord)
    record = done_before(store, Task(SMALL))
    assert record is not None
    assert record.peak_bytes is None or record.peak_bytes > 2**20
    assert done_before(store, Task(SMALL, amount=0.25)) is None
    store.put(SMALL, record.model_copy(update={"seconds": 4711.0}))
    assert run_command(*arguments) == 0
    assert "2 of 2 are done already" in capsys.readouterr().err
    again = done_before(store, Task(SMALL))
    assert again is not None
    assert again.seconds == 4711.0


def test_patience_ends(tmp_path: Path) -> None:
    store = Store(tmp_path, NetworkRecord)
    ((task, record),) = sweep([Task(SMALL)], store, Place(), patience=0)
    assert task.name == SMALL
    assert record is not None
    assert "it took longer than 0 s" in record.problem
    assert NetworkRecord.load(store.file(SMALL)) == record
    assert done_before(store, Task(SMALL)) is None


def test_a_killed_process_leaves_a_record() -> None:
    record = record_of(Ended(-9), Task(SMALL))
    assert record is not None
    assert "killed by signal 9" in record.problem
    assert not record.lossless


def test_the_command_fails_if_something_is_lossy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = a_record(SMALL, "topology", status="lossy", deviation=0.5)
    monkeypatch.setattr(
        "upscale_opt.experiments.coverage.sweeping.sweep",
        lambda tasks, store, place, patience: iter([(tasks[0], lossy)]),
    )
    assert run_command(SMALL, "--out", str(tmp_path)) == 1
    assert "1 of 1 networks are not lossless: topology/residual_stage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--group"),
        (("--group", "cars"), 2, "'cars' is not one of"),
        (("resnet5",), 1, "resnet50"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(*arguments) == code
    assert words in capsys.readouterr().err


def test_a_page_without_markers_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "page.md"
    document.write_text("mine")
    assert run_command(SMALL, "--out", str(tmp_path / "out"), "--page", str(document)) == 1
    assert "no place for the tables" in capsys.readouterr().err
    assert document.read_text() == "mine"
    assert not list((tmp_path / "out").iterdir())


def test_the_command_knows_the_catalogues_groups() -> None:
    assert set(GROUPS) == set(catalogue.GROUPS)
