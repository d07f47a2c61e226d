"""The hazards that are not mended yet (issue 18): by kind, the variants that fail.

Written by `python benchmarks/hazard_table.py --write`; whoever mends one may remove it by hand.
"""

from __future__ import annotations

NOT_YET: dict[str, tuple[str, ...]] = {}
"""Kind → its variants. An empty table is the aim."""
