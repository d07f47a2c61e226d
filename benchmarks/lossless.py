"""Prune thousands of random networks with random masks, and check that nothing is lost.

    python benchmarks/lossless.py --networks 5000 --seed 0 --jobs 2
    python benchmarks/lossless.py --networks 0 --full            # topologies x 200 masks
    python benchmarks/lossless.py --networks 5000 --kinds basic  # convolutional networks only
    python benchmarks/lossless.py --networks 5000 --hazards      # other calls, too: see below
    python benchmarks/lossless.py --case network/4711            # one of them again, in detail

Everything runs in float64, where an export may deviate by 1e-10 at most (relative to the largest
output). Exit status: 0 if all is well, 1 after a failure, 130 if interrupted before any.

With ``--hazards``, networks use sizes, arguments, gates, wrapped helpers and the like, and exports
are called with other batches, image sizes, ranks and arguments. Every call has to be right or to
be refused by an error of ours. All of these networks are honest: nothing in them depends on data
or on state. So refusing one as a whole is counted, with the reason.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.models import catalogue
from upscale_opt.models.generated.hazards import HazardousNetwork, OtherCall, hazardous_network
from upscale_opt.models.generated.masks import (
    HARSH,
    STYLES,
    Side,
    apply_weight_masks,
    random_weight_masks,
)
from upscale_opt.models.generated.networks import random_network
from upscale_opt.models.generated.programs import Kinds
from upscale_opt.models.topologies import TOPOLOGIES, example_inputs
from upscale_opt.solver.network.objectives import bytes_per_channel

EXACT = 1e-10
MASKS = 200
SIDES: tuple[Side, ...] = ("in", "out", "both")
MOODS = (STYLES, STYLES, STYLES, HARSH)
NETWORKS: dict[str, Kinds] = {"network": "all", "basic": "basic"}
FORMS = "network/SEED, basic/SEED, hazard/SEED or topology/NAME/NUMBER"


class Lossy(Exception):  # noqa: N818 - a finding, not an error of ours
    """The export, or what is claimed of it, is wrong."""


class Crashed(Exception):  # noqa: N818 - a finding, too
    """Neither right nor refused: an error that is not ours."""


@dataclass(frozen=True)
class Result:
    """What came of one case.

    Attributes:
        case: its name, for ``--case``.
        error: what went wrong, in one line, or ``""``.
        compared: whether there was anything finite to compare with.
        deviation: the relative deviation.
        copied: the channels copied.
        refused: why the whole network was refused, or ``""``; of hazards only.
        refusals: why which calls were.
    """

    case: str
    error: str = ""
    compared: bool = True
    deviation: float = 0.0
    copied: int = 0
    refused: str = ""
    refusals: tuple[str, ...] = ()


@dataclass
class Summary:
    """What came of all cases so far."""

    tried: int = 0
    compared: int = 0
    worst: float = 0.0
    copying: int = 0
    failures: list[Result] = field(default_factory=list)
    refused: list[Result] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        """Count one more."""
        self.tried += 1
        self.compared += result.compared and not result.error and not result.refused
        self.worst = max(self.worst, result.deviation)
        self.copying += result.copied > 0
        self.refusals.update(result.refusals)
        if result.error:
            self.failures.append(result)
        elif result.refused:
            self.refused.append(result)


def network_case(seed: int, kinds: Kinds = "all") -> tuple[nn.Module, Any, Any]:
    """A masked random network, and inputs of two batch sizes."""
    rng = random.Random(seed)
    model = random_network(rng, max_ops=rng.randint(1, 16), kinds=kinds).double()
    side = rng.choice(SIDES)
    if kinds == "basic":  # as it always was: a seed keeps its meaning
        masks = random_weight_masks(model, rng, side, per_group=False)
    else:
        masks = random_weight_masks(model, rng, side, styles=rng.choice(MOODS))
    apply_weight_masks(model, masks, biases=rng.random() < 0.5)
    inputs = model.example_inputs(2, dtype=torch.float64)
    return model, inputs, model.example_inputs(3, seed=1, dtype=torch.float64)


def hazard_case(seed: int) -> tuple[HazardousNetwork, Any, list[OtherCall]]:
    """A masked network of hazards, what it is traced with, and the later calls."""
    rng = random.Random(seed)
    model = hazardous_network(rng, max_ops=rng.randint(3, 14))
    masks = random_weight_masks(model, rng, rng.choice(SIDES), styles=rng.choice(MOODS))
    apply_weight_masks(model, masks, biases=rng.random() < 0.7)
    inputs = model.calls()
    plain = set(inputs) == {"x"} and rng.random() < 0.5
    return model, inputs["x"] if plain else inputs, model.other_calls(rng)


def topology_case(name: str, number: int) -> tuple[nn.Module, Any, Any]:
    """A masked topology, and inputs of two batch sizes."""
    model, original = _topology(name)
    model.load_state_dict(original)
    rng = random.Random(number)
    masks = random_weight_masks(model, rng, SIDES[number % 3])
    apply_weight_masks(model, masks, biases=rng.random() < 0.5)
    return model, _double(example_inputs(name, 2)), _double(example_inputs(name, 3))


@lru_cache(maxsize=1)  # the same object again: then it need not be traced again
def _topology(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    inputs = example_inputs(name, 4)
    model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 0, inputs).double()
    return model, {key: value.clone() for key, value in model.state_dict().items()}


def _double(inputs: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.double(), inputs)


def build(case: str) -> tuple[nn.Module, Any, Any]:
    """The model and inputs that ``case`` names, such as ``network/4711``; see ``FORMS``."""
    kind, *rest = case.split("/")
    if kind in NETWORKS and len(rest) == 1 and rest[0].isdigit():
        return network_case(int(rest[0]), NETWORKS[kind])
    if kind == "topology" and len(rest) == 2 and rest[0] in TOPOLOGIES and rest[1].isdigit():
        return topology_case(rest[0], int(rest[1]))
    raise SystemExit(f"no such case: {case} (write {FORMS})")


def check(model: nn.Module, inputs: Any, others: Any) -> tuple[bool, float, int]:
    """Prune and compare: whether outputs were finite, the deviation, the channels copied.

    Raises:
        Lossy: if the outputs differ, or the solution's counts are wrong.
    """
    pruned = uo.prune(model, inputs, check=False)
    solution = pruned.solution
    if solution.status != "optimal" or solution.lower_bound != solution.objective_value:
        raise Lossy(f"{solution.status}: {solution.lower_bound} of {solution.objective_value}")
    tensors = pruned.graph.tensors.items()
    sizes = {name: bytes_per_channel(one) for name, one in tensors if one.channels}
    copied = sum(read.copied * sizes[read.tensor] for read in solution.reads)
    if copied != solution.objective_value:
        raise Lossy(f"copies {copied} bytes but says {solution.objective_value}")
    worst, finite = 0.0, True
    for given in (inputs, others):
        want, got = _run(model, given), _run(pruned.model, given)
        if pytree.tree_structure(want) != pytree.tree_structure(got):
            raise Lossy("outputs have another structure")
        for left, right in zip(pytree.tree_leaves(want), pytree.tree_leaves(got), strict=True):
            if left.shape != right.shape:
                raise Lossy(f"an output is {tuple(right.shape)} instead of {tuple(left.shape)}")
            if not left.isfinite().all():
                finite = False
            elif left.numel():
                scale, difference = left.abs().max().item(), (left - right).abs().max().item()
                error = difference / scale if scale > 0 else difference
                if not error < EXACT:
                    raise Lossy(f"deviates by {error:.2e}")
                worst = max(worst, error)
    return finite, worst, solution.copied


def _apart(want: Any, got: Any) -> float:
    """How far two results are apart: infinitely if they are not alike, NaN if not finite."""
    if pytree.tree_structure(want) != pytree.tree_structure(got):
        return math.inf
    worst = 0.0
    for left, right in zip(pytree.tree_leaves(want), pytree.tree_leaves(got), strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return math.inf
        if not left.isfinite().all():
            return math.nan
        if left.numel():
            scale, apart = float(left.abs().max()), float((left - right).abs().max())
            worst = max(worst, apart / scale if scale > 0 else apart)
    return worst


def check_calls(seed: int) -> Result:
    """Prune a network of hazards, and call it.

    Raises:
        Lossy: if a call is silently wrong.
        Crashed: if one fails by an error that is not ours.
    """
    case = f"hazard/{seed}"
    model, inputs, calls = hazard_case(seed)
    try:
        pruned = uo.prune(model, inputs, check=False)
    except uo.UpscaleError as error:
        return Result(case, refused=_reason(error))
    copied = pruned.solution.copied
    worst, compared, refusals, crash = 0.0, False, list[str](), ""
    first = inputs if isinstance(inputs, dict) else {"x": inputs}
    for call in (OtherCall("the traced inputs", first), *calls):
        try:
            want = _run(model, dict(call.arguments))
        except Exception:
            continue  # nothing to be equal to
        try:
            with redirect_stderr(io.StringIO()):  # torch.fx prints what it raises
                got = _run(pruned.model, dict(call.arguments))
        except uo.UpscaleError as error:
            refusals.append(_reason(error))
            continue
        except Exception as error:
            crash = crash or f"at {call.what}: {type(error).__name__}: {_line(error)}"
            continue
        apart = _apart(want, got)
        if apart > EXACT:
            raise Lossy(f"at {call.what}: deviates by {apart:.2e}")
        worst, compared = max(worst, apart), compared or not math.isnan(apart)
    if crash:
        raise Crashed(crash)
    return Result(case, "", compared, worst, copied, refusals=tuple(refusals))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _reason(error: Exception) -> str:
    """The message without what differs from network to network."""
    text = re.sub(r"'[^']*'", "'…'", _line(error))
    text = re.sub(r"[-+]?\d[\d.e+-]*", "#", text)
    return f"{type(error).__name__}: {text}"[:130]


def _run(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def try_case(case: str) -> Result:
    """Build and check one case, whatever happens."""
    kind, _, seed = case.partition("/")
    try:
        if kind == "hazard":
            return check_calls(int(seed))
        return Result(case, "", *check(*build(case)))
    except Exception as error:
        return Result(case, f"{type(error).__name__}: {_line(error)}")


def _quiet() -> None:
    """In a worker: leave Ctrl-C to the main process, and the cores to the other workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def results(cases: Sequence[str], jobs: int) -> Iterator[Result]:
    """Try all cases, in ``jobs`` processes."""
    if jobs == 1:
        torch.set_num_threads(1)
        yield from map(try_case, cases)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "upscale_opt.solver", "upscale_opt.materializing.materialize"]
    )
    with context.Pool(jobs, _quiet) as pool:
        yield from pool.imap_unordered(try_case, cases, chunksize=4)


def cases_of(options: argparse.Namespace) -> list[str]:
    """The names of all cases to try."""
    kind = next(kind for kind, kinds in NETWORKS.items() if kinds == options.kinds)
    kind = "hazard" if options.hazards else kind
    cases = [f"{kind}/{options.seed + number}" for number in range(options.networks)]
    if options.full:
        cases += [f"topology/{name}/{number}" for name in TOPOLOGIES for number in range(MASKS)]
    return cases


def report(console: Console, summary: Summary, planned: int, seconds: float) -> None:
    """Print what came of it, with a line to reproduce every failure."""
    console.print(
        f"{summary.tried:,} of {planned:,} networks in {seconds:.0f} s: "
        f"{summary.compared:,} lossless (worst deviation {summary.worst:.1e}), "
        f"{len(summary.failures):,} failed, "
        f"{summary.tried - summary.compared - len(summary.failures) - len(summary.refused):,} "
        f"with nothing finite to compare; {summary.copying:,} needed copies",
        highlight=False,
        soft_wrap=True,
    )
    kinds = Counter(result.error.partition(":")[0] for result in summary.failures)
    if kinds:
        console.print("failures: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    _report_refusals(console, summary)
    for result in sorted(summary.failures, key=lambda result: result.case):
        lines = f"  {result.error}\n    python {sys.argv[0]} --case {result.case}"
        console.print(lines, markup=False, highlight=False, soft_wrap=True)


def _report_refusals(console: Console, summary: Summary) -> None:
    """Print how many networks and calls were refused, by reason."""
    refused = summary.refused
    if refused:
        share = len(refused) / summary.tried
        console.print(
            f"{len(refused):,} refused as a whole, all of them honest: {share:.1%}", highlight=False
        )
    for reason, count in Counter(result.refused for result in refused).most_common(12):
        example = next(result.case for result in refused if result.refused == reason)
        line = f"  {count:,} x {reason} ({example})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if summary.refusals:
        console.print(f"{summary.refusals.total():,} calls refused:", highlight=False)
    for reason, count in summary.refusals.most_common(12):
        console.print(f"  {count:,} x {reason}", markup=False, highlight=False, soft_wrap=True)


def explain(case: str, console: Console) -> int:
    """Try one case and print everything about it."""
    if case.startswith("hazard/"):
        return _explain_hazard(case, console)
    model, inputs, others = build(case)
    console.print(model, markup=False, highlight=False)
    try:
        _, deviation, copied = check(model, inputs, others)
    except Exception:
        console.print(traceback.format_exc(), markup=False, highlight=False)
        return 1
    console.print(f"lossless: deviates by {deviation:.1e}, copies {copied} channels")
    return 0


def _explain_hazard(case: str, console: Console) -> int:
    seed = case.partition("/")[2]
    if not seed.isdigit():
        raise SystemExit(f"no such case: {case} (write {FORMS})")
    model, inputs, _ = hazard_case(int(seed))
    given = {k: v for k, v in inputs.items() if k != "x"} if isinstance(inputs, dict) else {}
    console.print(f"{model}\ngiven: {given}", markup=False, highlight=False)
    result = try_case(case)
    words = result.error or (f"refused: {result.refused}" if result.refused else "right or refused")
    console.print("\n".join([words, *result.refusals]), markup=False, highlight=False)
    return 1 if result.error else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", type=int, default=5000, help="how many random networks")
    parser.add_argument("--seed", type=int, default=0, help="the first network's seed")
    parser.add_argument(
        "--kinds",
        choices=["all", "basic"],
        default="all",
        help="networks of all kinds of steps, or of plain convolutional ones",
    )
    parser.add_argument(
        "--hazards", action="store_true", help="networks of hazards, and other calls of them"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--full", action="store_true", help=f"all topologies x {MASKS} masks too")
    parser.add_argument("--case", help=f"only this one, in detail: {FORMS}")
    options = parser.parse_args(arguments)
    if options.networks < 0 or options.seed < 0 or options.jobs < 1:
        parser.error("--networks and --seed cannot be negative, and --jobs is 1 or more")
    console = Console()
    if options.case:
        return explain(options.case, console)
    cases = cases_of(options)
    summary, start, interrupted = Summary(), time.perf_counter(), False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("lossless", total=len(cases))
            for result in results(cases, options.jobs):
                summary.add(result)
                failed = f", {len(summary.failures)} failed" if summary.failures else ""
                progress.update(task, advance=1, description=f"lossless{failed}")
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted")
    report(console, summary, len(cases), time.perf_counter() - start)
    if summary.failures:
        return 1
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
