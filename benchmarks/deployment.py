"""Export networks to ONNX and pt2, compile them, and compare all of it with the eager model.

python benchmarks/deployment.py --doc docs/deploying.md

What was measured is kept, a file for each row; a second call adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import pages
import torch
from torch import nn

import upscale_opt as uo
from upscale_opt.deploying import capture, deploy
from upscale_opt.ir.base import write_atomically
from upscale_opt.models import catalogue
from upscale_opt.verifying.deviation import deviation

NETWORKS = ["resnet50", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x1_0"]

PLANS: dict[str, dict[str, Any]] = {
    "tensor": {},
    "arena": {"selection": "arena"},
    "windows": {"max_extra_macs": 0.05},
}

VERSIONS = {"PyTorch": torch.__version__, "onnxruntime": onnxruntime.__version__}


def faults(program: torch.export.ExportedProgram) -> list[str]:
    """Operations that modify what they get, or whose results' shapes depend on data."""
    found = []
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            data = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
            if node.target._schema.is_mutable or data & set(node.target.tags):
                found.append(str(node.target))
    written = program.graph_signature
    return [*found, *written.buffers_to_mutate, *written.user_inputs_to_mutate]


def compiled(model: nn.Module, inputs: torch.Tensor) -> float:
    """How far the compiled model is from the eager one, on batches of one, two and three."""
    torch._dynamo.reset()
    fast = torch.compile(model, dynamic=True)
    worst = 0.0
    with torch.no_grad():
        for batch in (inputs, torch.cat([inputs, inputs.flip(-1)])[:3], inputs[:1]):
            worst = max(worst, deviation(model(batch), fast(batch)))
    return worst


def measure(name: str, plan: str, amount: float, compiler: bool, found: dict[str, Any]) -> None:
    """Add to ``found`` what it lacks of one network's exports with one plan."""
    wanted = [kind for kind in ("onnx", "pt2", "faults") if kind not in found]
    wanted += ["compiled"] if compiler and "compiled" not in found else []
    if not wanted:
        return
    torch.manual_seed(0)
    inputs = catalogue.example_inputs(name, 2)
    assert isinstance(inputs, torch.Tensor)
    model = catalogue.randomize(catalogue.build(name), 0, inputs)
    pruned = uo.prune(model, inputs, amount=amount, check=False, **PLANS[plan])
    found["arenas"], found["windows"] = len(pruned.solution.arenas), pruned.solution.windows
    with tempfile.TemporaryDirectory() as folder:
        for kind in [kind for kind in wanted if kind in ("onnx", "pt2")]:
            done = deploy(pruned.model, inputs, Path(folder) / f"pruned.{kind}")
            found[kind] = {"deviation": done.deviation, "size": done.size}
            found["batches"] = done.batches
    if "faults" in wanted:
        found["faults"] = faults(capture(pruned.model.eval(), inputs))
    if "compiled" in wanted:
        found["compiled"] = compiled(pruned.model.eval(), inputs)


def recorded(name: str, plan: str, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a row, kept from before or made now."""
    file = options.records / f"{name}-{plan}-{options.amount:g}.json"
    found: dict[str, Any] = {"versions": VERSIONS}
    if file.exists():
        kept = json.loads(file.read_text())
        found = kept if kept["versions"] == VERSIONS else found
    before = dict(found)
    measure(name, plan, options.amount, not options.no_compile, found)
    if found != before:
        write_atomically(file, (json.dumps(found, indent=1) + "\n").encode())
    return found


def row(name: str, plan: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [name, plan, str(found["arenas"]), str(found["windows"])]
    for kind in ("onnx", "pt2"):
        cells += [f"{found[kind]['deviation']:.0e}", f"{found[kind]['size'] / 1e6:.1f}"]
    cells.append(f"{found['compiled']:.0e}" if "compiled" in found else "not run")
    cells.append(", ".join(map(str, found["batches"])))
    cells.append(", ".join(found["faults"]) or "none")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="catalogue names")
    parser.add_argument("--doc", type=Path, help="the page whose table is to be written")
    parser.add_argument("--records", type=Path, default=Path("out/deployment"))
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--plan", nargs="+", choices=list(PLANS), default=list(PLANS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"{options.amount:.0%} of the input channels of all layers dropped by L2 magnitude, random "
        "weights, float32, captured with a batch of two and a dynamic batch axis. Deviations are "
        "from the eager pruned model, relative to its largest output, on all the batch sizes "
        "named; sizes in MB. *Compiled* is `torch.compile(dynamic=True)` with inductor, minutes "
        "each; `--no-compile` shows what earlier runs without it recorded. *In place* lists "
        "operations of the functional form that write into what they get, or whose shapes depend "
        "on data.",
        "",
        f"Written by `{pages.command()}` with "
        f"{', '.join(' '.join(version) for version in VERSIONS.items())}.",
        "",
        "| network | plan | arenas | windows | ONNX: deviation | MB | pt2: deviation | MB "
        "| compiled: deviation | batches | in place |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for plan in options.plan:
        for name in options.networks:
            lines.append(row(name, plan, recorded(name, plan, options)))
            pages.say(lines[-1])
    print("\n".join(lines))
    if options.doc is not None:
        pages.replace_section(options.doc, "deployment", lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
