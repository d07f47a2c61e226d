"""Models of one's own, their weights, inputs and data, as commands read them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from upscale_opt.cli import main
from upscale_opt.cli.calibration import read_data
from upscale_opt.cli.given import Given, digest_of, short_name
from upscale_opt.cli.networks import build_any
from upscale_opt.cli.own_model import OwnModel, inputs_in, load_weights, stripped, tensors_in
from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.bench.benching import Task, bench
from upscale_opt.experiments.bench.records import BenchRecord

SHOP = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

ready = Net()
number = 3

def fails():
    raise RuntimeError("no such backbone")

class nested:
    net = Net
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_shop", raising=False)
    return tmp_path


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(UpscaleError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("factory", "arguments", "classes"),
    [
        ("own_shop:Net", '{"classes": 5}', 5),
        ("own_shop:Net", "[7, 4]", 7),
        ("own_shop:ready", None, 3),
        ("own_shop:nested.net", None, 3),
    ],
)
def test_a_factory_makes_the_model(
    shop: Path, factory: str, arguments: str | None, classes: int
) -> None:
    model, inputs = OwnModel(factory, Given(arguments, shapes=("2x3x9x9",))).build(seed=1)
    assert not model.training
    assert model(inputs).shape == (2, classes)


def test_the_same_seed_makes_the_same_model(shop: Path) -> None:
    own = OwnModel("own_shop:Net", Given(shapes=("1x3x9x9",)))
    (first, x), (second, y), (third, _) = own.build(3), own.build(3), own.build(4)
    assert torch.equal(x, y)
    assert torch.equal(first(x), second(y))
    assert not torch.equal(first(x), third(x))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (OwnModel("no_such_shop:Net"), "cannot import 'no_such_shop'"),
        (OwnModel("own_shop:Nett"), "no 'Nett'"),
        (OwnModel("own_shop:number"), "cannot be called"),
        (OwnModel("own_shop:fails"), "no such backbone"),
        (OwnModel("own_shop:Net", Given('{"clases": 3}')), "clases"),
        (OwnModel("own_shop:Net", Given("{classes: 3}")), "no JSON"),
        (OwnModel("own_shop:Net", Given("3")), "object or list"),
        (OwnModel("own_shop:Net"), "--input 1x3x224x224"),
        (OwnModel("own_shop:Net", Given(shapes=("1,3,9,9",))), "1,3,9,9"),
        (OwnModel("own_shop:Net", Given(shapes=("1x3x9x9:float31",))), "float31"),
        (OwnModel("own_shop:Net", Given(shapes=("x=1x3x9x9", "1x2"))), "every --input"),
        (OwnModel("own_shop:Net", Given(weights=Path("none.pt"), shapes=("1x3x9x9",))), "none.pt"),
    ],
    ids=range(12),
)
def test_what_is_wrong_is_named(shop: Path, own: OwnModel, said: str) -> None:
    assert said in refused(lambda: own.build(0))


def test_inputs_of_whole_numbers_have_names(shop: Path) -> None:
    _, inputs = OwnModel("own_shop:Net", Given(shapes=("ids=1x16:int64", "mask=1x16:bool"))).build(
        0
    )
    assert {name: (t.dtype, tuple(t.shape)) for name, t in inputs.items()} == {
        "ids": (torch.int64, (1, 16)),
        "mask": (torch.bool, (1, 16)),
    }


def test_options_for_own_models_are_refused_for_others() -> None:
    own = Given(shapes=("1x3x32x32",))
    device = torch.device("cpu")
    assert "--input" in refused(lambda: build_any("resnet18", own, seed=0, batch=1, device=device))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
@pytest.mark.parametrize("inside", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_found_in_wrappings(
    tmp_path: Path, prefix: str, inside: str | None, suffix: str
) -> None:
    torch.manual_seed(1)
    trained, fresh = small(), small()
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if inside is None else {inside: state, "epoch": 3}, path)
    load_weights(fresh, path)
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)


def test_a_prefix_that_the_model_has_stays() -> None:
    state = {"model.fc.weight": torch.zeros(1)}
    assert list(stripped(state, {"model.fc.weight"})) == ["model.fc.weight"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("0.weight"), "lacks 0.weight"),
        (lambda state: state.update({"0.weight": torch.zeros(2, 3, 1, 1)}), "2x3x1x1 for 4x3x1x1"),
        (lambda state: state.update({"9.weight": torch.zeros(2)}), "too much: 9.weight"),
    ],
    ids=["lacking", "shape", "extra"],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    state = dict(small().state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    assert said in refused(lambda: load_weights(small(), tmp_path / "w.pt"))


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_pickles_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"0.weight": Evil()}, tmp_path / "w.pt")
    assert "cannot read" in refused(lambda: tensors_in(tmp_path / "w.pt"))
    assert "must not run" not in capsys.readouterr().out


def test_inputs_come_from_a_file(tmp_path: Path) -> None:
    save_file({"0": torch.ones(1, 2), "1": torch.zeros(3)}, tmp_path / "positional.safetensors")
    save_file({"ids": torch.ones(1, 2)}, tmp_path / "named.safetensors")
    first, second = inputs_in(tmp_path / "positional.safetensors")
    assert torch.equal(first, torch.ones(1, 2))
    assert torch.equal(second, torch.zeros(3))
    assert list(inputs_in(tmp_path / "named.safetensors")) == ["ids"]


def test_pictures_become_batches(tmp_path: Path) -> None:
    for number in range(5):
        colour = (255, 0, 0) if number % 2 else (0, 0, 255)
        Image.new("RGB", (40 + number, 30), colour).save(tmp_path / f"{number}.png")
    batches = read_data(str(tmp_path), torch.zeros(1, 3, 16, 20), samples=4)
    pixels = torch.cat(batches)
    assert pixels.shape == (4, 3, 16, 20)
    whole = read_data(
        str(tmp_path), torch.zeros(1, 3, 16, 20), samples=9, mean=(0.0,), deviation=(1.0,)
    )
    pixels = torch.cat(whole)
    assert pixels.shape[0] == 5
    assert float(pixels.min()) >= 0
    assert torch.allclose(pixels[1, 0], torch.ones(16, 20))
    assert torch.allclose(pixels[1, 2], torch.zeros(16, 20), atol=1e-6)


def test_grey_pictures_are_taken_too(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (255, 255, 255)).save(tmp_path / "white.jpg")
    (batch,) = read_data(
        str(tmp_path), torch.zeros(1, 1, 8, 8), samples=4, mean=(0.5,), deviation=(0.5,)
    )
    assert torch.allclose(batch, torch.ones(1, 1, 8, 8), atol=0.02)


def test_tensors_become_batches(tmp_path: Path) -> None:
    save_file({"x": torch.arange(40.0).reshape(20, 2)}, tmp_path / "x.safetensors")
    batches = read_data(str(tmp_path / "x.safetensors"), torch.zeros(1, 2), samples=18)
    assert torch.equal(torch.cat(batches), torch.arange(36.0).reshape(18, 2))
    save_file({"0": torch.zeros(4, 2), "1": torch.ones(4)}, tmp_path / "two.safetensors")
    ((first, second),) = read_data(
        str(tmp_path / "two.safetensors"), (torch.zeros(1, 2), torch.zeros(1)), samples=9
    )
    assert (tuple(first.shape), tuple(second.shape)) == ((4, 2), (4,))


def test_noise_is_as_much_as_asked_for() -> None:
    batches = read_data("noise", torch.zeros(4, 3, 8, 8), samples=10)
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 8, 8)] * 3
    assert not torch.equal(batches[0], batches[1])


def test_data_that_are_none_are_refused(tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 8, 8)
    assert "no such folder" in refused(lambda: read_data("nowhere", image, samples=1))
    assert "no pictures" in refused(lambda: read_data(str(tmp_path), image, samples=1))
    (tmp_path / "broken.png").write_text("no picture")
    assert "broken.png" in refused(lambda: read_data(str(tmp_path), image, samples=1))
    assert "one input" in refused(lambda: read_data(str(tmp_path), {"ids": image}, samples=1))
    save_file({"a": torch.zeros(4, 2), "b": torch.ones(3)}, tmp_path / "two.safetensors")
    said = refused(lambda: read_data(str(tmp_path / "two.safetensors"), image, samples=1))
    assert "same samples" in said
    save_file({"a": torch.zeros(4, 2), "b": torch.ones(4)}, tmp_path / "two.safetensors")
    said = refused(lambda: read_data(str(tmp_path / "two.safetensors"), image, samples=1))
    assert "a, b" in said


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    printed = capsys.readouterr()
    return exited.value.code, printed.out + printed.err


OWN = ["own_shop:Net", "--model-args", '{"classes": 5}', "--input", "2x3x9x9"]


@pytest.fixture
def trained(shop: Path) -> list[str]:
    model, _ = OwnModel("own_shop:Net", Given('{"classes": 5}', shapes=("2x3x9x9",))).build(seed=7)
    torch.save({"state_dict": model.state_dict()}, shop / "best.pt")
    return [*OWN, "--weights", "best.pt"]


def test_run_takes_a_checkpoint_to_another_runtime(
    trained: list[str], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = said_by(["run", *trained, "--export", "pt2"], capsys)
    assert code == 0, said
    assert "own_shop.Net(classes=5)" in said.replace("\n", "")
    files = {path.name for path in (shop / "out" / "Net").iterdir()}
    assert files >= {"graph.json", "solution.json", "pruned.safetensors", "pruned.pt2"}


def test_masks_are_of_the_weights_given(
    trained: list[str], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in ("1", "2"):
        command = ["trace", *trained, "--seed", seed, "--masks", f"masks{seed}.json"]
        code, said = said_by(command, capsys)
        assert code == 0, said
    assert (shop / "masks1.json").read_text() == (shop / "masks2.json").read_text()
    said_by(["trace", *OWN, "--seed", "2", "--masks", "drawn.json"], capsys)
    assert (shop / "drawn.json").read_text() != (shop / "masks2.json").read_text()


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "--solver", "greedy", "identity"],
        ["pareto", "--budgets", "0", "0.1"],
        ["calibrate", "--seconds", "0.01"],
        ["inspect", "--no-measure"],
    ],
    ids=lambda command: command[0],
)
def test_other_commands_take_one_too(
    trained: list[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = said_by([command[0], *trained, *command[1:]], capsys)
    assert code == 0, said
    assert "Net" in said


COMMANDS = ["run", "trace", "compare", "pareto", "calibrate", "inspect", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such_shop:Net", "--input", "1x3x9x9"], "cannot import 'no_such_shop'"),
        (["own_shop:", "--input", "1x3x9x9"], "package.module:factory"),
        (["own_shop:Net"], "needs example inputs"),
        (["own_shop:Net", "--input", "1,3,9"], "--input is a shape"),
        (["own_shop:Net", "--input", "1x3", "--weights", "none.pt"], "no file none.pt"),
        (["own_shop:Net", "--input", "1x3", "--model-args", "{"], "no JSON"),
        (["resnet18", "--input", "1x3x32x32"], "for models of your own"),
    ],
)
def test_names_are_checked_before_pytorch_is_loaded(
    shop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    words: str,
) -> None:
    def loaded(*given: Any, **named: Any) -> None:
        raise AssertionError("a step was begun")

    monkeypatch.setattr("upscale_opt.cli.progress.Steps.step", loaded)
    code, said = said_by([command, *arguments], capsys)
    assert code == 1
    assert words in said


def test_bench_times_one_too(
    trained: list[str],
    shop: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[BenchRecord] = []

    def sweep(tasks: list[Task], *_: object) -> Any:
        for task in map(pickle.loads, map(pickle.dumps, tasks)):  # as for another process
            timed.append(bench(task))
            yield task, timed[-1]

    monkeypatch.setattr("upscale_opt.experiments.bench.sweeping.sweep", sweep)
    usual = ["--variants", "unpruned", "copies", "--rounds", "1", "--batch", "1", "3"]
    code, said = said_by(["bench", *trained, *usual], capsys)
    assert code == 0, said
    assert "own_shop:Net" in said
    (record,) = timed
    assert record.settings.own == digest_of(TRAINED)
    assert [cell.batch for cell in record.cells] == [1, 3]
    assert all(time.milliseconds for cell in record.cells for time in cell.times)


TRAINED = Given('{"classes": 5}', Path("best.pt"), ("2x3x9x9",))


def test_other_weights_are_timed_anew(trained: list[str], shop: Path) -> None:
    before = digest_of(TRAINED)
    assert before == digest_of(TRAINED)
    torch.save({}, shop / "best.pt")
    assert digest_of(TRAINED) != before


def test_bench_draws_batches_itself(
    trained: list[str], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"0": torch.zeros(2, 3, 9, 9)}, shop / "x.safetensors")
    code, said = said_by(["bench", "own_shop:Net", "--inputs", "x.safetensors"], capsys)
    assert code == 2
    assert "give --input, and --batch" in said


def test_one_model_of_ones_own_goes_alone(shop: Path) -> None:
    given = Given(shapes=("1x3x9x9",))
    assert "goes alone" in refused(lambda: given.check("own_shop:Net", "resnet18"))
    assert short_name("own_shop:nested.net") == "nested.net"
