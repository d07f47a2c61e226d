"""The removal report: its numbers are those of the exported model, and its reasons are true."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from comparing import complaint
from hypothesis import given, settings
from network_strategies import network_and_masks
from sample_networks import built, documents_of, images, keep
from torch import Tensor, nn
from typer.testing import CliRunner

import upscale_opt as uo
from upscale_opt.cli.removed import removed
from upscale_opt.errors import VerificationError
from upscale_opt.models import catalogue
from upscale_opt.models.generated.masks import (
    Side,
    WeightMasks,
    apply_weight_masks,
    random_weight_masks,
)
from upscale_opt.models.generated.networks import RandomNetwork
from upscale_opt.models.topologies import TOPOLOGIES
from upscale_opt.solver.checking.removal import Removal, Stays, removal

SIDES: list[Side] = ["in", "out", "both"]


def exported(model: nn.Module, inputs: object) -> tuple[Removal, nn.Module]:
    """The report for a model as its weights stand, and its export."""
    graph = uo.trace(model, inputs)  # type: ignore[arg-type]
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks)
    return removal(graph, masks, solution), uo.materialize(model, solution)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by all their names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def assert_counts(report: Removal, model: nn.Module, pruned: nn.Module) -> None:
    """The report says of every parameter what the exported model shows."""
    before, after = tensors(model), tensors(pruned)
    for one in report.parameters:
        old = before[one.name]
        new = after.get(one.name, torch.zeros(0))
        assert one.weights == old.numel()
        assert one.masked == int((old == 0).sum()), one
        assert one.removed == old.numel() - new.numel(), one
        assert one.masked - one.gone == int((new == 0).sum()), one
        assert sum(s.weights for axis in one.axes for s in axis.left) == one.masked - one.gone
        for axis in one.axes:
            listed = [index for stays in axis.left for index in stays.slices]
            assert sorted(listed) == sorted(set(axis.masked) - set(axis.removed))
            assert {stays.cause for stays in axis.left}.isdisjoint({"read", "stored"}), one


# Counts.


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("squeezenet1_1", "out"),
        ("mobilenet_v3_small", "in"),
        ("mobilenet_v3_small", "both"),
        ("shufflenet_v2_x0_5", "both"),
        ("regnet_y_400mf", "out"),
    ],
)
def test_counts_are_those_of_the_export(name: str, side: Side) -> None:
    inputs = images(2, 64)
    model = catalogue.randomize(catalogue.build(name, seed=1), 2, inputs)
    with torch.no_grad():
        for value in tensors(model).values():  # zero is what is masked
            value[value == 0] = 1
    apply_weight_masks(model, random_weight_masks(model, random.Random(3), side), biases=True)
    report, pruned = exported(model, inputs)
    assert 0 < report.gone <= report.masked
    assert_counts(report, model, pruned)


@pytest.mark.parametrize(("number", "name"), list(enumerate(TOPOLOGIES)))
def test_counts_for_topologies(number: int, name: str) -> None:
    inputs = catalogue.example_inputs(f"topology/{name}", 2)
    side = SIDES[number % 3]
    model = catalogue.randomize(catalogue.build(f"topology/{name}"), 1, inputs)
    masks = random_weight_masks(model, random.Random(number % 3), side)
    apply_weight_masks(model, masks, biases=side == "both")
    report, pruned = exported(model, inputs)
    assert_zeros_listed(report, pruned)


def assert_zeros_listed(report: Removal, pruned: nn.Module) -> None:
    """What the report says to be left is zero in the export; other weights may be so by chance."""
    after = tensors(pruned)
    for one in report.parameters:
        left = sum(stays.weights for axis in one.axes for stays in axis.left)
        assert left == one.masked - one.gone, one
        if one.name not in after:
            continue  # even more went: code whose result is not returned, which FX drops
        new = after[one.name]
        assert one.removed == one.weights - new.numel(), one
        assert left <= int((new == 0).sum()), one
        # A zero that somebody "reads" may be there for a tensor that shares this one's order.
        assert all(stays.cause != "stored" for a in one.axes for stays in a.left), one


@settings(deadline=None, max_examples=25)
@given(drawn=network_and_masks())
def test_counts_for_random_networks(drawn: tuple[RandomNetwork, WeightMasks]) -> None:
    network, masks = drawn
    apply_weight_masks(network, masks)
    report, pruned = exported(network, network.example_inputs(2))
    assert_zeros_listed(report, pruned)


# Reasons.


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    a: nn.Conv2d
    b: nn.Conv2d
    c: nn.Conv2d
    d: nn.Conv2d

    def __init__(self, forward: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def conv(inputs: int = 8, outputs: int = 8, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    torch.manual_seed(inputs + outputs)
    return nn.Conv2d(inputs, outputs, 1, bias=bias, groups=groups)


def stays(
    model: nn.Module, parameter: str, axis: int, channels: int = 8
) -> list[tuple[str, str, Sequence[int]]]:
    """Cause, operation and slices of what stays along an axis of a parameter."""
    inputs = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    report, pruned = exported(model.eval(), inputs)
    uo.verify(model, pruned, inputs)
    assert_zeros_listed(report, pruned)
    (one,) = (p for p in report.parameters if p.name == parameter)
    (found,) = (a for a in one.axes if a.axis == axis)
    return [(s.cause, s.op, s.slices) for s in found.left]


def test_a_bias_makes_a_constant() -> None:
    model = nn.Sequential(conv(bias=True), conv())
    keep(model.get_parameter("0.weight"), 0, [0, 1, 2, 3])
    assert stays(model, "0.weight", 0) == [("bias", "_1", (4, 5, 6, 7))]
    with torch.no_grad():
        model.get_parameter("0.bias")[4:6] = 0
    assert stays(model, "0.weight", 0) == [("bias", "_1", (6, 7))]


def test_a_bias_that_is_zero_stays_with_its_channel() -> None:
    model = nn.Sequential(conv(bias=True), conv())
    with torch.no_grad():
        model.get_parameter("0.bias")[2:] = 0
    keep(model.get_parameter("1.weight"), 1, [0, 1, 2, 3])
    assert stays(model, "0.bias", 0) == [("alive", "_1", (2, 3))]


def test_a_batch_norm_makes_a_constant() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv())
    keep(model.get_parameter("0.weight"), 0, [0, 1, 2])
    with torch.no_grad():
        model.get_parameter("1.bias")[2:6] = 1
    assert stays(model, "0.weight", 0) == [("constant", "_1", (3, 4, 5))]


def test_a_sigmoid_makes_a_constant() -> None:
    model = nn.Sequential(conv(), nn.Sigmoid(), conv())
    keep(model.get_parameter("0.weight"), 0, [0, 1, 2])
    keep(model.get_parameter("2.weight"), 1, [2, 3, 4])
    assert stays(model, "0.weight", 0) == [("constant", "_1", (3, 4))]


def test_the_output_needs_everything() -> None:
    model = nn.Sequential(conv())
    keep(model.get_parameter("0.weight"), 0, [5])
    ((cause, _, slices),) = stays(model, "0.weight", 0)
    assert (cause, slices) == ("output", (0, 1, 2, 3, 4, 6, 7))


def test_an_opaque_operation_is_named_with_its_reason() -> None:
    model = Net(lambda net, x: net.b(net.a(x).cumsum(1)), a=conv(), b=conv())
    keep(model.get_parameter("a.weight"), 0, [5, 6])
    inputs = torch.randn(2, 8, 4, 4)
    report, _ = exported(model, inputs)
    (found,) = report.parameters[0].axes[0].left
    assert found.cause == "opaque"
    assert found.op == "cumsum"
    assert found.detail
    assert str(found).startswith("cumsum takes every channel as it is (")
    assert found.detail in found.why
    assert "cumsum takes" not in found.why


def test_a_layer_norm_needs_zeros_too() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 6, bias=False), nn.Linear(6, 8)
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(self.norm(self.a(x.flatten(2).transpose(1, 2))))
            return result

    model = Norm()
    keep(model.get_parameter("a.weight"), 0, [1, 2])
    ((cause, op, slices),) = stays(model, "a.weight", 0)
    assert cause in ("symmetric", "opaque")
    assert (op, slices) == ("norm", (0, 3, 4, 5))


def test_a_sum_stores_what_another_summand_writes() -> None:
    """A summand that others read, too, cannot leave its zeros out."""

    def forward(self: Net, x: Tensor) -> object:
        a = self.a(x)
        return self.c(a + self.b(x)), self.d(a * a)

    model = Net(forward, a=conv(), b=conv(), c=conv(), d=conv())
    keep(model.get_parameter("a.weight"), 0, [0, 1, 2])
    found = stays(model, "a.weight", 0)
    if found:  # it may have been placed into the sum instead
        assert [cause for cause, _, _ in found] == ["sum"]


def test_groups_stay_equal() -> None:
    model = nn.Sequential(conv(), conv(groups=2), conv())
    with torch.no_grad():
        model.get_parameter("1.weight")[:4, 1:] = (
            0  # the first group reads one channel, the second three
        )
        model.get_parameter("1.weight")[4:, 3:] = 0
    found = stays(model, "1.weight", 1)
    assert [(cause, op) for cause, op, _ in found] == [("groups", "_1")]
    assert [len(slices) for _, _, slices in found] == [2]
    model = nn.Sequential(conv(), conv(groups=2), conv())
    keep(model.get_parameter("1.weight"), 0, [0, 4, 5, 6])
    found = stays(model, "1.weight", 0)
    assert [(cause, op) for cause, op, _ in found] == [("groups", "_1")]
    assert [len(slices) for _, _, slices in found] == [2]


def test_a_layer_keeps_one_channel() -> None:
    model = nn.Sequential(conv(), conv(bias=True))
    keep(model.get_parameter("1.weight"), 1, [])
    assert [(cause, op) for cause, op, _ in stays(model, "1.weight", 1)] == [("one", "_1")]
    assert [(cause, op) for cause, op, _ in stays(model, "0.weight", 0)] == []
    keep(model.get_parameter("0.weight"), 0, [])
    assert [(cause, op) for cause, op, _ in stays(model, "0.weight", 0)] == [("one", "_1")]


def test_features_of_one_channel_stay_together() -> None:
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(8 * 16, 3))
    keep(model.get_parameter("2.weight"), 1, [0, 1, 2, 40, 41])
    ((cause, op, slices),) = stays(model, "2.weight", 1)
    assert (cause, op) == ("features", "_2")
    assert slices == (*range(3, 16), *range(32, 40), *range(42, 48))


def test_a_layer_whose_input_has_no_channels() -> None:
    """Here the tokens are mixed, not the channels; what is zero in that weight stays."""
    model = catalogue.randomize(catalogue.build("topology/mixer"), 1)
    inputs = catalogue.example_inputs("topology/mixer", 2)
    keep(model.get_parameter("tokens.weight"), 1, [0, 1])
    report, pruned = exported(model, inputs)
    assert_zeros_listed(report, pruned)
    (tokens,) = (one for one in report.parameters if one.name == "tokens.weight")
    assert [(s.cause, s.slices) for s in tokens.axes[1].left] == [("whole", (2, 3, 4))]


def test_a_channel_read_twice() -> None:
    def repeated(self: Net, x: Tensor) -> object:
        return self.b(self.a(x).repeat(1, 2, 1, 1))

    def joined(self: Net, x: Tensor) -> object:
        x = self.a(x)
        return self.b(torch.cat([x, x], 1))

    model = Net(repeated, a=conv(), b=conv(16))
    keep(model.get_parameter("b.weight"), 1, [0, 1, 9])
    ((cause, op, slices),) = stays(model, "b.weight", 1)
    assert (cause, op, slices) == ("twice", "b", (8,))
    model.body = joined
    assert not stays(model, "b.weight", 1)


def test_a_branch_that_is_zero_is_gone_altogether() -> None:
    def forward(self: Net, x: Tensor) -> object:
        return self.c(x) + self.b(self.a(x))

    model = Net(forward, a=conv(), b=conv(), c=conv())
    keep(model.get_parameter("b.weight"), 0, [])
    report, pruned = exported(model, torch.randn(1, 8, 4, 4))
    assert_zeros_listed(report, pruned)
    assert not {"a.weight", "b.weight"}.intersection(tensors(pruned))
    removed = {one.name: (one.masked, one.gone, one.removed) for one in report.parameters}
    assert removed["a.weight"] == (0, 0, 64)
    assert removed["b.weight"] == (64, 64, 64)


# The document.


def test_json_and_text() -> None:
    documents = documents_of("mobilenet_v3_small", 0.5, "output")
    report = removal(documents.graph, documents.masks, documents.solution)
    assert Removal.from_json(report.to_json()) == report
    assert str(report).startswith(
        f"{report.gone:,} of {report.masked:,} masked weights are removed"
    )
    assert report.left == report.masked - report.gone


def test_every_cause_has_a_sentence() -> None:
    found = Stays(cause="groups", op="conv2", slices=(1, 2), weights=8)
    assert str(found) == "conv2 keeps equally many channels of every group"
    assert found.why == "an operation keeps equally many channels of every group"


def test_another_graphs_solution_is_refused() -> None:
    documents = documents_of("resnet18", 0.5)
    other = built("mobilenet_v3_small")[1]
    with pytest.raises(VerificationError, match="another graph"):
        removal(other, uo.Masks(kept={}), documents.solution)


def test_without_torch() -> None:
    code = "import sys, upscale_opt.solver.checking.removal; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The command.


def test_command(tmp_path: Path) -> None:
    documents = documents_of("mobilenet_v3_small", 0.5, "output")
    paths = [tmp_path / f"{name}.json" for name in ("graph", "masks", "solution")]
    for path, document in zip(
        paths, (documents.graph, documents.masks, documents.solution), strict=True
    ):
        document.save(path)
    report = removal(documents.graph, documents.masks, documents.solution)
    parts = [(s.weights, p.name) for p in report.parameters for axis in p.axes for s in axis.left]
    assert parts
    app = typer.Typer()
    app.command()(removed)
    written = tmp_path / "report.json"
    arguments = [*map(str, paths), "--json", str(written)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert str(report) in result.output
    assert max(parts)[1] in result.output
    assert Removal.load(written) == report
    every = CliRunner().invoke(app, [*arguments, "--all"])
    assert all(name in every.output for _, name in parts)
    one = CliRunner().invoke(app, [*map(str, paths), max(parts)[1]])
    assert max(parts)[1] in one.output
    wrong = CliRunner().invoke(app, [*map(str, paths), "nonsense"])
    assert wrong.exit_code == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["tensors"].update(dict.fromkeys(d["tensors"], "1-1000")),
        lambda d: d["parameters"].update(
            {n: dict.fromkeys(v, "99") for n, v in d["parameters"].items()}
        ),
        lambda d: (d["reads"].clear(), d["tensors"].pop("x")),
    ],
    ids=["tensors", "parameters", "no input"],
)
def test_a_damaged_solution_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    documents = documents_of("resnet18", 0.5)
    data = json.loads(documents.solution.to_json())
    change(data)
    solution = uo.Solution.from_json(json.dumps(data))
    message = complaint(
        VerificationError, lambda: removal(documents.graph, documents.masks, solution)
    )
    assert "the solution is damaged" in message
