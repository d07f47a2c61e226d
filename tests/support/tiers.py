"""Which tests ``make quick`` leaves out, and why.

It runs unit tests: no browser, no server, no other processes, no compiler, and no network that
takes more than a moment. ``make test`` runs everything.
"""

from __future__ import annotations

SLOW = {
    "cli/": "commands, some in processes of their own",
    "experiments/": "whole sweeps, clusters, training",
    "hazards/": "hundreds of small networks, many captured by torch.export",
    "importance/test_batch_norm_scale.py::test_norms_of_random_networks": "random networks",
    "ir/test_ir.py::test_densenet201_stays_under_two_megabytes": "a real network",
    "managers/test_masking_manager.py::test_it_finds_inputs_itself": "real networks",
    "managers/test_pruning_in_place.py": "real and random networks",
    "managers/test_pruning_manager.py": "real networks",
    "materializing/test_arenas.py": "real networks",
    "materializing/test_attention.py": "many random masks",
    "materializing/test_compiled.py": "compiles",
    "materializing/test_networks.py": "real networks",
    "materializing/test_pruned_module.py": "real networks",
    "materializing/test_random_networks.py": "hundreds of random networks",
    "materializing/test_regressions.py": "many networks, whole",
    "materializing/test_topologies.py": "many masks on each topology",
    "models/": "builds every network of the catalogue",
    "pruning/test_budgets.py": "chooses masks and refits, a second or more each",
    "pruning/test_wrappings.py": "compiles",
    "reconstruction/test_refitting.py": "refits networks of many kinds",
    "report/": "whole pages, a browser",
    "runtime/": "compares with PyTorch's kernels at many sizes",
    "saving/test_saving.py::test_networks": "real networks",
    "saving/test_saving.py::test_networks_have_what_pruning_adds": "prunes most topologies",
    "saving/test_saving.py::test_random_networks": "random networks",
    "saving/test_saving.py::test_topologies": "prunes every topology",
    "saving/test_saving_again.py": "other processes",
    "service/": "servers and workers",
    "solver/selection/test_choosing.py": "seconds of search each",
    "solver/selection/test_widths.py": "real networks, and random ones",
    "solver/test_audit.py::test_densenet_needs_cases": "a real network",
    "solver/test_coupling.py": "real networks",
    "solver/test_direct.py": "many instances",
    "solver/test_exact.py": "many instances",
    "solver/test_explaining.py": "real networks",
    "solver/test_greedy.py": "real and random networks",
    "solver/test_instance_library.py": "every solver on every instance",
    "solver/test_local_search.py": "searches until its time is over",
    "solver/test_milp.py": "a process for PuLP",
    "solver/test_removal.py": "real networks",
    "solver/test_segments.py": "random networks",
    "solver/test_solvers.py": "every solver on many instances",
    "solver/test_torch_free.py": "other processes",
    "solver/test_windows.py": "every solver on many instances",
    "test_child_process.py": "other processes",
    "test_deploying.py": "ONNX files and compilers",
    "test_docs.py": "runs all pages",
    "test_examples.py": "whole networks",
    "test_house.py::test_what_is_listed_is_there_before_and_after_it_is_loaded": "another process",
    "test_packaging.py": "builds the wheel",
    "test_site.py": "another process",
    "tracing/test_conservative.py": "captures by torch.export",
    "tracing/test_export_inputs.py": "captures by torch.export",
    "tracing/test_hooks.py": "captures by torch.export",
    "tracing/test_refused.py": "captures by torch.export",
    "tracing/test_rule_decorator.py": "captures by torch.export",
    "tracing/test_rules.py": "hundreds of calls on real data",
    "tracing/test_tracing_finds.py::test_networks_beyond_the_list_are_traced": "real networks",
}
"""File, folder or ``file::test`` below ``tests/`` → the reason."""


def is_slow(path: str, test: str = "") -> bool:
    """Whether ``make quick`` leaves out a file, a folder (``cli/``) or a test of a file.

    Args:
        path: from ``tests/`` on.
        test: its name, which may end in parameters, ``[...]``.
    """
    return f"{path}::{test.partition('[')[0]}" in SLOW or any(
        path == name or (name.endswith("/") and path.startswith(name)) for name in SLOW
    )
