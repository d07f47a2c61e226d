"""The groups of the catalogue, for the command line: to import the catalogue would load PyTorch."""

from __future__ import annotations

GROUPS = (
    "classification",
    "segmentation",
    "video",
    "optical_flow",
    "quantizable",
    "detection",
    "timm",
    "wild",
    "topology",
)
ALL = "all"
