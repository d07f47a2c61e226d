"""Faults of all kinds: every job that was accepted ends once, with the solution it ought to have.

The faults themselves are in ``benchmarks/service_faults.py``, which tries all of them; here they
are short, and those left out that have tests of their own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from comparing import benchmark
from pages import replace_section

FAULTS = benchmark("service_faults")

PACE = FAULTS.Pace(
    outage=3.0,
    limits=(4.0,),  # in a shorter one a busy machine finds nothing
    slack=4.0,  # other tests run on this machine
    settings={"lease": 1.5},
)
PATIENT = replace(PACE, settings={})
"""Where no worker is killed: with the lease that services have."""


ELSEWHERE = {
    "worker killed": "test_service.py::test_workers_are_killed",
    "service killed": "test_service_jobs.py::test_the_service_is_killed_and_another_one_stopped",
    "Redis gone": "test_service_jobs.py::test_redis_goes_away",
    "cancelled": "test_service.py::test_progress_and_cancel",
}


@pytest.mark.parametrize("name", [name for name in FAULTS.FAULTS if name not in ELSEWHERE])
def test_promises_are_kept(name: str, tmp_path: Path) -> None:
    pace = PATIENT if name == "time limits" else PACE
    outcome = FAULTS.FAULTS[name](tmp_path, pace)
    assert outcome.wrong == []
    assert outcome.jobs >= 3


def test_the_others_are_tested() -> None:
    assert ELSEWHERE.keys() < FAULTS.FAULTS.keys()
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_sections_of_pages(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n")
    replace_section(page, "a", ["new"])
    replace_section(page, "a", ["newer"])
    text = page.read_text()
    assert text == "before\n<!-- a:begin -->\n\nnewer\n\n<!-- a:end -->\nafter\n"
    with pytest.raises(ValueError, match="no section"):
        replace_section(page, "b", [])
