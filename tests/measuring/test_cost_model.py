"""The cost model: its document, what it predicts, the kernels of a model, the fit."""

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.ir.cost_model import BLOCKED_KINDS, KINDS, Blocks, Check, CostModel, KernelCost
from upscale_opt.ir.profiles import PROFILES, profile
from upscale_opt.measuring.calibrating import Subject, calibrate_all
from upscale_opt.measuring.costs import count_costs
from upscale_opt.measuring.estimating import estimate, list_kernels
from upscale_opt.measuring.fitting import Timing, fit, non_negative, relative_error
from upscale_opt.solver.progress import Progress


def listed(model: nn.Module, inputs: Any) -> list[tuple[str, int, int]]:
    """Kind, bytes and multiply-adds of every kernel."""
    return [(k.kind, k.bytes, k.macs) for k in list_kernels(model, inputs)]


class Apply(nn.Module):
    """Applies a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def applied(function: Any, inputs: Tensor) -> list[tuple[str, int, int]]:
    return listed(Apply(function), inputs)


class TestDocument:
    def test_round_trip(self, tmp_path: Path) -> None:
        model = profile("cpu").model_copy(
            update={
                "error": {"conv": 0.1},
                "checks": (Check(network="n", predicted=1, measured=2),),
            }
        )
        model.save(tmp_path / "model.json")
        assert CostModel.load(tmp_path / "model.json") == model

    def test_newer_version_is_refused(self) -> None:
        data = json.loads(profile("cpu").to_json()) | {"schema_version": 2}
        with pytest.raises(uo.SchemaError, match="cost model has schema_version 2"):
            CostModel.from_json(json.dumps(data))

    def test_negative_price_is_refused(self) -> None:
        data = json.loads(profile("cpu").to_json())
        data["kernels"]["conv"]["launch"] = -1
        with pytest.raises(uo.SchemaError, match=r"kernels\.conv\.launch"):
            CostModel.from_json(json.dumps(data))

    @pytest.mark.parametrize("name", PROFILES)
    def test_profiles_price_all_kinds(self, name: str) -> None:
        blocked = BLOCKED_KINDS if profile(name).in_blocks else ()
        assert set(profile(name).kernels) == {*KINDS, *blocked}

    def test_unknown_profile(self) -> None:
        with pytest.raises(uo.SolverError, match="'tpu'; built in are cpu, cpu-channels-last, gpu"):
            profile("tpu")


class TestNanoseconds:
    model = CostModel(
        device="cpu",
        device_name="toy",
        kernels={
            "conv": KernelCost(launch=100, ns_per_byte=2, ns_per_mac=3),
            "copy": KernelCost(launch=0, ns_per_byte=1, cache=10, ns_per_far_byte=4),
        },
    )

    def test_is_a_sum(self) -> None:
        assert self.model.nanoseconds("conv") == 100
        assert self.model.nanoseconds("conv", bytes=5, macs=7) == 100 + 2 * 5 + 3 * 7

    def test_bytes_beyond_the_cache_cost_more(self) -> None:
        assert self.model.nanoseconds("copy", bytes=10) == 10
        assert self.model.nanoseconds("copy", bytes=13) == 13 + 3 * 4

    def test_unknown_kind(self) -> None:
        with pytest.raises(uo.SolverError, match="'convolve'; it knows conv, copy"):
            self.model.nanoseconds("convolve")

    @pytest.mark.parametrize(("moved", "macs"), [(-1, 0), (0, -1)])
    def test_negative_size(self, moved: float, macs: float) -> None:
        with pytest.raises(uo.SolverError, match=r"conv kernel .* cannot be negative"):
            self.model.nanoseconds("conv", bytes=moved, macs=macs)


class TestBlocks:
    def test_channels_count_in_whole_blocks(self) -> None:
        assert [Blocks(16).counted(n) for n in (0, 1, 16, 17, 32)] == [0, 16, 16, 32, 32]
        assert Blocks(16, 1.5).counted(17) == 48
        assert Blocks(16, 1.5).counted(32) == 32
        assert Blocks().counted(17) == 17

    def test_a_few_channels_count_as_they_are(self) -> None:
        assert Blocks(16).more((3, 24)) == 32 / 24
        assert Blocks(16).more(()) == 1

    def test_some_kernels_count_what_they_write_alone(self) -> None:
        one_sided = Blocks(16, both=False)
        assert one_sided.more((24, 40)) == one_sided.of_written.more((40,)) == 48 / 40
        assert one_sided.of_read.counted(24) == 24
        assert Blocks(16).of_read == Blocks(16).of_written == one_sided.of_written

    @pytest.mark.parametrize(
        ("layer", "more"),
        [
            (nn.Conv2d(24, 40, 1), 32 / 24 * 48 / 40),
            (nn.Conv2d(24, 24, 3, groups=24), 32 / 24),
            (nn.Conv2d(24, 40, 3, groups=4), 1),
        ],
    )
    def test_an_estimate_counts_convolutions_so(self, layer: nn.Conv2d, more: float) -> None:
        each = {kind: KernelCost(launch=0, ns_per_byte=0, ns_per_mac=1) for kind in KINDS}
        blocked = {k: price.model_copy(update={"block": 16}) for k, price in each.items()}
        one, other = (
            estimate(
                layer,
                torch.zeros(1, 24, 8, 8),
                CostModel(device="cpu", device_name="toy", kernels=kernels),
            ).nanoseconds
            for kernels in (each, blocked)
        )
        assert other == pytest.approx(one * more)

    def test_a_layout_in_blocks_counts_so(self) -> None:
        assert profile("onnxruntime").blocks("conv").size == 16
        assert profile("onnxruntime").blocks("linear") == Blocks()


class TestKernels:
    def test_convolution(self) -> None:
        moved = 4 * (2 * 3 * 8 * 8 + 5 * 3 * 3 * 3 + 5 + 2 * 5 * 6 * 6)
        conv = nn.Conv2d(3, 5, 3)
        assert listed(conv, torch.zeros(2, 3, 8, 8)) == [("conv", moved, 2 * 36 * 5 * 27)]

    @pytest.mark.parametrize(
        ("layer", "kind", "macs"),
        [
            (nn.Conv2d(6, 5, 1, bias=False), "conv1x1", 64 * 6 * 5),
            (nn.Conv2d(6, 6, 3, padding=1, groups=6), "depthwise", 64 * 6 * 9),
            (nn.Conv2d(6, 4, 3, padding=1, groups=2), "grouped", 64 * 4 * 3 * 9),
            (nn.ConvTranspose2d(6, 2, 2, stride=2), "transposed", 64 * 6 * 2 * 4),
            (nn.BatchNorm2d(6), "norm", 0),
            (nn.ReLU(inplace=True), "elementwise", 0),
            (nn.Hardswish(), "elementwise", 0),
            (nn.MaxPool2d(2), "pool", 0),
            (nn.Softmax(1), "softmax", 0),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
    )
    def test_kinds(self, layer: nn.Module, kind: str, macs: int) -> None:
        assert [k[::2] for k in listed(layer, torch.zeros(1, 6, 8, 8))] == [(kind, macs)]

    def test_linear(self) -> None:
        moved = 4 * (3 * 7 + 7 * 5 + 5 + 3 * 5)
        assert listed(nn.Linear(7, 5), torch.zeros(3, 7)) == [("linear", moved, 3 * 7 * 5)]

    def test_views_are_free(self) -> None:
        x = torch.zeros(1, 8, 4, 4)
        assert applied(lambda x: x.narrow(1, 2, 3).flatten(2).transpose(1, 2), x) == []
        assert applied(lambda x: (x.chunk(2, 1)[0].detach(), torch.empty_like(x)), x) == []

    def test_moves(self) -> None:
        x = torch.zeros(1, 8, 4, 4)
        whole = 4 * 8 * 16
        assert applied(lambda x: torch.cat([x, x], 1), x) == [("copy", 4 * whole, 0)]
        chosen = torch.tensor([5, 1])
        assert applied(lambda x: x.index_select(1, chosen), x) == [("gather", whole // 2, 0)]

        def write(x: Tensor) -> Tensor:
            buffer = x.new_empty(1, 16, 4, 4)
            buffer.narrow(1, 3, 8).copy_(x)
            return buffer

        assert applied(write, x) == [("copy", 2 * whole, 0)]

    def test_broadcast_operands_count_once(self) -> None:
        x = torch.zeros(2, 3, 4, 4)
        scale = torch.zeros(2, 3, 1, 1)
        kernels = applied(lambda x: x * scale.expand(2, 3, 4, 4), x)
        assert kernels == [("elementwise", 4 * (2 * 96 + 6), 0)]

    def test_convolution_copies_a_view_of_a_batch(self) -> None:
        conv = nn.Conv2d(3, 5, 1)
        copied = ("view_copy", 2 * 4 * 2 * 3 * 64, 0)
        kernels = applied(lambda x: conv(x.narrow(1, 2, 3)), torch.zeros(2, 8, 8, 8))
        assert kernels[0] == copied
        assert [kind for kind, _, _ in kernels] == ["view_copy", "conv1x1"]
        alone = applied(lambda x: conv(x.narrow(1, 2, 3)), torch.zeros(1, 8, 8, 8))
        assert [kind for kind, _, _ in alone] == ["conv1x1"]

    def test_convolution_takes_channels_last_as_it_is(self) -> None:
        conv = nn.Conv2d(8, 5, 1)
        x = torch.zeros(2, 8, 8, 8).to(memory_format=torch.channels_last)
        assert [kind for kind, _, _ in listed(conv, x)] == ["conv1x1"]

    def test_strided_product(self) -> None:
        weight = torch.zeros(5, 3).expand(2, 5, 3)
        kernels = applied(
            lambda x: torch.bmm(weight, x.narrow(1, 2, 3).flatten(2)), torch.zeros(2, 8, 4, 4)
        )
        assert kernels == [("strided1x1", 4 * (15 + 2 * 48 + 2 * 80), 2 * 16 * 15)]

    def test_in_inference_mode(self) -> None:
        x = torch.zeros(2, 3, 8, 8)
        conv = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 2))
        outside = listed(conv, x)
        with torch.inference_mode():
            assert listed(conv, x) == outside


class Branching(nn.Module):
    """Looks at its data."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if float(x.sum()) > 0 else x.sin().cos()


class TestEstimate:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    x = torch.zeros(1, 3, 8, 8)

    def test_sums(self) -> None:
        found = estimate(self.net, self.x, profile("cpu"))
        kernels = [p.kernel for p in found.kernels]
        prices = [
            profile("cpu").nanoseconds(k.kind, bytes=k.bytes, macs=k.macs, sides=k.sides)
            for k in kernels
        ]
        assert found.nanoseconds == pytest.approx(sum(prices))
        assert sum(found.by_kind.values()) == pytest.approx(found.nanoseconds)
        assert set(found.by_kind) == {"conv", "norm", "elementwise", "linear"}
        assert set(found.by_module) == {"0", "1", "2", "4"}
        assert "conv" in str(found)

    def test_multiply_adds_are_those_of_count_costs(self) -> None:
        macs = sum(
            priced.kernel.macs for priced in estimate(self.net, self.x, profile("cpu")).kernels
        )
        assert macs == count_costs(self.net, self.x).multiply_adds

    def test_monotone_in_the_batch(self) -> None:
        times = [
            estimate(self.net, torch.zeros(n, 3, 8, 8), profile("cpu")).nanoseconds
            for n in (1, 2, 8)
        ]
        assert times == sorted(set(times))

    def test_leaves_the_model_as_it_was(self) -> None:
        net = copy.deepcopy(self.net).train()
        net[1].eval()
        modes = [module.training for module in net.modules()]
        state = {name: value.clone() for name, value in net.state_dict().items()}
        random = torch.get_rng_state()
        estimate(net, self.x, profile("cpu"))
        assert [module.training for module in net.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        assert torch.equal(torch.get_rng_state(), random)

    def test_a_model_that_needs_data_is_run(self) -> None:
        kinds = [k.op for k in list_kernels(Branching(), torch.ones(3))]
        assert "relu" in kinds
        assert "cos" not in kinds

    def test_inputs_of_a_wrong_form(self) -> None:
        with pytest.raises(uo.TraceError, match="inputs are a str"):
            estimate(self.net, "x", profile("cpu"))  # type: ignore[arg-type]

    def test_pruning_is_cheaper(self) -> None:
        net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 16, 3))
        x = torch.zeros(1, 16, 32, 32)
        pruned = uo.prune(net, x, amount=0.5).model
        whole, half = (estimate(m, x, profile("cpu")).nanoseconds for m in (net, pruned))
        assert half < whole


class TestFit:
    sizes = tuple((2**n, 3 ** (n % 7) * 1000) for n in range(8, 24))

    def timings(self, cost: KernelCost) -> list[Timing]:
        return [Timing(b, m, cost.nanoseconds(b, m)) for b, m in self.sizes]

    @pytest.mark.parametrize(
        "cost",
        [
            KernelCost(launch=5000, ns_per_byte=0.2, ns_per_mac=0.02),
            KernelCost(launch=0, ns_per_byte=0.2),
            KernelCost(launch=900, ns_per_byte=0.01, cache=2**16, ns_per_far_byte=0.3),
        ],
    )
    def test_recovers_prices(self, cost: KernelCost) -> None:
        timings = self.timings(cost)
        found = fit(timings)
        assert relative_error(found, timings) < 1e-6
        for name in ("launch", "ns_per_byte", "ns_per_mac", "ns_per_far_byte"):
            assert getattr(found, name) == pytest.approx(getattr(cost, name), rel=1e-3, abs=1e-6)

    @pytest.mark.parametrize(
        "blocks",
        [Blocks(), Blocks(16), Blocks(8), Blocks(16, 1.5), Blocks(16, 1.5, both=False)],
    )
    def test_recovers_blocks(self, blocks: Blocks) -> None:
        cost = KernelCost(
            launch=5000,
            ns_per_byte=0.1,
            ns_per_mac=1,
            block=blocks.size,
            uneven=blocks.uneven,
            both=blocks.both,
        )
        widths = (16, 19, 24, 33, 40, 48, 61, 64, 75, 96, 128, 200)
        reads = itertools.cycle((64, 21, 40, 17, 100))
        kernels = [
            Timing(49 * w, 10 * r * w, 0, 1, (r, w)) for w, r in zip(widths, reads, strict=False)
        ]
        timings = [
            replace(k, nanoseconds=cost.nanoseconds(k.bytes, k.macs, k.sides)) for k in kernels
        ]
        found = fit(timings)
        assert found.blocks == cost.blocks
        assert relative_error(found, timings) < 1e-6

    def test_a_far_off_timing_counts_little(self) -> None:
        cost = KernelCost(launch=5000, ns_per_byte=0.2, ns_per_mac=0.02)
        timings = self.timings(cost)
        b, m = self.sizes[9]
        found = fit([*timings, Timing(b, m, 30 * cost.nanoseconds(b, m))])
        assert relative_error(found, timings) < 0.1

    def test_a_multiply_add_costs_something(self) -> None:
        timings = [Timing(n, 10 * n, 100 + n) for n in (10, 20, 40)]
        assert fit(timings, 0.05).ns_per_mac >= 0.05
        assert relative_error(fit(timings, 0.05), timings) < 1e-6

    def test_one_timing(self) -> None:
        assert fit([Timing(100, 0, 50)]).nanoseconds(100, 0) == pytest.approx(50)

    def test_non_negative(self) -> None:
        matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double().numpy()
        target = torch.tensor([3.0, -1.0, 2.0]).double().numpy()
        assert non_negative(matrix, target).tolist() == pytest.approx([2.5, 0.0])


def small() -> tuple[nn.Module, uo.ChannelGraph, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 4, 3)
    ).eval()
    x = torch.randn(2, 3, 24, 24)
    return net, uo.trace(net, x), x


class TestCalibrate:
    def test_structure(self) -> None:
        net, graph, x = small()
        state = {name: value.clone() for name, value in net.state_dict().items()}
        threads = torch.get_num_threads()
        told: list[Progress] = []
        model = calibrate_all(
            [Subject(net, graph, x, "small")],
            threads=1,
            seconds=0.05,
            memory_format="channels_last",
            progress=told.append,
        )
        assert set(model.kernels) == set(KINDS)
        assert {"conv", "conv1x1", "gather", "copy", "view_copy", "strided1x1"} <= set(model.error)
        assert [check.network for check in model.checks] == ["small", "small, half of its channels"]
        assert all(check.predicted > 0 and check.measured > 0 for check in model.checks)
        assert (model.device, model.dtype, model.threads) == ("cpu", "float32", 1)
        assert model.memory_format == "channels_last"
        assert model.torch_version == torch.__version__
        assert any("half" in event.step for event in told)
        assert CostModel.from_json(model.to_json()) == model
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert torch.get_num_threads() == threads

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"memory_format": "nhwc"}, "'nhwc'; there are contiguous, channels_last"),
            ({"threads": 0}, "at least 1, not 0"),
            ({"seconds": 0}, "more than 0, not 0"),
            ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
            ({"device": "meta"}, "'meta' has no clock"),
        ],
    )
    def test_options_that_make_no_sense(self, options: dict[str, Any], message: str) -> None:
        net, graph, _ = small()
        with pytest.raises(uo.SolverError, match=message):
            uo.measuring.calibrate(net, graph, **options)

    def test_no_models(self) -> None:
        with pytest.raises(uo.SolverError, match="no model"):
            calibrate_all([])

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from upscale_opt.cli import main

        out = tmp_path / "cost-model.json"
        with pytest.raises(SystemExit) as exit_code:
            main(["calibrate", "squeezenet1_1", "--seconds", "0.01", "-o", str(out)])
        assert exit_code.value.code == 0
        assert CostModel.load(out).checks[0].network == "squeezenet1_1"
        assert "predicted / measured" in capsys.readouterr().out

    def test_command_refuses_a_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from upscale_opt.cli import main

        with pytest.raises(SystemExit) as exit_code:
            main(["calibrate", "squeezenet1_1", "-o", str(tmp_path)])
        assert exit_code.value.code == 1
        assert "name a file in it" in capsys.readouterr().err
