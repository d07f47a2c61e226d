"""The programs that run files here, by name."""

from __future__ import annotations

from upscale_opt.errors import SolverError
from upscale_opt.in_runtimes.nodes import Backend
from upscale_opt.in_runtimes.onnxruntime import ONNXRUNTIME
from upscale_opt.in_runtimes.openvino import OPENVINO

BACKENDS = {backend.name: backend for backend in (ONNXRUNTIME, OPENVINO)}


def backend_of(runtime: str) -> Backend:
    """The program called ``runtime``.

    Raises:
        SolverError: if there is none of that name.
    """
    for name, backend in BACKENDS.items():
        if name == runtime:
            return backend
    raise SolverError(f"no files run in {runtime!r} here; they do in {', '.join(BACKENDS)}")
