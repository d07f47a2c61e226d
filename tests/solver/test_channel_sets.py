"""Which channels each tensor keeps, worked out by hand on networks small enough for that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_made_networks import columns, conv, norm, rows, run_chain
from sample_networks import Net, keep
from torch import Tensor, nn

from upscale_opt.models import catalogue

# Producers and consumers.


def test_one_reader_decides_what_its_producer_writes() -> None:
    model = Net(
        lambda m, x: m.head(torch.relu(m.stem(x))),
        stem=conv(3, 8),
        head=columns(conv(8, 4), [1, 6]),
    )
    chain = run_chain(model)
    assert chain.needed("stem") == chain.needed("relu") == {1, 6}
    assert chain.shape("stem.weight") == (2, 3, 3, 3)
    assert chain.shape("stem.bias") == (2,)
    assert chain.shape("head.weight") == (4, 2, 3, 3)
    assert chain.solution.objective_value == 0


def test_what_no_producer_writes_is_not_read_either() -> None:
    model = Net(
        lambda m, x: m.head(torch.relu(m.stem(x))),
        stem=rows(conv(3, 8), [0, 1, 2]),
        head=columns(conv(8, 4), [2, 3, 4]),
    )
    chain = run_chain(model)
    assert chain.defined("stem") == chain.defined("relu") == {0, 1, 2}
    assert chain.needed("relu") == {2}
    assert chain.shape("head.weight") == (4, 1, 3, 3)
    assert chain.shape("stem.weight") == (1, 3, 3, 3)


def test_a_bias_alone_defines_a_channel() -> None:
    stem = conv(3, 8)
    keep(stem.weight, 0, [0, 1])
    keep(stem.bias if stem.bias is not None else torch.empty(0), 0, [1, 5])
    model = Net(lambda m, x: m.head(m.stem(x)), stem=stem, head=conv(8, 4))
    chain = run_chain(model)
    assert chain.defined("stem") == {0, 1, 5}
    assert chain.shape("stem.weight") == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("activation", "defined", "needed"),
    [
        (nn.ReLU(), {2}, {2}),
        (nn.GELU(), {2}, {2}),
        (nn.Hardswish(), {2}, {2}),
        (nn.Sigmoid(), set(range(8)), {2, 3}),
        (nn.Softplus(), set(range(8)), {2, 3}),
        (nn.Threshold(-1.0, 0.0), {2}, {2}),
        (nn.Threshold(0.0, 3.0), set(range(8)), {2, 3}),
    ],
)
def test_activations_keep_zeros_or_do_not(
    activation: nn.Module, defined: set[int], needed: set[int]
) -> None:
    model = Net(
        lambda m, x: m.head(m.act(m.stem(x))),
        stem=rows(conv(3, 8), [2]),
        act=activation,
        head=columns(conv(8, 4), [2, 3]),
    )
    chain = run_chain(model)
    assert chain.defined("act") == defined
    assert chain.needed("act") == needed
    assert chain.shape("head.weight") == (4, len(needed), 3, 3)


def test_a_batch_norm_makes_zeros_and_ends_them() -> None:
    bn = norm(6)
    with torch.no_grad():
        bn.weight[1] = bn.bias[1] = 0  # makes a zero
        bn.weight[2] = 0  # a constant is not a zero
        bn.bias[4] = 0  # nor is the mean of a zero channel
        bn.running_mean[5] = bn.bias[5] = 0  # type: ignore[index]
    model = Net(
        lambda m, x: m.head(m.bn(m.stem(x))),
        stem=rows(conv(3, 6, bias=False), [0, 1, 2]),
        bn=bn,
        head=conv(6, 4),
    )
    chain = run_chain(model)
    assert chain.defined("stem") == {0, 1, 2}
    assert chain.defined("bn") == {0, 2, 3, 4}
    assert chain.stored("bn") == {0, 2, 3, 4}
    assert chain.pruned.get_parameter("bn.weight").shape == (4,)


def test_a_product_is_defined_where_both_factors_are() -> None:
    model = Net(
        lambda m, x: m.head(m.left(x) * m.right(x)),
        left=rows(conv(3, 6), [0, 1, 2]),
        right=rows(conv(3, 6), [2, 3, 1]),
        head=conv(6, 4),
    )
    chain = run_chain(model)
    assert chain.defined("mul") == {1, 2}
    assert chain.shape("left.weight") == chain.shape("right.weight") == (2, 3, 3, 3)
    assert chain.shape("head.weight") == (4, 2, 3, 3)


# Sums.


def test_two_producers_into_one_sum_write_only_their_part() -> None:
    model = Net(
        lambda m, x: m.head(m.left(x) + m.right(x)),
        left=rows(conv(3, 8), [1, 2, 4]),
        right=rows(conv(3, 8), [4, 5, 7]),
        head=columns(conv(8, 4), [0, 1, 4, 5]),
    )
    chain = run_chain(model)
    assert chain.defined("add") == {1, 2, 4, 5, 7}
    assert chain.needed("add") == {1, 4, 5}
    assert chain.stored("left") == {1, 4}
    assert chain.stored("right") == {4, 5}
    assert chain.shape("left.weight") == chain.shape("right.weight") == (2, 3, 3, 3)
    assert chain.shape("head.weight") == (4, 3, 3, 3)
    assert chain.solution.objective_value == 0  # in the order 1, 4, 5 both are windows


def test_disagreeing_producers_and_readers_cost_a_copy() -> None:
    """Three pairs out of a triangle: no order makes all three consecutive, two it can."""
    model = Net(
        lambda m, x: m.a(s := m.stem(x)) + m.b(s) + m.c(s),
        stem=conv(3, 3),
        a=columns(conv(3, 4), [0, 1]),
        b=columns(conv(3, 4), [1, 2]),
        c=columns(conv(3, 4), [0, 2]),
    )
    chain = run_chain(model)
    assert chain.solution.objective_value == chain.solution.lower_bound == 2
    plans = [r.plan for r in chain.solution.reads if r.tensor == "stem"]
    assert sorted(plans) == ["gather", "view", "view"]
    (conflict,) = chain.solution.conflicts
    demands = {chain.solution.demands[number].channels for number in conflict.demands}
    assert conflict.limit == 2
    first, second, third = chain.graph.tensors["stem"].channels
    assert demands == {(first, second), (second, third), (first, third)}
    assert [m.indices.numel() for m in chain.gathers()] == [2]


def test_a_summand_that_is_zero_is_left_out() -> None:
    model = Net(
        lambda m, x: m.head(m.left(x) + m.right(x)),
        left=conv(3, 8),
        right=rows(conv(3, 8), []),
        head=columns(conv(8, 4), [3, 4]),
    )
    chain = run_chain(model)
    assert "right" not in chain.calls()
    assert chain.shape("left.weight") == (2, 3, 3, 3)
    assert "right.weight" not in chain.pruned.state_dict()


def test_dead_filters_at_the_end_of_a_stream_go_for_free() -> None:
    """Each block writes only what is read behind it; what earlier blocks read is not its affair."""

    def stage(m: Any, x: Tensor) -> Tensor:
        stream = m.stem(x)
        stream = stream + m.b1(torch.relu(m.a1(stream)))
        stream = stream + m.b2(torch.relu(m.a2(stream)))
        y: Tensor = m.head(stream)
        return y

    model = Net(
        stage,
        stem=conv(3, 6),
        a1=columns(conv(6, 5), [0, 1, 2]),
        b1=conv(5, 6),
        a2=columns(conv(6, 5), [3, 4]),
        b2=conv(5, 6),
        head=columns(conv(6, 4), [4, 5]),
    )
    chain = run_chain(model)
    assert chain.needed("stem") == {0, 1, 2, 3, 4, 5}
    assert chain.needed("add") == {3, 4, 5}
    assert chain.needed("add_1") == {4, 5}
    assert chain.stored("b1") == {3, 4, 5}
    assert chain.stored("b2") == {4, 5}
    assert chain.shape("stem.weight") == (6, 3, 3, 3)
    assert chain.shape("b1.weight") == (3, 5, 3, 3)
    assert chain.shape("b2.weight") == (2, 5, 3, 3)
    assert chain.solution.objective_value == 0
    assert chain.solution.gathers == 0
    assert not chain.gathers()


def test_a_residual_stage_with_batch_norms_loses_its_last_filters() -> None:
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    keep(model.get_parameter("head.weight"), 1, [0, 1, 2])
    chain = run_chain(model)
    assert chain.shape("blocks.2.conv2.weight") == (3, 12, 3, 3)
    assert chain.shape("blocks.2.bn2.weight") == (3,)
    assert chain.shape("blocks.1.conv2.weight") == (12, 12, 3, 3)
    assert chain.shape("stem.weight") == (12, 3, 3, 3)
    assert chain.solution.objective_value == 0


# Selections in front of what only one reader needs.


def test_a_private_batch_norm_has_only_its_readers_channels() -> None:
    model = Net(
        lambda m, x: m.a(torch.relu(m.bn(s := m.stem(x)))) + m.b(s),
        stem=conv(3, 8),
        bn=norm(8),
        a=columns(conv(8, 4), [1, 3]),
        b=columns(conv(8, 4), [1, 3, 5, 6]),
    )
    chain = run_chain(model)
    assert chain.stored("stem") == {1, 3, 5, 6}
    assert chain.stored("bn") == chain.stored("relu") == {1, 3}
    bn = chain.pruned.get_submodule("bn")
    assert isinstance(bn, nn.BatchNorm2d)
    assert bn.num_features == 2
    assert bn.running_mean is not None
    assert bn.running_mean.shape == (2,)
    assert chain.shape("a.weight") == (4, 2, 3, 3)
    (read,) = [r for r in chain.solution.reads if r.op == "bn"]
    assert (read.plan, set(read.channels)) == ("view", {1, 3})
    assert chain.solution.objective_value == 0


def test_a_gather_stands_in_front_of_a_private_batch_norm_too() -> None:
    """The stem is an output, so its order is fixed: 0 and 2 have to be gathered, once."""

    def two(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        stream = m.stem(x)
        return stream, m.a(torch.relu(m.bn(stream)))

    model = Net(two, stem=conv(3, 4), bn=norm(4), a=columns(conv(4, 4), [0, 2]))
    chain = run_chain(model)
    assert chain.stored("stem") == {0, 1, 2, 3}
    assert chain.solution.objective_value == 2
    (read,) = [r for r in chain.solution.reads if r.plan == "gather"]
    assert (read.op, read.channels) == ("bn", (0, 2))
    assert chain.shape("bn.weight") == (2,)


def test_a_shared_batch_norm_keeps_what_both_readers_want() -> None:
    model = Net(
        lambda m, x: m.a(s := m.bn(m.stem(x))) + m.b(s),
        stem=conv(3, 8),
        bn=norm(8),
        a=columns(conv(8, 4), [1, 3]),
        b=columns(conv(8, 4), [3, 5]),
    )
    chain = run_chain(model)
    assert chain.stored("bn") == chain.stored("stem") == {1, 3, 5}
    assert chain.shape("bn.weight") == (3,)


# Dead things.


def test_a_dead_branch_disappears() -> None:
    model = catalogue.build("topology/useless_branch")
    keep(model.get_parameter("reader.weight"), 1, [])
    keep(model.get_parameter("reader.bias"), 0, [])
    chain = run_chain(model)
    assert not chain.calls() & {"branch", "reader", "relu_1"}
    assert {name.split(".")[0] for name in chain.pruned.state_dict()} == {"stem", "head"}
    assert [type(m) for m in chain.pruned.children()] == [nn.Conv2d, nn.Conv2d]
    assert chain.shape("stem.weight") == (8, 3, 3, 3)


def test_a_dead_branch_with_a_bias_is_a_constant_of_one_channel() -> None:
    model = catalogue.build("topology/useless_branch")
    keep(model.get_parameter("reader.weight"), 1, [])
    chain = run_chain(model)
    assert chain.shape("reader.weight") == (8, 1, 1, 1)
    assert chain.shape("branch.weight")[0] == 1


def test_an_unused_result_disappears() -> None:
    chain = run_chain(catalogue.build("topology/unused_result"))
    assert "unused" not in chain.calls()
    assert "unused.weight" not in chain.pruned.state_dict()


def test_a_reader_that_wants_nothing_keeps_one_channel() -> None:
    model = catalogue.build("topology/two_consumers")
    keep(model.get_parameter("readers.0.weight"), 1, [])
    keep(model.get_parameter("readers.1.weight"), 1, [4, 7])
    chain = run_chain(model)
    assert chain.shape("readers.0.weight") == (8, 1, 3, 3)
    assert chain.shape("readers.1.weight") == (8, 2, 3, 3)
    assert chain.shape("stem.weight") == (2, 3, 3, 3)  # that one channel is one of the other's
    assert chain.solution.objective_value == 0


def test_masks_of_a_single_channel_leave_a_single_channel() -> None:
    model = catalogue.build("topology/two_consumers")
    for name in ("readers.0", "readers.1", "head"):
        keep(model.get_parameter(f"{name}.weight"), 1, [3])
    chain = run_chain(model)
    assert chain.shape("stem.weight") == (1, 3, 3, 3)
    assert chain.shape("readers.0.weight") == chain.shape("readers.1.weight") == (1, 1, 3, 3)
    assert chain.shape("head.weight") == (4, 1, 1, 1)


def test_a_network_whose_head_reads_nothing_still_runs() -> None:
    model = catalogue.build("topology/two_consumers")
    keep(model.get_parameter("head.weight"), 1, [])
    chain = run_chain(model)
    assert chain.shape("head.weight") == (4, 1, 1, 1)
    assert chain.shape("readers.0.weight") == chain.shape("readers.1.weight") == (1, 12, 3, 3)


def test_an_output_keeps_every_channel_in_its_order() -> None:
    model = catalogue.build("topology/stream_output")
    keep(model.get_parameter("block.weight"), 1, [6, 7])
    chain = run_chain(model)
    assert chain.solution.tensors["add"] == tuple(range(8))
    assert all(s.fixed == "network output" for s in chain.graph.spaces if 6 in s.channels)
    assert chain.shape("stem.weight") == (8, 3, 3, 3)


def test_inputs_are_read_as_they_are() -> None:
    model = Net(lambda m, x: m.stem(x), stem=columns(conv(3, 8), [0, 2]))
    chain = run_chain(model)
    assert chain.shape("stem.weight")[1] in (2, 3)
    assert chain.solution.tensors["x"] == (0, 1, 2)
