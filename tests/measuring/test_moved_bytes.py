"""Bytes moved: what is counted, and that views and computations are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import upscale_opt as uo
from upscale_opt.errors import TraceError
from upscale_opt.measuring.bytes_moved import Movement, Write, moved_bytes
from upscale_opt.runtime.modules import Gather, PlacedSum

CHANNEL = 2 * 4 * 4 * 4
"""The bytes of one channel of `images()`: batch of two, 4 x 4, float32."""

CPU = torch.device("cpu")


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def images(channels: int = 8) -> Tensor:
    return torch.arange(2.0 * channels * 16).view(2, channels, 4, 4)


def moved(function: Callable[[Tensor], object], x: Tensor | None = None) -> dict[str, int]:
    return moved_bytes(Call(function), images() if x is None else x).by_op


def buffer() -> Tensor:
    return torch.empty(2, 16, 4, 4)


def write_slice(x: Tensor) -> Tensor:
    x = torch.empty_like(x)
    x[:, 2:5] = 1.0 + x[:, :3]
    return x


@pytest.mark.parametrize(
    ("function", "op", "channels"),
    [
        (lambda x: torch.cat([x, x[:, :3]], 1), "cat", 11),
        (lambda x: torch.cat([x, x], 1, out=x.new_empty(2, 16, 4, 4)), "cat", 16),
        (lambda x: torch.stack([x, x]), "stack", 16),
        (lambda x: x.index_select(1, torch.tensor([1, 5, 6])), "index_select", 3),
        (lambda x: x[:, [1, 5]], "index", 2),
        (lambda x: x.gather(1, torch.tensor([[3, 1]])[:, :, None, None].expand(2, 2, 4, 4)), "", 2),
        (lambda x: x.transpose(1, 2).contiguous(), "clone", 8),
        (lambda x: x.contiguous(memory_format=torch.channels_last), "clone", 8),
        (lambda x: x.to(memory_format=torch.channels_last), "_to_copy", 8),
        (lambda x: x.transpose(1, 2).reshape(2, -1), "clone", 8),
        (lambda x: x.flip(1), "flip", 8),
        (lambda x: x.roll(1, 1), "roll", 8),
        (lambda x: x.repeat(1, 2, 1, 1), "repeat", 16),
        (lambda x: nn.functional.channel_shuffle(x, 2), "channel_shuffle", 8),
        (lambda x: torch.native_channel_shuffle(x, 2), "native_channel_shuffle", 8),
        (lambda x: nn.functional.pixel_shuffle(x, 2), "pixel_shuffle", 8),
        (lambda x: nn.functional.pad(x, (0, 0, 0, 0, 0, 3)), "constant_pad_nd", 11),
        (lambda x: nn.functional.pad(x, (2, 2, 0, 0), mode="reflect"), "reflection_pad2d", 16),
        (lambda x: nn.functional.pad(x, (2, 2, 0, 0), mode="replicate"), "replication_pad2d", 16),
        (write_slice, "copy_", 3),
        (lambda x: torch.cat([x[:, :1], x[:, 5:]], 1, out=buffer()[:, 2:6]), "cat", 4),
        (
            lambda x: torch.index_select(x, 1, torch.tensor([7, 1]), out=buffer()[:, 2:4]),
            "index_select",
            2,
        ),
        (lambda x: torch.add(x[:, :3], 1, out=buffer()[:, 2:5]), "add", 3),
        (lambda x: torch.addcmul(x, x, x, out=buffer()[:, 2:10]), "addcmul", 8),
        (lambda x: buffer()[:, 2:5].add_(x[:, :3]), "add_", 3),
        (lambda x: buffer()[:, 2:5].zero_(), "zero_", 3),
        (lambda x: x.index_put([torch.tensor([1])], x[0]), "index_put", 12),
        (lambda x: buffer().__setitem__((slice(None), [1, 2]), x[0, :2]), "index_put_", 2),
        (lambda x: buffer().index_fill_(1, torch.tensor([4, 5, 6]), 0.0), "index_fill_", 3),
        (
            lambda x: x.scatter(1, torch.ones(2, 1, 4, 4, dtype=torch.long), x),
            "scatter",
            9,
        ),
        (lambda x: torch.slice_scatter(x, x[:, :2], 1, 3, 5), "slice_scatter", 10),
        (lambda x: x.index_add(1, torch.tensor([4, 1]), x[:, :2]), "index_add", 10),
        (lambda x: x.new_empty(2, 8, 4, 4)[:, :3].add_(1), "add_", 3),
    ],
)
def test_what_moves_data_is_counted(
    function: Callable[[Tensor], object], op: str, channels: int
) -> None:
    assert moved(function) == {op or "gather": channels * CHANNEL}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.narrow(1, 2, 3),
        lambda x: x.view(2, 2, 4, 4, 4).transpose(1, 2),
        lambda x: x.reshape(2, -1),
        lambda x: x.contiguous(),
        lambda x: x.split(2, 1),
        lambda x: x + x,
        lambda x: (x * 2).add_(1),
        lambda x: torch.add(x, 1, out=torch.empty(2, 8, 4, 4)),
        lambda x: x.double(),
        lambda x: nn.functional.conv2d(x, torch.ones(3, 8, 1, 1)),
    ],
)
def test_views_and_computations_move_nothing(function: Callable[[Tensor], object]) -> None:
    assert moved(function) == {}


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "slice of rows": lambda x: widened(x)[:, 4:20],
    "every other channel": lambda x: widened(x)[:, ::2],
    "inner pixels": lambda x: functional.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    "transposed": lambda x: x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "slice of channels last": lambda x: widened(x).contiguous(memory_format=torch.channels_last)[
        :, 4:20
    ],
}
"""Tensors as they are found in networks and exports."""


def widened(x: Tensor) -> Tensor:
    return torch.cat([x, x], 1)


def convolution(
    shape: tuple[int, ...],
    last: bool = False,
    dtype: torch.dtype = torch.float32,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Callable[[Tensor], Tensor]:
    layout = torch.channels_last if last else torch.contiguous_format
    weight = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    return lambda x: functional.conv2d(x, weight, None, stride, 0, dilation, groups)


WIDE, DEEP = torch.randn(5, 10), torch.randn(5, 16)

READERS: dict[str, Callable[[Tensor], object]] = {
    "3x3": convolution((8, 16, 3, 3)),
    "3x3, weights channels last": convolution((8, 16, 3, 3), last=True),
    "1x1": convolution((8, 16, 1, 1)),
    "1x1, stride 2": convolution((8, 16, 1, 1), stride=2),
    "1x1, groups": convolution((8, 4, 1, 1), groups=4),
    "depthwise": convolution((16, 1, 3, 3), groups=16),
    "grouped": convolution((8, 8, 3, 3), groups=2),
    "dilated": convolution((8, 16, 3, 3), dilation=2),
    "transposed": lambda x: functional.conv_transpose2d(x, torch.ones(16, 8, 3, 3)),
    "1d": lambda x: functional.conv1d(x.select(3, 0), torch.ones(8, 16, 3)),
    "1d, grouped": lambda x: functional.conv1d(x.select(3, 0), torch.ones(8, 4, 1), groups=4),
    "3d": lambda x: functional.conv3d(
        x.unsqueeze(4).expand(-1, -1, -1, -1, 6), torch.ones(8, 16, 3, 3, 3)
    ),
    "linear": lambda x: functional.linear(x, WIDE),
    "linear on channels": lambda x: functional.linear(x.permute(0, 2, 3, 1), DEEP),
    "flatten, linear": lambda x: functional.linear(x.flatten(1), torch.ones(4, 1600), WIDE[0, :4]),
    "matmul": lambda x: DEEP @ x.flatten(2),
    "bmm": lambda x: torch.bmm(DEEP.expand(x.shape[0], 5, 16), x.select(3, 0)),
    "bmm, small": lambda x: torch.bmm(DEEP[:2].expand(x.shape[0], 2, 16), x.select(3, 0)),
    "bmm on a view": lambda x: torch.bmm(DEEP.expand(x.shape[0], 5, 16), x[:, :, 2]),
    "batch norm": lambda x: functional.batch_norm(x, *torch.ones(4, 16)),
    "group norm": lambda x: functional.group_norm(x, 4),
    "layer norm": lambda x: functional.layer_norm(x, (10,)),
    "softmax": lambda x: x.softmax(1),
    "relu": functional.relu,
    "max pool": lambda x: functional.max_pool2d(x, 2),
    "average pool": lambda x: functional.avg_pool2d(x, 2),
    "adaptive pool": lambda x: functional.adaptive_avg_pool2d(x, 3),
    "global pool": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "global max pool": lambda x: functional.adaptive_max_pool2d(x, 1),
    "gather": lambda x: x.index_select(1, torch.tensor([3, 1])),
    "gather of rows": lambda x: x.index_select(2, torch.tensor([3, 1])),
    "gather into a slice": lambda x: torch.index_select(
        x, 1, torch.tensor([3, 1]), out=x.new_empty(len(x), 4, 10, 10)[:, 1:3]
    ),
    "shuffle": lambda x: functional.channel_shuffle(x, 4),
    "indices": lambda x: x[:, [3, 1]],
}


def copies(function: Callable[[Tensor], object], x: Tensor) -> int:
    """The bytes of activations that PyTorch says that it copied, without those of small weights.

    A bias that a matrix product starts from is not moved. In half precisions, oneDNN on some CPUs
    copies results, too, which is none of a layout's doing.
    """
    with (
        torch.no_grad(),
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled,
    ):
        result = function(x)
    own = result.shape if isinstance(result, Tensor) and x.dtype == torch.bfloat16 else None
    found = 0
    for event in profiled.events():
        caller = event.cpu_parent.name if event.cpu_parent else ""
        if event.name != "aten::copy_" or caller in ("aten::addmm", "aten::_to_copy"):
            continue
        shape = torch.Size(event.input_shapes[0])
        if caller == "aten::clone" and shape == own != x.shape:
            continue
        if len(shape) < 3 or shape[-1] > 3:  # else it is a kernel
            found += shape.numel() * x.element_size()
    return found


def counted(function: Callable[[Tensor], object], x: Tensor) -> int:
    written = moved(function, x)
    return sum(size for op, size in written.items() if op == "clone" or op.endswith(" input"))


@pytest.mark.parametrize("reader", READERS)
def test_inputs_are_copied_where_the_profiler_sees_it(reader: str) -> None:
    for batch in (1, 8):
        for layout in LAYOUTS:
            x = LAYOUTS[layout](torch.randn(batch, 16, 10, 10))
            expected = copies(READERS[reader], x)
            assert counted(READERS[reader], x) == expected, f"{layout}, batch {batch}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_in_other_precisions(groups: int, last: bool, dtype: torch.dtype) -> None:
    convolve = convolution((8, 16 // groups, 3, 3), last, dtype, groups=groups)
    for batch in (1, 8):
        for layout in LAYOUTS:
            x = LAYOUTS[layout](torch.randn(batch, 16, 10, 10, dtype=dtype))
            assert counted(convolve, x) == copies(convolve, x), f"{layout}, batch {batch}"


def test_a_channel_slice_costs_a_convolution_nothing_at_batch_one() -> None:
    """What plans rest on: the facts, not only that the profiler agrees."""
    convolve = nn.Conv2d(3, 4, 1)
    assert moved_bytes(convolve, torch.randn(1, 8, 6, 6)[:, 2:5]).total == 0
    batch = torch.randn(2, 8, 6, 6)
    written = {"convolution input": 2 * 3 * 36 * 4}
    assert moved_bytes(convolve, batch[:, 2:5]).by_op == written
    with torch.inference_mode():
        assert moved_bytes(convolve, batch[:, 2:5]).by_op == written
    last = batch[:1].to(memory_format=torch.channels_last)[:, 2:5]
    assert moved_bytes(convolve, last).by_op == {"convolution input": 3 * 36 * 4}


def test_groups_without_a_kernel_of_their_own_are_concatenated() -> None:
    convolve = nn.Conv2d(8, 4, 3, groups=2).double()
    written = moved_bytes(convolve, torch.randn(2, 8, 6, 6).double()).by_op
    assert written == {"convolution": 2 * 4 * 16 * 8, "convolution input": 2 * 8 * 36 * 8}


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(), nn.ChannelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.block(x), self.block[0](x)], 1).flip(1)


def test_places() -> None:
    model = Nested()
    assert moved_bytes(model, images()).by_place == {"": 48 * CHANNEL, "block.1": 8 * CHANNEL}
    assert moved_bytes(nn.Sequential(model), images()).by_place == {
        "0": 48 * CHANNEL,
        "0.block.1": 8 * CHANNEL,
    }


def test_places_in_graphs_are_nodes() -> None:
    graph = fx.symbolic_trace(Nested())
    expected = {"cat": 24 * CHANNEL, "flip": 24 * CHANNEL, "block.1": 8 * CHANNEL}
    assert moved_bytes(graph, images()).by_place == expected
    inner = moved_bytes(nn.Sequential(graph), images()).by_place
    assert inner == {f"0.{place}": size for place, size in expected.items()}


def test_what_torch_exports_can_be_counted() -> None:
    exported = torch.export.export(Nested(), (images(),)).module()
    assert moved_bytes(exported, images()).total == 56 * CHANNEL


def test_places_after_an_error() -> None:
    """A pass that fails leaves no hooks behind."""
    with pytest.raises(RuntimeError):
        moved_bytes(nn.Sequential(nn.Linear(3, 3)), images())
    assert moved_bytes(Nested(), images()).total == 56 * CHANNEL
    hooks = nn.modules.module
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


def test_bytes_follow_the_dtype() -> None:
    x = images()
    assert moved(lambda x: x.flip(1), x.double())["flip"] == 2 * moved(lambda x: x.flip(1))["flip"]


def test_the_modules_of_an_export() -> None:
    gather = Gather([1, 4], 1, CPU)
    assert moved_bytes(gather, images()).by_op == {"index_select": 2 * CHANNEL}
    views = PlacedSum([(0, 3), (2, 5)], 8, 1, 4, CPU)
    total = moved_bytes(views, (images(3), images(5)))
    assert total.by_op == {"cat": 8 * CHANNEL, "new_zeros": CHANNEL}
    scattered = PlacedSum([None, [1, 6]], 8, 1, 4, CPU)
    assert moved_bytes(scattered, (images(8), images(2))).total == (8 + 2) * CHANNEL


def test_a_shuffle_by_hand_costs_what_the_kernel_costs() -> None:
    def by_hand(x: Tensor) -> Tensor:
        return x.view(2, 2, 4, 4, 4).transpose(1, 2).contiguous().view(2, 8, 4, 4)

    assert torch.equal(by_hand(images()), nn.functional.channel_shuffle(images(), 2))
    assert (
        moved(by_hand)["clone"]
        == moved(lambda x: nn.functional.channel_shuffle(x, 2))["channel_shuffle"]
    )


def test_an_export_moves_what_its_solution_copies() -> None:
    """Gathers cost their channels' bytes, and nothing else moves in a network without cats."""
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        for name, gone in (("0.weight", [1, 3]), ("1.weight", [0, 2])):
            model.get_parameter(name).index_fill_(1, torch.tensor(gone), 0)
    pruned = uo.prune(model, images(), amount=0.0).model
    copied = sum(len(m.indices) for m in pruned.modules() if isinstance(m, Gather))
    assert copied == 6  # the network's input has a fixed order
    assert moved_bytes(pruned, images()).by_op == {"index_select": copied * CHANNEL}
    assert moved_bytes(model, images()).total == 0


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(), nn.ChannelShuffle(2)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        moved_bytes(model, images())
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_in_inference_mode_the_same_is_counted() -> None:
    with torch.inference_mode():
        assert moved(lambda x: x.transpose(1, 2).reshape(2, -1)) == {"clone": 8 * CHANNEL}


def test_inputs_of_no_known_form_are_refused() -> None:
    with pytest.raises(TraceError):
        moved_bytes(nn.Identity(), "a picture")  # type: ignore[arg-type]


def test_text() -> None:
    movement = Movement((Write("cat", 1_500_000), Write("index", 3_000_000), Write("cat", 500_000)))
    assert str(movement) == "5.00 MB moved (index 3.00, cat 2.00)"
    assert str(Movement(())) == "0.00 MB moved"
