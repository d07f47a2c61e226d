"""From a checkpoint to a checked ONNX file that takes half of the time.

An OCR network with its real weights (EasyOCR's `english_g2`, seven convolutions and two LSTMs)
reads words that are drawn on the spot. It is pruned to a share of its time, by the clock, with a
few dozen of such pictures and without labels or training. `make run` runs this; take your own
network, inputs and test in its place.

    python examples/faster_reader.py

Needs the extras `study` and `onnx`; `.venv` has them.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.experiments.study.recogniser import read, recogniser
from upscale_opt.experiments.study.words import Words, words_to_calibrate, words_to_read
from upscale_opt.solver.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """The network before and after.

    Attributes:
        result: of the pruning.
        accuracy: the share of words read without a fault, before and after.
        pytorch: milliseconds for the pictures of one call in PyTorch, before and after.
        onnx: the same in onnxruntime.
        seconds: that pruning took.
        file: the smaller network.
    """

    result: uo.Pruned
    accuracy: tuple[float, float]
    pytorch: tuple[float, float]
    onnx: tuple[float, float]
    seconds: float
    file: Path


def faster(
    latency: float,
    out: Path,
    *,
    words: int = 400,
    calibration: int = 32,
    batch: int = 8,
    measure: bool = True,
    time_limit: float = 10.0,
    tell: Any = None,
) -> Outcome:
    """Prune the reader to a share of its time, and see what it costs.

    Args:
        latency: the share of the time that may remain.
        out: the folder for the files.
        words: pictures to test with.
        calibration: other pictures, to choose and refit with; what they say is not looked at.
        batch: pictures in a call.
        measure: keep the budget by the clock, not only by the cost model's estimate.
        time_limit: seconds to choose the channels.
        tell: told of every step of pruning.
    """
    model, test = recogniser(), words_to_read()  # load
    batches = list(torch.split(words_to_calibrate().pixels[:calibration], 32))
    example = test.pixels[:batch]

    start = time.perf_counter()
    budget = uo.Budget(latency=latency, round_to=8)
    result = uo.prune(
        model,
        example,
        budget=budget,
        data=batches,
        measure=measure,
        time_limit=time_limit,
        progress=tell,
    )
    seconds = time.perf_counter() - start

    out.mkdir(parents=True, exist_ok=True)
    files = out / "reader.onnx", out / "pruned.onnx"
    for network, file in zip((model, result.model), files, strict=True):
        uo.deploy(network, example, file, dynamic_batch=False)  # written, read again, and compared
    result.graph.save(out / "graph.json")
    result.masks.save(out / "masks.json")
    result.solution.save(out / "solution.json")
    assert result.choice is not None
    result.choice.save(out / "choice.json")
    uo.save(result.model, out / "pruned.safetensors")

    old, new = (share_read(network, test, words) for network in (model, result.model))
    times = uo.measuring.beside({"before": model, "after": result.model}, example).milliseconds
    slow, fast = in_onnxruntime(files, example)
    return Outcome(
        result, (old, new), (times["before"], times["after"]), (slow, fast), seconds, files[1]
    )


def share_read(model: nn.Module, test: Words, words: int) -> float:
    """The share of the words that the model reads without a fault."""
    with torch.no_grad():
        texts = [t for x in torch.split(test.pixels[:words], 50) for t in read(model(x))]
    return sum(map(str.__eq__, texts, test.texts)) / len(texts)


def in_onnxruntime(files: tuple[Path, ...], example: Tensor, rounds: int = 15) -> list[float]:
    """The median milliseconds of each file, run in turn."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    sessions = [onnxruntime.InferenceSession(file, options) for file in files]
    found: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for session, own in zip(sessions, found, strict=True):
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: example.numpy()})
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in found]


def main(arguments: list[str] | None = None) -> None:
    """Prune, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.5, help="the share that may remain")
    parser.add_argument("--words", type=int, default=400, help="pictures to test with")
    parser.add_argument("--calibration", type=int, default=32, help="pictures to prune with")
    parser.add_argument("--no-measure", action="store_true", help="trust the estimated times")
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds of search")
    parser.add_argument("--out", type=Path, default=Path("out/run"), help="where the files go")
    options = parser.parse_args(arguments)
    shown, start = "", time.perf_counter()
    for kind in (FutureWarning, UserWarning):  # of torch.export, and of code that it writes
        warnings.filterwarnings("ignore", category=kind)

    def tell(event: Progress) -> None:
        nonlocal shown
        step = str(event).partition(":")[0]
        if step != shown:
            print(f"{time.perf_counter() - start:6.1f} s  {step} ...", flush=True)
            shown = step

    print(f"An OCR network with real weights, to be pruned to {options.latency:.0%} of its time")
    done = faster(
        options.latency,
        options.out,
        words=options.words,
        calibration=options.calibration,
        measure=not options.no_measure,
        time_limit=options.time_limit,
        tell=tell,
    )
    print()
    print(done.result.table)
    report = done.result.report
    assert report is not None
    print(
        f"""
                             before      after
words read correctly       {done.accuracy[0]:8.1%}   {done.accuracy[1]:8.1%}
ms in PyTorch              {done.pytorch[0]:8.1f}   {done.pytorch[1]:8.1f}   \
({done.pytorch[1] / done.pytorch[0]:.0%})
ms in onnxruntime          {done.onnx[0]:8.1f}   {done.onnx[1]:8.1f}   \
({done.onnx[1] / done.onnx[0]:.0%})

Pruned in {done.seconds:.0f} s, without training. Proof: the smaller network computes what the
refitted masked one does, but for rounding ({report.float64_error:.0e} of the output, in float64).

Written to {options.out}. Where to look next:
  upscale-opt report {options.out / "solution.json"}   the same as a page for your browser
  docs/howto-budget.md   your own network, and what a budget can say
  docs/README.md         everything else"""
    )


if __name__ == "__main__":
    main()
