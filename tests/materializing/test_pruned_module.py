"""The pruned model is a module like any other, and shares nothing with the original."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_lossless, call, cast, deviation, same_state, size, state, storages
from sample_networks import Documents, documents_of, images, keep
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.materializing.marks import MARK
from upscale_opt.models import catalogue
from upscale_opt.models.topologies import TOPOLOGIES, example_inputs
from upscale_opt.runtime.modules import Gather, PlacedSum
from upscale_opt.solver.progress import Progress

NAMES = ("resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small")


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[Documents, nn.Module]:
    """A masked network and its export. Not to be changed."""
    documents = documents_of(request.param, 0.5, "both")
    return documents, uo.materialize(documents.model, documents.solution)


def test_it_prints_like_a_network(pair: tuple[Documents, nn.Module]) -> None:
    documents, pruned = pair
    text = repr(pruned)
    assert text.startswith(type(documents.model).__name__ + "(")
    assert "Conv2d(3, " in text
    assert "BatchNorm2d(" in text
    gathers = sum(isinstance(m, Gather) for m in pruned.modules())
    assert text.count("Gather(") == gathers
    assert gathers == 0 or "along dim 1)" in text
    assert len(text.splitlines()) < 2 * len(repr(documents.model).splitlines()) + 500


def test_submodules_keep_type_name_and_agree_with_their_weights(
    pair: tuple[Documents, nn.Module],
) -> None:
    documents, pruned = pair
    old = dict(documents.model.named_modules())
    kinds = 0
    for name, module in pruned.named_modules():
        if isinstance(module, (Gather, PlacedSum)) or not name:
            continue
        if list(module.children()):
            assert name in old
            continue
        assert type(module) is type(old[name]), name
        if isinstance(module, nn.Conv2d):
            kinds += 1
            assert module.out_channels == module.weight.shape[0]
            assert module.in_channels == module.weight.shape[1] * module.groups
            assert module.bias is None or module.bias.shape == (module.out_channels,)
        elif isinstance(module, nn.BatchNorm2d):
            kinds += 1
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, Tensor)
                assert tensor.shape == (module.num_features,)
        elif isinstance(module, nn.Linear):
            kinds += 1
            assert module.weight.shape == (module.out_features, module.in_features)
    assert kinds > 30


def test_no_storage_is_shared(pair: tuple[Documents, nn.Module]) -> None:
    documents, pruned = pair
    assert storages(pruned)
    assert storages(documents.model).isdisjoint(storages(pruned))
    assert not set(documents.model.modules()) & set(pruned.modules())


@pytest.mark.parametrize(
    ("name", "masked"),
    [*((name, True) for name in TOPOLOGIES), *((name, False) for name in list(TOPOLOGIES)[::6])],
)
def test_no_topology_shares_storage_or_changes_its_original(name: str, masked: bool) -> None:
    inputs = example_inputs(name, 2)
    model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 1, inputs)
    graph = uo.trace(model, inputs)
    if masked:
        uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5, side="both"))
    before = state(model)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    assert same_state(before, state(model))
    assert storages(model).isdisjoint(storages(pruned))
    with torch.no_grad():
        for tensor in (*pruned.parameters(), *pruned.buffers()):
            tensor.zero_()
    assert same_state(before, state(model))


def test_modes_propagate(pair: tuple[Documents, nn.Module]) -> None:
    pruned = copy.deepcopy(pair[1])
    assert [name for name, m in pruned.named_modules() if m.training] == []
    assert pruned.train() is pruned
    assert all(m.training for m in pruned.modules())
    pruned.eval()
    assert not any(m.training for m in pruned.modules())


def test_a_mixture_of_modes_stays_one() -> None:
    model = catalogue.build("topology/residual_stage").train()
    model.get_submodule("blocks.1").eval()
    graph = uo.trace(model, images(2, 8))
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    for name, module in pruned.named_modules():
        assert module.training == model.get_submodule(name).training, name
    x = images(2, 8)
    assert deviation(call(model, x), call(pruned, x)) < 1e-5


def test_state_dicts(pair: tuple[Documents, nn.Module]) -> None:
    documents, pruned = pair
    own, other = pruned.state_dict(), documents.model.state_dict()
    added = {
        name for name in own if name == MARK or ".indices" in name
    }  # what tells prunings apart
    assert set(own) - added <= set(other)
    assert added.isdisjoint(other)
    for name, value in own.items():
        if name in added:
            continue
        assert value.dtype == other[name].dtype
        assert all(a <= b for a, b in zip(value.shape, other[name].shape, strict=True)), name
    again = uo.materialize(documents.model, documents.solution)
    with torch.no_grad():
        for tensor in (*again.parameters(), *again.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(0.8)
    x = images(2, 64)
    assert deviation(call(pruned, x), call(again, x)) > 0.01
    again.load_state_dict(own)
    assert deviation(call(pruned, x), call(again, x)) == 0


def test_deep_copies(pair: tuple[Documents, nn.Module]) -> None:
    _, pruned = pair
    x = images(2, 64)
    copied = copy.deepcopy(pruned)
    assert deviation(call(pruned, x), call(copied, x)) == 0
    assert storages(pruned).isdisjoint(storages(copied))
    assert [n for n, _ in copied.named_modules()] == [n for n, _ in pruned.named_modules()]


def test_saving_and_loading(pair: tuple[Documents, nn.Module], tmp_path: Path) -> None:
    _, pruned = pair
    torch.save(pruned, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    x = images(2, 64)
    assert deviation(call(pruned, x), call(loaded, x)) == 0
    assert same_state(state(pruned), state(loaded))
    assert not loaded.training
    torch.save(pruned.state_dict(), tmp_path / "state.pt")
    weights = torch.load(tmp_path / "state.pt", weights_only=True)
    assert same_state(state(pruned), weights)


@pytest.mark.parametrize("where", ["", "stem"])
@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_hooks_survive_copies_as_they_do_on_the_original(where: str, how: str) -> None:
    model = catalogue.build("topology/residual_stage").double()
    model.get_submodule(where).register_forward_hook(double_output)
    x = images(2, 8).double()
    graph = uo.trace(model, x)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    assert_lossless(model, pruned, x)
    if how == "deepcopy":
        copied = copy.deepcopy(pruned)
    else:
        buffer = io.BytesIO()
        torch.save(pruned, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert_lossless(model, copied, x)


def double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def test_batch_and_image_sizes_are_free(pair: tuple[Documents, nn.Module]) -> None:
    documents, pruned = pair
    masked, smaller = copy.deepcopy(documents.model).double(), copy.deepcopy(pruned).double()
    for inputs in (images(1, 64), images(5, 64), images(2, 96, 72)):
        assert_lossless(masked, smaller, inputs.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_devices_are_kept(dtype: torch.dtype) -> None:
    model = catalogue.build("topology/residual_stage").to(dtype)
    keep(model.get_parameter("head.weight"), 1, [0, 3, 5])
    graph = uo.trace(model, images(2, 8).to(dtype))
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    old = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in (*pruned.named_parameters(), *pruned.named_buffers()):
        if name in old:
            assert tensor.dtype == old[name].dtype
        assert tensor.device == torch.device("cpu")


def test_mixed_dtypes_are_kept() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 4, 1).double()

        def forward(self, x: Tensor) -> Any:
            return self.head(self.stem(x).double())

    model = Mixed().eval()
    keep(model.get_parameter("head.weight"), 1, [1, 4])
    graph = uo.trace(model, images(2, 8))
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    assert pruned.get_parameter("stem.weight").dtype == torch.float32
    assert pruned.get_parameter("head.weight").dtype == torch.float64
    assert pruned.get_parameter("head.weight").shape == (4, 2, 1, 1)
    assert deviation(call(model, images(2, 8)), call(pruned, images(2, 8))) < 1e-6


def test_an_export_to_the_meta_device_needs_no_data() -> None:
    documents = documents_of("resnet18", 0.5, "both")
    pruned = uo.materialize(documents.model, documents.solution).to("meta")
    out = call(pruned, images(2, 64).to("meta"))
    assert out.shape == (2, 1000)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_channels_last_weights_keep_their_format(dimensions: int) -> None:
    last = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    kind = nn.Conv2d if dimensions == 2 else nn.Conv3d
    model = nn.Sequential(kind(3, 8, 3, padding=1), nn.ReLU(), kind(8, 6, 3, padding=1)).eval()
    model.to(memory_format=last)
    keep(model.get_parameter("2.weight"), 1, [1, 2, 4, 7])
    x = torch.randn(2, 3, *[6] * dimensions).contiguous(memory_format=last)
    graph = uo.trace(model, x)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    for name in ("0.weight", "2.weight"):
        weight = pruned.get_parameter(name)
        assert weight.is_contiguous(memory_format=last), name
        assert not weight.is_contiguous(), name
    assert pruned.get_parameter("2.weight").shape[:2] == (6, 4)
    assert deviation(call(model, x), call(pruned, x)) < 1e-5


def test_contiguous_weights_stay_contiguous(pair: tuple[Documents, nn.Module]) -> None:
    assert all(parameter.is_contiguous() for parameter in pair[1].parameters())


def test_requires_grad_is_kept() -> None:
    model = catalogue.build("topology/residual_stage")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("blocks.1" not in name)
    keep(model.get_parameter("head.weight"), 1, [0, 3, 5])
    graph = uo.trace(model, images(2, 8))
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    for name, parameter in pruned.named_parameters():
        assert parameter.requires_grad == ("blocks.1" not in name), name
        assert parameter.is_leaf
        assert parameter.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_and_one_step_changes_the_loss(name: str) -> None:
    documents = documents_of(name, 0.5)
    pruned = uo.materialize(documents.model, documents.solution).train()
    before = state(documents.model)
    x, target = images(4, 64), torch.tensor([1, 2, 3, 4])
    torch.manual_seed(1)
    loss = functional.cross_entropy(pruned(x), target)
    torch.autograd.backward(loss)
    for parameter_name, parameter in pruned.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name
    moved = sum(bool(p.grad.abs().max() > 0) for p in pruned.parameters() if p.grad is not None)
    assert moved > 0.9 * len(list(pruned.parameters()))
    torch.optim.SGD(pruned.parameters(), lr=1e-3).step()
    torch.manual_seed(1)
    after = functional.cross_entropy(pruned(x), target)
    assert after.item() < loss.item()
    assert same_state(before, state(documents.model))


def test_gradients_are_those_of_the_masked_model() -> None:
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1).double()
    x = images(2, 8).double()
    graph = uo.trace(model, x)
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5))
    solution = uo.solve(graph, uo.masks_of(model, graph))
    pruned = uo.materialize(model, solution)
    for network in (model, pruned):
        torch.autograd.backward(network(x).square().sum())
    checked = 0
    for name, parameter in pruned.named_parameters():
        want = model.get_parameter(name).grad
        assert want is not None
        for axis, kept in solution.parameters.get(name, {}).items():
            want = want.index_select(axis, torch.tensor(kept))
        assert parameter.grad is not None
        assert torch.allclose(want, parameter.grad, rtol=1e-9, atol=1e-12), name
        checked += 1
    assert checked == len(list(model.parameters()))


def test_tied_parameters_stay_tied() -> None:
    model = catalogue.build("topology/tied_weights")
    keep(model.get_parameter("head.weight"), 1, [1, 2])
    x = images(2, 8)
    graph = uo.trace(model, x)
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    first, second = pruned.get_submodule("first"), pruned.get_submodule("second")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert first.weight is second.weight
    assert len(list(pruned.parameters())) == len(list(model.parameters()))
    copied = copy.deepcopy(pruned)
    assert copied.get_parameter("first.weight") is copied.get_parameter("second.weight")


def test_a_module_used_twice_stays_one_module() -> None:
    model = catalogue.build("topology/shared_module")
    keep(model.get_parameter("head.weight"), 1, [1, 2])
    graph = uo.trace(model, images(2, 8))
    pruned = uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))
    assert sum(isinstance(m, nn.Conv2d) for m in pruned.modules()) == 3
    assert size(pruned) < size(model)


def test_the_pruned_model_can_be_pruned_again() -> None:
    documents = documents_of("resnet18", 0.3, "both")
    once = uo.materialize(documents.model, documents.solution)
    twice = uo.prune(once, images(2, 64), amount=0.3, side="both")
    assert size(twice.model) < size(once) < size(documents.model)
    assert twice.report is not None
    assert twice.report.float64_error < 1e-10


def test_the_pruned_model_can_be_exported_and_scripted() -> None:
    documents = documents_of("resnet18", 0.5)
    pruned = uo.materialize(documents.model, documents.solution)
    x = images(2, 64)
    program = torch.export.export(pruned, (x,))
    assert deviation(call(pruned, x), program.module()(x)) < 1e-6


def test_prune_leaves_its_model_alone_and_reports_its_steps() -> None:
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    before = state(model)
    told: list[Progress] = []
    pruned = uo.prune(model, images(2, 8), amount=0.5, side="both", progress=told.append)
    steps = [event.step for event in told if event.value is None]
    assert steps == ["trace", "mask", "solve", "materialize", "verify"]
    found = [event for event in told if event.value is not None]
    assert {event.step for event in found} == {"solve"}
    assert found[-1].value == pruned.solution.objective_value
    assert same_state(before, state(model))
    assert pruned.masked is not model
    assert pruned.report is not None
    assert pruned.report.float64_error < 1e-10
    unchecked = uo.prune(model, images(2, 8), amount=0.5, check=False)
    assert unchecked.report is None


def test_prune_takes_masks_or_the_zeros_there_are() -> None:
    model = catalogue.build("topology/residual_stage")
    x = images(2, 8)
    masks = uo.Masks(kept={"head.weight": {1: (0, 1, 2)}})
    by_masks = uo.prune(model, x, masks=masks)
    keep(model.get_parameter("head.weight"), 1, [0, 1, 2])
    by_zeros = uo.prune(model, x)
    assert by_zeros.masked is model
    assert by_masks.solution.tensors == by_zeros.solution.tensors
    assert same_state(state(by_masks.model), state(by_zeros.model))


def test_applied_masks_are_the_masks_found() -> None:
    """And a dropped output channel is zero behind its bias and its batch norm."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1).double()
    x = images(2, 8).double()
    graph = uo.trace(model, x)
    masks = uo.choose_masks(model, graph, 0.5, side="both")
    uo.apply_masks(model, graph, masks)
    found = uo.masks_of(model, graph)
    for name, by_axis in masks.kept.items():
        for axis, kept in by_axis.items():
            assert found.kept[name][axis] == kept, (name, axis)
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda module, args, output: seen.update({name: output.clone()})

    handles = [
        model.get_submodule(n).register_forward_hook(remember(n))
        for n in ("stem", "blocks.0.bn1", "blocks.2.bn2")
    ]
    call(model, cast(x, torch.float64))
    for handle in handles:
        handle.remove()
    for name, weight in (
        ("stem", "stem.weight"),
        ("blocks.0.bn1", "blocks.0.conv1.weight"),
        ("blocks.2.bn2", "blocks.2.conv2.weight"),
    ):
        wanted = set(range(12)).difference(masks.kept[weight][0])
        assert {c for c in range(12) if not seen[name][:, c].any()} == wanted, name
