"""The hazards that are not mended yet (issue 18): by kind, the variants that fail.

Written by `python benchmarks/hazard_table.py --write`; whoever mends one may remove it by hand.
"""

from __future__ import annotations

NOT_YET: dict[str, tuple[str, ...]] = {
    "A": (
        "length of a bias",
        "numel of a shape",
        "root of the outputs",
        "shape unpacked",
        "size of a statistic",
    ),
    "E": (
        "larger of sizes",
        "length of the batch",
    ),
    "F": (
        "a dtype",
        "a slice object",
    ),
    "G": ("plus, float",),
    "S": ("detached chunks",),
    "numbers that crash": (
        "monai's squeeze and excitation",
        "numpy's product of a shape",
        "the leading sizes",
        "the shape as a list",
        "the trailing sizes",
    ),
    "squeeze": (
        "before a linear layer",
        "of a slice",
        "of all",
        "of pooled channels",
        "of the result",
        "one is left, in place",
    ),
}
"""Kind → its variants. An empty table is the aim."""
