"""The hazards that are not mended yet (issue 18): by kind, the variants that fail.

Written by `python benchmarks/hazard_table.py --write`; whoever mends one may remove it by hand.
"""

from __future__ import annotations

NOT_YET: dict[str, tuple[str, ...]] = {
    "D": ("a patched dropout: groups",),
    "K": ("a buffer in place",),
    "Q": (
        "an attribute",
        "another method",
    ),
    "R": ("to_empty",),
    "S": (
        "detached chunks",
        "without gradients",
    ),
    "X": ("an object",),
    "arguments not given": (
        "called input and device",
        "called like modules",
        "called me and torch",
        "called me and torch, given",
    ),
    "autocast, verified": (
        "a float head",
        "a part",
        "off",
    ),
    "names": (
        "carry",
        "class",
        "code",
        "earlier",
        "graph",
        "meta",
        "named",
        "origin",
        "solution",
    ),
    "nothing": (
        "a gelu",
        "a relu",
        "a sigmoid",
        "nothing",
    ),
    "wrappings": (
        "l1_unstructured",
        "ln_structured",
        "the old weight_norm",
    ),
}
"""Kind → its variants. An empty table is the aim."""
