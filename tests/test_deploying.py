"""Pruned models in ONNX and pt2 files: they compute what the eager model computes, in any batch."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
import torch
from comparing import benchmark
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt import deploying
from upscale_opt.cli import main
from upscale_opt.deploying import deploy
from upscale_opt.errors import ArgumentError, DeployError
from upscale_opt.models import catalogue

ARENA = {"selection": "arena"}
WINDOWS = {"max_extra_macs": 0.1}

NETWORKS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("topology/dense_block", ARENA, ["onnx", "pt2"]),
    ("topology/dense_block", WINDOWS, ["onnx"]),
    ("topology/tuple_output", {}, ["pt2"]),
    ("topology/dict_input", {}, ["onnx"]),
    ("topology/squeeze_excite", {}, ["onnx"]),
]


@pytest.mark.parametrize(
    ("name", "options", "kinds"), NETWORKS, ids=["-".join([one[0], *one[1]]) for one in NETWORKS]
)
def test_files_compute_the_same_in_any_batch(
    name: str, options: dict[str, Any], kinds: list[str], tmp_path: Path
) -> None:
    inputs = catalogue.example_inputs(name, 1)
    model = catalogue.randomize(catalogue.build(name), 0, inputs)
    both = {"side": "input" if options else "both", **options}
    pruned = uo.prune(model, inputs, amount=0.5, check=False, **both)
    assert bool(pruned.solution.arenas) == (options == ARENA)
    assert bool(pruned.solution.windows) == (options == WINDOWS)
    before = {name: value.clone() for name, value in pruned.model.state_dict().items()}
    for kind in kinds:
        done = deploy(pruned.model, inputs, tmp_path / f"net.{kind}")
        assert done.batches == (1, 3)
        assert done.deviation <= 1e-4
        assert done.size == done.path.stat().st_size
        if isinstance(inputs, Tensor):
            same_on_more(pruned.model, inputs, done.path)
        if kind == "pt2":
            assert benchmark("deployment").faults(torch.export.load(done.path)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"net.{kind}" for kind in kinds]
    after = pruned.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def same_on_more(model: nn.Module, inputs: Tensor, file: Path) -> None:
    """A file computes what the model computes on a batch of five."""
    larger = torch.cat([inputs.flip(-1), inputs, inputs, inputs * 2, inputs])
    with torch.no_grad():
        want = model.eval()(larger)
        if file.suffix == ".pt2":
            found = torch.export.load(file).module()(larger)
        else:
            session = onnxruntime.InferenceSession(str(file))
            assert session.get_inputs()[0].shape[0] == "batch"
            results = [torch.from_numpy(r) for r in session.run(None, {"x": larger.numpy()})]
            found = tuple(results) if isinstance(want, tuple) else results[0]
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_faults_are_found() -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).relu_() + x.nonzero().shape[0]

    program = torch.export.export(Bad(), (torch.ones(2, 3),))
    found = benchmark("deployment").faults(program)
    assert {"aten.relu_.default", "aten.nonzero.default"} <= set(found)


def small() -> tuple[nn.Module, nn.Module, Any]:
    inputs = catalogue.example_inputs("topology/residual_stage", 2)
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 0, inputs)
    return model, uo.prune(model, inputs, amount=0.5, check=False).model, inputs


def test_safetensors_and_the_definition(tmp_path: Path) -> None:
    model, pruned, inputs = small()
    done = deploy(pruned, inputs, tmp_path / "net.safetensors", definition=model)
    assert (done.deviation, done.batches) == (0.0, (1, 2, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert torch.equal(uo.load(model, done.path)(inputs), pruned(inputs))
    with pytest.raises(DeployError, match="definition="):
        deploy(pruned, inputs, tmp_path / "net.safetensors")


def test_a_file_that_deviates_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pruned, inputs = small()
    target = tmp_path / "net.pt2"
    target.write_text("as before")
    whole = deploying.capture

    def wrong(model: nn.Module, *args: Any, **options: Any) -> Any:
        with torch.no_grad():
            model = copy.deepcopy(model)
            next(model.parameters()).mul_(1.01)
        return whole(model, *args, **options)

    monkeypatch.setattr(deploying, "capture", wrong)
    with pytest.raises(DeployError, match=r"deviates by .* nothing was written"):
        deploy(pruned, inputs, target)
    assert target.read_text() == "as before"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_fixed_batch(tmp_path: Path) -> None:
    _, pruned, inputs = small()
    done = deploy(pruned, inputs, tmp_path / "net.onnx", dynamic_batch=False)
    assert done.batches == (2,)
    (given,) = onnx.load(done.path).graph.input
    assert given.type.tensor_type.shape.dim[0].dim_value == 2


class Open(nn.Module):
    """Takes arguments that nobody names, as the networks of some frameworks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of shape (N, 4, H - 4, W - 4)."""
        y: Tensor = self.head(self.stem(x).relu())
        return y * 2 if args or kwargs.get("augment", False) or y.shape[2] < 2 else y


def test_arguments_that_nobody_names(tmp_path: Path) -> None:
    model, inputs = Open().eval(), torch.randn(2, 3, 8, 8)
    pruned = uo.prune(model, inputs, amount=0.5, side="both").model
    for kind in ("onnx", "pt2"):
        assert deploy(pruned, inputs, tmp_path / f"net.{kind}").batches == (1, 2, 3)
    with pytest.raises(ArgumentError, match=r"'\*\*kwargs' is a dict with 'augment'"):
        pruned(inputs, augment=True)
    with pytest.raises(ArgumentError, match=r"'\*args' is a tuple of 1"):
        pruned(inputs, 1)


def test_what_takes_one_batch_only_says_so(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1)

    with pytest.raises(DeployError, match="dynamic_batch=False"):
        deploy(Fixed(), torch.ones(2, 3), tmp_path / "net.pt2")
    assert deploy(Fixed(), torch.ones(2, 3), tmp_path / "n.pt2", dynamic_batch=False).size


def test_what_onnxruntime_does_not_run(tmp_path: Path) -> None:
    _, pruned, inputs = small()
    with pytest.raises(DeployError, match=r"onnx cannot hold this model|does not run"):
        deploy(pruned.bfloat16(), inputs.bfloat16(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_library(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DeployError, match=rf'need {library}: pip install "\.\[onnx\]"'):
        deploy(nn.ReLU(), torch.ones(2, 3), tmp_path / "net.onnx")
    with pytest.raises(DeployError, match="'tflite' is not a format; there are onnx, pt2"):
        deploy(nn.ReLU(), torch.ones(2, 3), tmp_path / "net.tflite")


def test_what_is_no_model(tmp_path: Path) -> None:
    model, _, inputs = small()
    result: Any = uo.prune(model, inputs, amount=0.5, check=False)
    with pytest.raises(DeployError, match=r"a Pruned; give its \.model"):
        deploy(result, inputs, tmp_path / "net.pt2")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--export", "onnx", "--export", "pt2", "--export", "safetensors", "--export", "onnx"]
    with pytest.raises(SystemExit) as ended:
        main(["run", "topology/dense_block", *flags, "--selection", "arena", "-o", str(tmp_path)])
    assert not ended.value.code
    out = capsys.readouterr().out
    for kind in ("onnx", "pt2", "safetensors"):
        assert (tmp_path / f"pruned.{kind}").stat().st_size > 1000
        assert out.count(f"pruned.{kind} ({kind}): ") == 1
    session = onnxruntime.InferenceSession(str(tmp_path / "pruned.onnx"))
    shape = [7, *session.get_inputs()[0].shape[1:]]
    (result,) = session.run(None, {"x": numpy.zeros(shape, numpy.float32)})
    assert len(result) == 7
