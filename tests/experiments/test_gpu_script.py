"""The script for GPUs, tried on a CPU with a small network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparing import benchmark

NETWORK = "topology/residual_stage"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = benchmark("gpu")
    monkeypatch.setattr(module, "CALIBRATED", (NETWORK,))
    monkeypatch.setattr(module, "VARIANTS", ("unpruned", "copies"))
    monkeypatch.setattr(module, "tested", lambda device: f"3 passed on {device}")
    return module


def test_a_page_for_this_device(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    export = script.masked_and_export
    text = "\n".join(script.page([NETWORK], "cpu", [1], script.Clock(5)))
    assert "3 passed on cpu." in text
    row = next(line for line in text.splitlines() if line.startswith(f"| {NETWORK} |"))
    exact, single = (float(cell) for cell in row.strip("| ").split(" | ")[1:])
    assert exact < 1e-10
    assert single < 1e-4
    assert "off by" in text
    assert "### Times: batch 1, contiguous, op by op" in text
    assert "## Missing" not in text

    def wrong(name: str, device: str) -> Any:
        masked, pruned, inputs = export(name, device)
        with torch.no_grad():
            next(pruned.parameters()).mul_(1.001)
        return masked, pruned, inputs

    monkeypatch.setattr(script, "masked_and_export", wrong)
    assert "**differs**: the pruned model deviates by" in " ".join(
        script.deviations(NETWORK, "cpu", (torch.float64,))
    )


def test_what_fails_or_is_late_is_named(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory is left\nnowhere")

    monkeypatch.setattr(script, "masked_and_export", full)
    monkeypatch.setattr(script, "calibrated", full)
    text = "\n".join(script.page([NETWORK], "cpu", [1], script.Clock(5)))
    assert f"* {NETWORK}, lossless: OutOfMemoryError: no memory is left\n" in text
    assert "* a cost model for float32: OutOfMemoryError: no memory is left" in text
    late = "\n".join(script.page([NETWORK], "cpu", [1], script.Clock(-1)))
    assert f"* {NETWORK}, lossless: no time was left" in late


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert script.main() == 1
    assert "there is no GPU here; --device cpu" in capsys.readouterr().err
