"""Count which hazards are right or refused, by kind.

    python benchmarks/hazard_table.py              # a table, and what is wrong
    python benchmarks/hazard_table.py --seeds 5    # five networks of every variant
    python benchmarks/hazard_table.py --write      # and write tests/support/hazards_not_yet.py anew

A variant counts as the worst that any of its networks does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1] / "tests"
FINE = "fine"
OUTCOMES = ("silently wrong", "changed", "crashed", "refused", "otherwise", FINE)
"""From worst to best."""

CLASSES = {
    "SilentlyWrong": "silently wrong",
    "Changed": "changed",
    "Crashed": "crashed",
    "Refused": "refused",
}
_HEADER = '''"""The hazards that are not mended yet (issue 18): by kind, the variants that fail.

Written by `python benchmarks/hazard_table.py --write`; whoever mends one may remove it by hand.
"""

from __future__ import annotations

NOT_YET: dict[str, tuple[str, ...]] = {
'''
_FOOTER = '''}
"""Kind → its variants. An empty table is the aim."""
'''


class Tally:
    """Listens to pytest.

    Attributes:
        worst: kind and variant → its worst outcome.
        errors: the same → the first error of that outcome.
    """

    def __init__(self) -> None:
        self.worst: dict[tuple[str, str], str] = {}
        self.errors: dict[tuple[str, str], str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
        report = yield
        mark = item.get_closest_marker("hazard")
        if mark is not None and call.when == "call":
            case, outcome, text = mark.args, FINE, ""
            if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
                name = call.excinfo.type.__name__
                text = f"{name}: {' '.join(str(call.excinfo.value).split())}"[:150]
                outcome = CLASSES.get(name, "otherwise")
                if name == "AssertionError" and ("deviates" in text or "another function" in text):
                    outcome = "silently wrong"
            before = self.worst.get(case, FINE)
            if OUTCOMES.index(outcome) < OUTCOMES.index(before) or case not in self.worst:
                self.worst[case], self.errors[case] = outcome, text
        return report


def table(worst: dict[tuple[str, str], str]) -> Table:
    """How many variants of each kind come out how."""
    shown = Table("kind", "variants", *OUTCOMES)
    counts = Counter((kind, outcome) for (kind, _), outcome in worst.items())
    for kind in dict.fromkeys(kind for kind, _ in worst):
        numbers = [counts[kind, outcome] for outcome in OUTCOMES]
        shown.add_row(kind, str(sum(numbers)), *(str(n or "") for n in numbers))
    totals = [sum(counts[k, o] for k, o in counts if o == outcome) for outcome in OUTCOMES]
    shown.add_section()
    shown.add_row("all", str(sum(totals)), *map(str, totals))
    return shown


def write(worst: dict[tuple[str, str], str], path: Path) -> None:
    """Write the table of those that are not fine."""
    kinds: dict[str, list[str]] = {}
    for (kind, variant), outcome in worst.items():
        if outcome != FINE:
            kinds.setdefault(kind, []).append(variant)
    lines = [_HEADER]
    for kind in sorted(kinds):
        if len(kinds[kind]) == 1:  # as the formatter writes it
            lines.append(f'    "{kind}": ("{kinds[kind][0]}",),\n')
            continue
        lines.append(f'    "{kind}": (\n')
        lines += [f'        "{variant}",\n' for variant in sorted(kinds[kind])]
        lines.append("    ),\n")
    path.write_text("".join([*lines, _FOOTER]), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3, help="networks of every variant")
    parser.add_argument("--write", action="store_true", help="write the table of what is not fine")
    parser.add_argument("paths", nargs="*", help="test files; all of them by default")
    options = parser.parse_args(arguments)
    if options.write and options.paths:
        parser.error("--write needs all files")
    os.environ["UPSCALE_OPT_HAZARD_SEEDS"] = str(options.seeds)
    tally = Tally()
    paths = options.paths or [str(TESTS / "hazards")]
    quiet = ["-q", "--tb=no", "--runxfail", "--no-summary", "-W", "ignore"]
    if pytest.main([*quiet, *paths], plugins=[tally]) not in (0, 1):
        raise SystemExit("the tests did not run")
    console = Console()
    for (kind, variant), outcome in tally.worst.items():
        if outcome != FINE:
            line = f"{kind}: {variant}: {outcome}: {tally.errors[kind, variant]}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table(tally.worst))
    if options.write:
        write(tally.worst, TESTS / "support" / "hazards_not_yet.py")
    return 1 if any(outcome != FINE for outcome in tally.worst.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
