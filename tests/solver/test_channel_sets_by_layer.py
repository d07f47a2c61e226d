"""Which channels are kept around concatenations, slices, and layers of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_made_networks import columns, conv, run_chain
from sample_networks import Net, keep
from torch import Tensor, nn

from upscale_opt.models import catalogue

# Concatenations.


def test_a_cat_collects_only_what_its_reader_wants() -> None:
    model = Net(
        lambda m, x: m.head(torch.cat([m.a(x), m.b(x), m.c(x)], 1)),
        a=conv(3, 6),
        b=conv(3, 6),
        c=conv(3, 6),
        head=columns(conv(18, 4), [1, 2, 6, 11]),
    )
    chain = run_chain(model)
    assert chain.needed("cat") == {1, 2, 6, 11}
    assert chain.stored("a") == {1, 2}
    assert chain.stored("b") == {0, 5}
    assert "c" not in chain.calls()
    assert chain.shape("a.weight") == chain.shape("b.weight") == (2, 3, 3, 3)
    assert chain.shape("head.weight") == (4, 4, 3, 3)
    assert chain.solution.objective_value == 0


def test_operands_that_others_read_are_selected_by_views_in_front_of_the_cat() -> None:
    model = Net(
        lambda m, x: m.head(torch.cat([a := m.a(x), b := m.b(x)], 1)) + m.p(a) + m.q(b),
        a=conv(3, 6),
        b=conv(3, 6),
        p=conv(6, 4),
        q=conv(6, 4),
        head=columns(conv(12, 4), [1, 3, 5, 6, 8]),
    )
    chain = run_chain(model)
    assert chain.stored("a") == chain.stored("b") == {0, 1, 2, 3, 4, 5}
    assert chain.solution.objective_value == 0
    in_cat = len(chain.solution.tensors["cat"])
    views = [r for r in chain.solution.reads if r.op in ("cat", "head") and not r.optional]
    assert views
    assert all(r.plan == "view" for r in views)
    assert chain.shape("head.weight") == (4, 5, 3, 3)
    assert in_cat >= 5


def fixed_operands(count: int, whole: int) -> Net:
    """A cat of ``count`` tensors whose order is fixed, and of one that is wanted whole."""

    def run(m: Any, x: Tensor) -> list[Tensor]:
        parts = [m.get_submodule(f"part{i}")(x) for i in range(count)]
        joined = torch.cat([*parts, m.get_submodule("whole")(x)], 1)
        return [*parts, m.get_submodule("head")(joined)]

    wanted = [4 * i + c for i in range(count) for c in (0, 2)] + [
        4 * count + i for i in range(whole)
    ]
    layers: dict[str, nn.Module] = {f"part{i}": conv(3, 4) for i in range(count)}
    head = columns(conv(4 * count + whole, 4), wanted)
    return Net(run, **layers, whole=conv(3, whole), head=head)


@pytest.mark.parametrize("count", [1, 4])
def test_up_to_four_gathers_in_front_of_a_cat_where_they_copy_less(count: int) -> None:
    chain = run_chain(fixed_operands(count, whole=9))
    assert chain.solution.objective_value == 2 * count  # behind the cat it would be 2 * count + 9
    gathers = [r for r in chain.solution.reads if r.plan == "gather"]
    assert [(r.op, r.channels) for r in gathers] == [("cat", (0, 2))] * count
    assert len(chain.solution.tensors["cat"]) == 2 * count + 9


def test_five_gathers_in_front_of_a_cat_are_one_behind_it() -> None:
    chain = run_chain(fixed_operands(5, whole=9))
    (gather,) = [r for r in chain.solution.reads if r.plan == "gather"]
    assert gather.op == "head"
    assert gather.copied == chain.solution.objective_value == 2 * 5 + 9
    assert len(chain.gathers()) == 1


def test_of_equal_copies_the_plan_with_fewer_kernels() -> None:
    """Three gathers of two in front of the cat copy as much as one of six behind it."""

    def run(m: Any, x: Tensor) -> list[Tensor]:
        parts = [m.a(x), m.b(x), m.c(x)]
        return [*parts, m.head(torch.cat(parts, 1))]

    model = Net(
        run,
        a=conv(3, 4),
        b=conv(3, 4),
        c=conv(3, 4),
        head=columns(conv(12, 4), [0, 2, 4, 6, 8, 10]),
    )
    chain = run_chain(model)
    assert chain.solution.objective_value == 6
    assert len(chain.gathers()) == 1


def test_the_same_tensor_twice_in_a_cat() -> None:
    model = catalogue.build("topology/cat_twice")
    keep(model.get_parameter("head.weight"), 1, [0, 1, 8 + 2])
    chain = run_chain(model)
    assert chain.stored("stem") == chain.stored("relu") == {0, 1, 2}
    assert chain.shape("stem.weight") == (3, 3, 3, 3)
    assert chain.shape("head.weight")[1] == 3, "each time by itself"
    assert chain.solution.objective_value == 0


def test_a_slice_reads_its_part_alone() -> None:
    model = catalogue.build("topology/slices")
    keep(model.get_parameter("first.weight"), 1, [1, 2])
    keep(model.get_parameter("rest.weight"), 1, [0, 6])
    keep(model.get_parameter("whole.weight"), 1, [1])
    chain = run_chain(model)
    assert chain.needed("relu") == {1, 2, 5, 11}
    assert chain.shape("stem.weight") == (4, 3, 3, 3)
    assert chain.shape("first.weight") == (8, 2, 1, 1)
    assert chain.shape("rest.weight") == (8, 2, 1, 1)
    assert chain.shape("whole.weight") == (8, 1, 3, 3)
    assert chain.solution.objective_value == 0


# Layers of other kinds.


def test_flatten_into_linear_drops_all_features_of_a_channel() -> None:
    model = catalogue.build("topology/flatten")
    features = [16 * channel + i for channel in (2, 5) for i in range(16)]
    keep(model.get_parameter("head.weight"), 1, features)
    keep(model.get_parameter("side.weight"), 1, [5, 6])
    chain = run_chain(model)
    assert chain.needed("relu") == {2, 5, 6}
    assert chain.shape("stem.weight") == (3, 3, 3, 3)
    assert chain.shape("head.weight") == (10, 32)
    assert chain.shape("side.weight") == (4, 2, 1, 1)
    assert chain.solution.objective_value == 0


def test_one_feature_left_keeps_its_channel() -> None:
    model = catalogue.build("topology/flatten")
    keep(model.get_parameter("head.weight"), 1, [16 * 3 + 7])
    keep(model.get_parameter("side.weight"), 1, [])
    chain = run_chain(model)
    assert chain.shape("head.weight") == (10, 16)
    assert chain.shape("stem.weight") == (1, 3, 3, 3)


def test_a_transposed_convolution_has_its_axes_the_other_way_round() -> None:
    model = Net(
        lambda m, x: m.head(m.up(m.stem(x))),
        stem=conv(3, 8),
        up=nn.ConvTranspose2d(8, 6, 2, stride=2),
        head=columns(conv(6, 4), [0, 5]),
    )
    keep(model.get_parameter("up.weight"), 0, [1, 2, 7])
    chain = run_chain(model)
    assert chain.shape("up.weight") == (3, 2, 2, 2)
    assert chain.shape("stem.weight") == (3, 3, 3, 3)
    up = chain.pruned.get_submodule("up")
    assert isinstance(up, nn.ConvTranspose2d)
    assert (up.in_channels, up.out_channels) == (3, 2)


def test_a_depthwise_convolution_follows_its_channels() -> None:
    model = Net(
        lambda m, x: m.head(m.dw(m.stem(x))),
        stem=conv(3, 8),
        dw=nn.Conv2d(8, 8, 3, groups=8, padding=1),
        head=columns(conv(8, 4), [1, 6]),
    )
    chain = run_chain(model)
    dw = chain.pruned.get_submodule("dw")
    assert isinstance(dw, nn.Conv2d)
    assert (dw.groups, dw.in_channels, dw.out_channels) == (2, 2, 2)
    assert chain.shape("dw.weight") == (2, 1, 3, 3)
    assert chain.shape("stem.weight") == (2, 3, 3, 3)


def test_the_groups_of_a_convolution_remain_equal() -> None:
    model = catalogue.build("topology/grouped_conv")
    layer = model.get_submodule("layer")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.groups, tuple(layer.weight.shape)) == (4, (16, 3, 3, 3))
    keep(layer.weight, 1, [])
    assert run_chain(model).shape("layer.weight") == (16, 1, 3, 3)  # which PyTorch wants
    model = catalogue.build("topology/grouped_conv")
    weight = model.get_parameter("layer.weight")
    with torch.no_grad():
        weight[:4, 0] = weight[4:8, 1:] = weight[8:12, 2] = 0  # one, two, one and no channel less
    assert run_chain(model).shape("layer.weight") == (16, 3, 3, 3)
    with torch.no_grad():
        weight[12:] = 0
    model.get_parameter("layer.bias").data[12:] = 0
    chain = run_chain(model)
    assert chain.shape("layer.weight") == (12, 2, 3, 3)
    assert chain.shape("layer.bias") == (12,)


def test_squeeze_and_excite_follows_its_stream() -> None:
    model = catalogue.build("topology/squeeze_excite")
    keep(model.get_parameter("head.weight"), 1, [2, 9])
    keep(model.get_parameter("squeeze.weight"), 1, [9])
    chain = run_chain(model)
    assert chain.shape("excite.weight") == (2, 4)
    assert chain.shape("squeeze.weight") == (4, 1)
    assert chain.shape("stem.weight") == (2, 3, 3, 3)
