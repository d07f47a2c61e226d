"""The objectives, and the cost of one gather by each."""

from __future__ import annotations

import math
import re

from upscale_opt.ir.graph import Tensor

OBJECTIVES = ("copied_channels", "copied_bytes", "gathers", "blocks", "latency")
"""The objectives: over all reads that are gathers, the channels they copy, the bytes they
copy in one forward pass with the sizes that the graph was traced with, or their number; or over all
reads, the contiguous runs that they fall into (a view is one run). Latency is the nanoseconds that
gathers and windows cost beyond views, by a cost model (:mod:`upscale_opt.solver.network.prices`).

Runs are those in the order of the whole space. A tensor that stores only a part of it may hold them
in fewer; and a slice that changes the sequence of channels counts each of them as a run."""

FOR_EXPORTS = "copied_bytes"
"""The objective of whoever asks for a smaller model and names none: what its gathers write.
Channels, in which orders are compared, are larger in some tensors than in others."""

UNITS = {
    "copied_channels": "copied channels",
    "copied_bytes": "copied bytes",
    "gathers": "gathers",
    "blocks": "blocks",
    "latency": "nanoseconds",
}
"""The objectives' units, in words."""


def price(objective: str, tensor: Tensor, count: int) -> int:
    """The cost of gathering ``count`` channels of ``tensor``; for blocks, of one run."""
    if objective == "copied_channels":
        return count
    if objective == "copied_bytes":
        return count * bytes_per_channel(tensor)
    return 1 if count else 0


def bytes_per_channel(tensor: Tensor) -> int:
    """The bytes of one entry of the tensor's channel sequence, in the shape it was traced with."""
    return math.prod(tensor.shape) // len(tensor.channels) * _item_size(tensor.dtype)


def bytes_per_number(tensor: Tensor) -> int:
    """The bytes of one element of the tensor."""
    return _item_size(tensor.dtype)


def _item_size(dtype: str) -> int:
    """Bytes per element, such as 4 for ``"float32"`` and 1 for ``"bool"``."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1
