"""How long trace, solve and materialise take, beside another checkout, in turn.

git worktree add ../before COMMIT
python benchmarks/speed_vs_checkout.py ../before --networks resnet50 densenet201 --rounds 5

Each measurement is a process of its own, with one thread; per step the least of the rounds is
taken, as nothing makes a process faster than it is. Ratios are this checkout's by the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1]
STEPS = ("trace", "solve", "materialize")

CHILD = """
import json, sys, time, torch, torchvision
torch.set_num_threads(1)
import upscale_opt as uo
masks_of = getattr(uo, "masks_of", None) or uo.Masks.from_model
from upscale_opt.models import catalogue
name = sys.argv[1]
inputs = catalogue.example_inputs(name, 2)
model = catalogue.randomize(catalogue.build(name, seed=1), 2, inputs)
graph = uo.trace(model, inputs)
uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5))
seconds = {}
def timed(step, call):
    start = time.perf_counter()
    result = call()
    seconds[step] = time.perf_counter() - start
    return result
graph = timed("trace", lambda: uo.trace(model, inputs))
masks = masks_of(model, graph)
solution = timed("solve", lambda: uo.solve(graph, masks))
timed("materialize", lambda: uo.materialize(model, solution))
print(json.dumps(seconds))
"""


def as_package(checkout: Path, folder: Path) -> Path:
    """A folder from which ``upscale_opt`` is that checkout's."""
    package = folder / "upscale_opt"
    package.mkdir(parents=True)
    for entry in (*(checkout / "upscale_opt").iterdir(), checkout / "solver", checkout / "models"):
        (package / entry.name).symlink_to(entry.resolve())
    return folder


def measure(place: Path, network: str) -> dict[str, float]:
    """Seconds per step."""
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, network]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-c", CHILD, network],
        env=environment,
        cwd=place,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    result: dict[str, float] = json.loads(printed.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "densenet201"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'network':16} {'step':12} {'other, s':>9} {'this, s':>9} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        places = [
            as_package(options.other, Path(folder) / "other"),
            as_package(HERE, Path(folder) / "this"),
        ]
        for network in options.networks:
            rounds = [[measure(p, network) for p in places] for _ in range(options.rounds)]
            totals = [0.0, 0.0]
            for step in STEPS:
                least = [min(pair[side][step] for pair in rounds) for side in (0, 1)]
                totals = [total + value for total, value in zip(totals, least, strict=True)]
                print(f"{network:16} {step:12} {least[0]:9.2f} {least[1]:9.2f} {_ratio(least)}")
            print(f"{network:16} {'all':12} {totals[0]:9.2f} {totals[1]:9.2f} {_ratio(totals)}")


def _ratio(pair: list[float]) -> str:
    return f"{pair[1] / pair[0]:7.3f}"


if __name__ == "__main__":
    main()
