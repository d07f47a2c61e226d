"""Names of what the benchmark compares; for the command line, so without PyTorch."""

from __future__ import annotations

VARIANTS = {
    "unpruned": "the network as it was",
    "gather": "the masked network exported without reordering; every selection is a gather",
    "unordered": "the masked network exported without reordering; views where that is by chance",
    "upscale": "exported by apple-upscale",
    "upscale-index": "the same; its gathers take one index each, as its authors advise for GPUs",
    "constrained": "coupled layers pruned together: nothing to copy, but another, weaker network",
    "copies": "our export with the fewest copied channels",
    "latency": "our export that shall be the fastest by a cost model",
    "eager": "our export that shall be the fastest in eager PyTorch, wherever it runs",
    "floor": "the layers of our fastest export, with all copies free",
}
"""The variants of a network that are timed side by side, and what they are."""

DEFAULT_VARIANTS = tuple(
    name for name in VARIANTS if name not in ("upscale-index", "unordered", "eager")
)

_OURS = tuple(name for name in VARIANTS if not name.startswith("upscale") and name != "copies")

RUNTIME_VARIANTS = {
    "onnxruntime": _OURS,
    "openvino": _OURS,
    "compiled": tuple(name for name in _OURS if name != "floor"),
}
"""The same for other runtimes than PyTorch as it is."""

PER_CELL = ("latency", "eager", "floor")
"""The variants that are made anew for every batch size and memory format."""

BASES = ("upscale", "unpruned", "floor")
"""The variants that the others' times are divided by."""

FORMATS = ("contiguous", "channels-last")
"""Memory formats of images and of convolutions' weights."""

MODES = {
    "eager": "op by op",
    "compiled": "with torch.compile",
    "cuda-graph": "as a CUDA graph",
    "onnxruntime": "in onnxruntime",
    "openvino": "in OpenVINO",
}
"""The modes in which variants are run, in words."""
