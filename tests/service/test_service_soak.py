"""The soak of ``benchmarks/service_soak.py``, in short; and that it would notice."""

from __future__ import annotations

from pathlib import Path

from comparing import benchmark

SOAK = benchmark("service_soak")


def test_a_short_soak(tmp_path: Path) -> None:
    lines, wrong = SOAK.soak(tmp_path, requests=110, clients=8, workers=1, slow=0.25)
    assert wrong == []
    text = "\n".join(lines)
    for kind in ("solve", "long", "cancel", "malformed", "oversized", "reader leaves", "twice"):
        assert f"× {kind}" in text
    assert "200" in text
    assert "422" in text


def test_growth_is_noticed() -> None:
    megabyte = 2**20
    first = {"service": (100 * megabyte, 20, 10)}
    assert SOAK.grown(first, {"service": (129 * megabyte, 25, 15)}) == []
    assert SOAK.grown(first, {"service": (131 * megabyte, 20, 10)})
    assert SOAK.grown(first, {"service": (100 * megabyte, 31, 10)})
    assert SOAK.grown(first, {"service": (100 * megabyte, 20, 21)})
    assert SOAK.grown(first, {"worker 1 (7)": (100 * megabyte, 20, 10)})
