"""``upscale-opt prune``: from a checkpoint of one's own to a checked ONNX file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Output, call
from test_own_model import SHOP

import upscale_opt as uo
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.losses import Losses

IN_ONNXRUNTIME = """
import sys, numpy as np
sys.modules["torch"] = sys.modules["upscale_opt"] = None
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: x})[0])
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_shop", raising=False)
    return tmp_path


def test_from_a_checkpoint_to_onnx(shop: Path, capsys: Output) -> None:
    import own_shop  # type: ignore[import-not-found]

    torch.manual_seed(5)
    trained = own_shop.Net(classes=4, width=16).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, "w.pt")
    torch.save(torch.randn(24, 3, 9, 9), "calibration.pt")
    code = call(
        *("prune", "own_shop:Net", "--model-args", '{"classes": 4, "width": 16}'),
        *("--weights", "w.pt", "--input", "2x3x9x9", "--data", "calibration.pt"),
        *("--macs", "0.5", "--round-to", "4", "--time-limit", "1"),
        *("--export", "onnx", "--out", "out"),
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "Time: unpruned" in printed
    assert "conv" in printed or "fc" in printed
    choice = Choice.load(shop / "out" / "choice.json")
    assert choice.resources[0].used <= choice.resources[0].limit
    assert all(layer.kept % 4 == 0 for layer in choice.layers)
    assert Losses.load(shop / "out" / "losses.json").samples == 24
    pruned = uo.load(own_shop.Net(classes=4, width=16), shop / "out" / "pruned.safetensors")
    x = torch.randn(3, 3, 9, 9)
    np.save("x.npy", x.numpy())
    subprocess.run(
        [sys.executable, "-c", IN_ONNXRUNTIME, "out/pruned.onnx", "x.npy", "y.npy"], check=True
    )
    with torch.no_grad():
        assert np.allclose(np.load("y.npy"), pruned(x).numpy(), atol=1e-5)


def test_without_data_it_says_so(shop: Path, capsys: Output) -> None:
    options = ("--input", "1x3x9x9", "--macs", "0.5", "--no-measure", "--time-limit", "1")
    assert call("prune", "own_shop:Net", *options) == 0
    printed = capsys.readouterr().out
    assert "No data" in printed
    assert "Time:" not in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["needs a limit"]),
        (("--macs", "1.5"), ["at most 1"]),
        (("--macs", "0.5", "--keep", "nowhere.*"), ["nowhere.*"]),
        (("--macs", "0.5", "--share", "fc"), ["PATTERN=SHARE"]),
        (("--macs", "0.5", "--share", "fc=0.7-0.2"), ["'fc'"]),
        (("--macs", "0.5", "--data", "nowhere"), ["nowhere"]),
        (("--macs", "0.5", "--mean", "a,b"), ["--mean"]),
        (("--macs", "0.000001"), ["least that can be had"]),
        (("--macs", "0.5", "--weights", "nowhere.pt"), ["nowhere.pt"]),
    ],
    ids=range(9),
)
def test_what_is_wrong_is_one_line(
    shop: Path, capsys: Output, options: tuple[str, ...], words: list[str]
) -> None:
    code = call("prune", "own_shop:Net", "--input", "1x3x9x9", *options)
    assert code in (1, 2)
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert "Traceback" not in said
    assert not list((shop / "out").glob("*.safetensors"))
