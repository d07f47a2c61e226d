"""Whole random networks under random masks, and the command that tries thousands of them."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch
from comparing import BENCHMARKS, EXACT, benchmark, call, deviation
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from network_strategies import network_and_masks
from torch import nn
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.models.generated.hazard_steps import HAZARDS
from upscale_opt.models.generated.hazards import hazardous_network
from upscale_opt.models.generated.masks import WeightMasks, apply_weight_masks
from upscale_opt.models.generated.networks import RandomNetwork, random_network

COMMAND = BENCHMARKS / "lossless.py"

compared = 0
copying = 0


@settings(
    max_examples=70,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network_and_masks(), st.booleans())
def lossless(drawn: tuple[RandomNetwork, WeightMasks], biases: bool) -> None:
    global compared, copying
    network, masks = drawn
    apply_weight_masks(network, masks, biases=biases).double()
    inputs = network.example_inputs(2, dtype=torch.float64)
    graph = uo.trace(network, inputs)
    found = uo.masks_of(network, graph)
    found.check(graph)
    solution = uo.solve(graph, found)
    assert solution.status == "optimal"
    assert solution.lower_bound == solution.objective_value
    assert sum(read.copied for read in solution.reads) == solution.objective_value
    assert uo.Solution.from_json(solution.to_json()) == solution
    assert uo.check(solution, graph, found).optimal
    pruned = uo.materialize(network, solution)
    want = call(network, inputs)
    assume(all(bool(leaf.isfinite().all()) for leaf in pytree.tree_leaves(want)))
    assert deviation(want, call(pruned, inputs)) < EXACT
    more = network.example_inputs(5, seed=1, dtype=torch.float64)
    assert deviation(call(network, more), call(pruned, more)) < EXACT
    compared += 1
    copying += solution.objective_value > 0


OTHERS: tuple[dict[str, Any], ...] = (
    {"selection": "arena"},
    {"max_extra_macs": 0.02},
    {"max_extra_macs": 0.5},
    {"objective": "latency"},
    {"selection": "arena", "max_extra_macs": 0.5},
)


def channels_last(inputs: Any) -> Any:
    """The same numbers, images with their channels innermost in memory."""

    def last(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    return pytree.tree_map_only(torch.Tensor, last, inputs)


@settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network_and_masks(), st.sampled_from(OTHERS))
def test_arenas_and_windows_are_lossless(
    drawn: tuple[RandomNetwork, WeightMasks], options: dict[str, Any]
) -> None:
    network, masks = drawn
    apply_weight_masks(network, masks).double()
    inputs = network.example_inputs(2, dtype=torch.float64)
    graph = uo.trace(network, inputs)
    found = uo.masks_of(network, graph)
    solution = uo.solve(graph, found, time_limit=5, **options)
    assert uo.Solution.from_json(solution.to_json()) == solution
    uo.check(solution, graph, found)
    pruned = uo.materialize(network, solution)
    more = network.example_inputs(7, seed=1, dtype=torch.float64)
    for x in (inputs, more, channels_last(inputs)):
        want = call(network, x)
        assume(all(bool(leaf.isfinite().all()) for leaf in pytree.tree_leaves(want)))
        assert deviation(want, call(pruned, x)) < EXACT


def test_random_networks_are_lossless() -> None:
    lossless()
    assert compared >= 64
    assert copying >= 10  # or the networks are too easy


# Hazards: sizes, arguments, gates, helpers; and later calls.

DRAWS = 200


@cache
def hazards() -> list[Any]:
    """What came of the first networks of hazards."""
    module = benchmark("lossless")
    return [module.try_case(f"hazard/{seed}") for seed in range(DRAWS)]


def test_random_hazards_are_right_or_refused() -> None:
    wrong = {result.case: result.error for result in hazards() if result.error}
    assert not wrong, f"{len(wrong)} of {DRAWS}: {wrong}"


def test_few_honest_networks_are_refused() -> None:
    refused = {result.case: result.refused for result in hazards() if result.refused}
    assert len(refused) <= 0.1 * DRAWS, refused


def test_every_hazard_is_drawn() -> None:
    counts: Counter[str] = Counter()
    for seed in range(400):
        rng = random.Random(seed)
        network = hazardous_network(rng, max_ops=rng.randint(3, 14))
        counts.update({step.op for step in network.steps})
    assert [name for name in HAZARDS if counts[name] < 3] == []


def test_hazards_run_and_are_called_otherwise() -> None:
    ran: Counter[str] = Counter()
    for seed in range(40):
        rng = random.Random(seed)
        network = hazardous_network(rng, max_ops=rng.randint(3, 14))
        assert deviation(call(network, network.calls()), call(network, network.calls())) == 0
        for later in network.other_calls(rng):
            with suppress(RuntimeError, IndexError, ValueError):
                call(network, later.arguments)
                ran[later.what.split("=")[0]] += 1
    assert ran["a larger batch"] == ran["nothing but the image"] == 40
    assert ran["all sizes"] > 30
    assert ran["one image"] > 10
    assert ran["flag"] > 2
    assert ran["scale"] > 2
    assert ran["k"] > 2
    assert ran["a gate of N1HW"] > 2


def test_command_finds_hazards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("lossless")
    real = uo.prune

    def wrong(model: nn.Module, inputs: Any, **options: Any) -> Any:
        if len(list(model.parameters())) % 2:
            raise uo.TraceError(f"no model of {len(list(model.parameters()))} parameters")
        pruned = real(model, inputs, **options)
        with torch.no_grad():
            for parameter in pruned.model.parameters():
                parameter.mul_(1.001)
        return pruned

    monkeypatch.setattr(uo, "prune", wrong)
    assert module.main(["--networks", "8", "--hazards"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "refused as a whole, all of them honest" in output
    assert "x TraceError: no model of # parameters" in output
    case = re.findall(r"--case (hazard/\d+)", output)[0]
    assert module.main(["--case", case]) == 1
    assert "Lossy: at" in capsys.readouterr().out


# The command.


def test_command_reports_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark("lossless").main(["--networks", "30", "--seed", "100"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "30 of 30 networks" in output
    assert "0 failed" in output


def test_command_draws_plain_networks_where_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("lossless")
    tried: list[str] = []

    def try_case(case: str) -> Any:
        tried.append(case)
        return module.Result(case)

    monkeypatch.setattr(module, "try_case", try_case)
    assert module.main(["--networks", "2", "--seed", "5", "--kinds", "basic"]) == 0
    assert module.main(["--networks", "1", "--seed", "5"]) == 0
    assert tried == ["basic/5", "basic/6", "network/5"]
    assert module.main(["--case", "basic/5"]) == 0
    rng = random.Random(5)
    plain = random_network(rng, max_ops=rng.randint(1, 16), kinds="basic")
    printed = "".join(capsys.readouterr().out.split())  # a terminal's lines are cut anywhere
    assert "".join(plain.describe().split()) in printed


def test_command_finds_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = uo.prune

    def wrong(model: nn.Module, inputs: Any, **options: Any) -> Any:
        pruned = real(model, inputs, **options)
        with torch.no_grad():
            for parameter in pruned.model.parameters():
                parameter.mul_(1.001)
        return pruned

    monkeypatch.setattr(uo, "prune", wrong)
    module = benchmark("lossless")
    assert module.main(["--networks", "5", "--seed", "100"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "Lossy: deviates by" in output
    assert "--case network/10" in output
    case = output.partition("--case ")[2].split()[0]
    assert module.main(["--case", case]) == 1
    assert "deviates by" in capsys.readouterr().out
    monkeypatch.setattr(uo, "prune", real)
    assert module.main(["--case", case]) == 0


def test_command_covers_topologies_too() -> None:
    module = benchmark("lossless")
    assert module.try_case("topology/residual_stage/7").error == ""
    assert module.try_case("topology/dict_input/8").error == ""
    with pytest.raises(SystemExit, match="no such case"):
        module.main(["--case", "topology/no_such/1"])


def test_command_prints_a_summary_when_interrupted() -> None:
    arguments = [sys.executable, "-u", str(COMMAND), "--networks", "100000", "--jobs", "2"]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "100"}
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",  # the bar's characters may be cut in two between the two reads below
        env=environment,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        seen = ""
        limit = time.monotonic() + 90
        while not re.search(r"\b[1-9]\d*/100000", seen) and time.monotonic() < limit:
            seen += running.stdout.read(1)
        os.killpg(running.pid, signal.SIGINT)
        rest, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in rest
    tried = re.search(r"([\d,]+) of 100,000 networks", rest)
    assert tried is not None
    assert 0 < int(tried[1].replace(",", "")) < 100_000


def test_command_prints_failures_when_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("lossless")
    tried: list[str] = []

    def try_case(case: str) -> Any:
        tried.append(case)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return module.Result(case, error="Lossy: made up")

    monkeypatch.setattr(module, "try_case", try_case)
    assert module.main(["--networks", "9"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "interrupted 2 of 9 networks" in output
    assert "2 failed" in output
    assert "2 Lossy" in output
    assert "--case network/1" in output
