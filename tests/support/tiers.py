"""Which tests ``make quick`` leaves out, and why.

It runs unit tests: no browser, no server, no other processes, no compiler, and no network that
takes more than a moment. ``make test`` runs everything.
"""

from __future__ import annotations

SLOW = {
    "cli/": "commands, some in processes of their own",
    "experiments/": "whole sweeps, clusters, training",
    "hazards/": "hundreds of small networks, many captured by torch.export",
    "materializing/test_arenas.py": "real networks",
    "materializing/test_compiled.py": "compiles",
    "materializing/test_networks.py": "real networks",
    "materializing/test_random_networks.py": "hundreds of random networks",
    "materializing/test_regressions.py": "many networks, whole",
    "materializing/test_topologies.py": "two hundred masks on each topology",
    "models/": "builds every network of the catalogue",
    "report/": "whole pages, a browser",
    "runtime/": "compares with PyTorch's kernels at many sizes",
    "saving/test_saving_again.py": "other processes",
    "service/": "servers and workers",
    "solver/test_coupling.py": "real networks",
    "solver/test_instance_library.py": "every solver on every instance",
    "solver/test_milp.py": "a process for PuLP",
    "solver/test_removal.py": "real networks",
    "solver/test_torch_free.py": "other processes",
    "test_child_process.py": "other processes",
    "test_deploying.py": "ONNX files and compilers",
    "test_docs.py": "runs all pages",
    "test_examples.py": "other processes",
    "test_packaging.py": "builds the wheel",
    "tracing/test_conservative.py": "other processes",
    "tracing/test_export_inputs.py": "captures by torch.export",
    "tracing/test_rules.py": "hundreds of calls on real data",
}
"""File or folder below ``tests/`` → the reason."""


def is_slow(path: str) -> bool:
    """Whether a test file, named from ``tests/`` on, is left out by ``make quick``."""
    return any(path == name or (name.endswith("/") and path.startswith(name)) for name in SLOW)
