"""Bytes moved: what is counted, and that views and computations are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.errors import TraceError
from upscale_opt.modules import Gather, PlacedSum
from upscale_opt.movement import Movement, Write, moved_bytes

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
        (write_slice, "copy_", 3),
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
        lambda x: x.double(),
        lambda x: nn.functional.conv2d(x, torch.ones(3, 8, 1, 1)),
    ],
)
def test_views_and_computations_move_nothing(function: Callable[[Tensor], object]) -> None:
    assert moved(function) == {}


def test_bytes_follow_the_dtype() -> None:
    x = images()
    assert moved(lambda x: x.flip(1), x.double())["flip"] == 2 * moved(lambda x: x.flip(1))["flip"]


def test_the_modules_of_an_export() -> None:
    gather = Gather([1, 4], 1, CPU)
    assert moved_bytes(gather, images()).by_op == {"index_select": 2 * CHANNEL}
    views = PlacedSum([(0, 3), (2, 5)], 8, 1, 4, CPU)
    total = moved_bytes(views, (images(3), images(5)))
    assert total.by_op == {"add_": 8 * CHANNEL, "new_zeros": 8 * CHANNEL}
    scattered = PlacedSum([None, [1, 6]], 8, 1, 4, CPU)
    assert moved_bytes(scattered, (images(8), images(2))).total == (8 + 8 + 2) * CHANNEL


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
