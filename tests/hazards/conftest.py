"""Hazards that are not mended yet may fail."""

from __future__ import annotations

import pytest
from hazards_not_yet import NOT_YET


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("hazard"):
            kind, variant = mark.args
            if variant in NOT_YET.get(kind, ()):
                reason = f"issue 18: kind {kind}"
                item.add_marker(pytest.mark.xfail(strict=False, reason=reason))
