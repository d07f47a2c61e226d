"""Models that are copied, trained, pruned again and saved again, also elsewhere."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import call, cast, complaint, same_state, size, state
from sample_networks import images
from saving_round_trips import Exported, assert_same, outputs, prune, round_trip, same_bits
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.materializing.gathered import gathered
from upscale_opt.materializing.pruned_module import PrunedModule, replace
from upscale_opt.materializing.used import registered
from upscale_opt.models import catalogue
from upscale_opt.models.topologies import TOPOLOGIES, example_inputs
from upscale_opt.runtime.modules import Gather, PlacedSum
from upscale_opt.saving.file import unpack
from upscale_opt.tracing.examples import Inputs

# The pruned model's life before and after.


def test_the_model_that_prune_made_can_be_saved(path: Path) -> None:
    model = catalogue.randomize(catalogue.build("topology/unet"), 1)
    pruned = uo.prune(model, images(2, 8), amount=0.5)
    wrong: Any = pruned
    assert "give its .model" in complaint(uo.MaterializeError, lambda: uo.save(wrong, path))
    uo.save(pruned.model, str(path))
    assert isinstance(pruned.model, PrunedModule)
    assert_same(pruned.model, uo.load(model, str(path)), images(2, 8))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_can_be_saved(how: str, path: Path) -> None:
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    pruned: Any = prune(model, images(2, 8))
    if how == "deepcopy":
        copied = copy.deepcopy(pruned)
    else:
        buffer = io.BytesIO()
        torch.save(pruned, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert (copied.solution, copied.origin) == (pruned.solution, pruned.origin)
    round_trip(copied, model, path, images(2, 8))


def double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def test_hooks_come_from_the_definition(path: Path) -> None:
    seen: list[Tensor] = []

    class Watcher:
        def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
            seen.append(output)

    def build() -> nn.Module:
        model = catalogue.build("topology/residual_stage", seed=4)
        model.get_submodule("stem").register_forward_hook(double_output)
        return model

    uo.save(prune(build(), images(2, 8)), path)
    definition = build()
    definition.register_forward_hook(Watcher())
    loaded = uo.load(definition, path)
    seen.clear()
    out = call(loaded, images(2, 8))
    assert len(seen) == 1
    assert seen[0] is out
    assert torch.equal(out, call(uo.load(build(), path), images(2, 8)))


def train_a_little(model: nn.Module, inputs: Inputs) -> None:
    """One step of fine-tuning, in training mode; then in evaluation mode."""
    results = [leaf for leaf in pytree.tree_leaves(model.train()(inputs)) if leaf.requires_grad]
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    torch.autograd.backward(torch.stack([leaf.square().mean() for leaf in results]).sum())
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def test_a_pruned_model_pruned_again(path: Path) -> None:
    """It is loaded into the original, or into the model pruned once."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    once = prune(model, images(2, 8), 0.3)
    uo.save(once, path.with_name("once.safetensors"))
    twice = prune(once, images(2, 8), 0.3)
    assert size(twice) < size(once)
    assert [stage.solution for stage in twice.earlier] == [once.solution]
    definition = catalogue.build("topology/residual_stage")
    loaded = round_trip(twice, definition, path, images(2, 8))
    assert loaded.earlier == twice.earlier
    first = uo.load(definition, path.with_name("once.safetensors"))
    assert first.earlier == ()
    round_trip(twice, first, path, images(2, 8))
    round_trip(twice, once, path, images(2, 8))


def prune_in_place(model: nn.Module, inputs: Inputs, amount: float) -> None:
    manager = uo.MaskingManager(model, side="both", inputs=inputs, layers="all")
    manager.importance()
    manager.mask(amount)
    uo.PruningManager(model).compute(inputs).prune()


@pytest.mark.parametrize(
    "name", ["topology/dense_block", "topology/residual_stage", "topology/unet"]
)
def test_models_pruned_in_place_again_and_again(name: str, path: Path) -> None:
    """Prune, fine-tune, and prune further: every file loads into the original definition."""
    inputs = images(2, 8)
    model = catalogue.randomize(catalogue.build(name), 1, inputs)
    sizes = [size(model)]
    before: nn.Module = catalogue.build(name, seed=3)
    for turn in range(1, 4):
        prune_in_place(model, inputs, 0.2)
        train_a_little(model, inputs)
        sizes.append(size(model))
        assert isinstance(model, PrunedModule)
        assert len(model.earlier) == turn - 1
        added = {n for n, m in model.named_modules() if isinstance(m, (Gather, PlacedSum))}
        used = {str(node.target) for node in model.graph.nodes}
        assert added <= used | {name.rpartition(".")[0] for name in used}
        uo.save(model, path)
        loaded = uo.load(catalogue.build(name, seed=7), path)
        assert sizes[-1] == size(loaded) < sizes[-2]
        assert all(map(same_bits, outputs(loaded, inputs), outputs(model, inputs)))
        assert same_state(state(loaded), state(model))
        assert (loaded.earlier, loaded.origin) == (model.earlier, model.origin)
        step = uo.load(before, path)  # what was loaded before, too
        assert all(map(same_bits, outputs(step, inputs), outputs(model, inputs)))
        before = step
        copied = pickled(model) if turn % 2 else copy.deepcopy(model)
        assert (copied.earlier, copied.solution) == (model.earlier, model.solution)
        uo.save(copied, path)
        again = unpack(path.read_bytes())
        assert again.manifest.earlier == loaded.earlier
        assert_same(loaded, uo.load(catalogue.build(name), path), inputs)


def pickled(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", list(TOPOLOGIES)[::3])
def test_topologies_pruned_twice(name: str, path: Path) -> None:
    """With and without what the first pruning added being read by the second."""
    inputs = example_inputs(name, 2)
    model = catalogue.randomize(catalogue.build(catalogue.PREFIX + name), 1, inputs)
    replace(model, prune(model, inputs, 0.3))
    replace(model, prune(model, inputs, 0.3))
    uo.save(model, path)
    loaded = uo.load(catalogue.build(catalogue.PREFIX + name, seed=3), path)
    assert len(loaded.earlier) == 1
    assert all(map(same_bits, outputs(loaded, inputs), outputs(model, inputs)))


@pytest.mark.parametrize("in_place", [False, True])
def test_models_captured_by_export_pruned_again(in_place: bool, path: Path) -> None:
    model: Any = catalogue.randomize(Exported().eval(), 1)
    x = images(2, 8)
    for turn in range(3):
        pruned = prune(model, x, 0.25)
        if in_place:
            replace(model, pruned)
        else:
            model = pruned
        train_a_little(model, x)
        uo.save(model, path)
        loaded = uo.load(Exported(), path)
        assert [stage.solution.capture for stage in loaded.earlier] == (["export"] + ["fx"] * 5)[
            :turn
        ]
        assert torch.equal(call(loaded, x), call(model, x))
        round_trip(loaded, Exported(), path, x)


def test_stages_of_several_dtypes_modes_and_kinds(path: Path) -> None:
    """Each stage is repeated as it was."""
    name = "topology/residual_stage"
    model = catalogue.randomize(catalogue.build(name), 1)
    x = images(2, 8)
    once = prune(model.double().train(), x.double(), 0.3).half().eval()
    once.get_submodule("blocks.0.bn1").train()
    graph = uo.trace(once, x.half())
    uo.apply_masks(once, graph, uo.choose_masks(once, graph, 0.3, side="both"))
    solution = uo.solve(graph, uo.masks_of(once, graph))
    twice = uo.materialize(once, gathered(solution)).float()
    loaded = round_trip(twice, catalogue.build(name), path, x)
    assert [stage.origin.dtype for stage in loaded.earlier] == ["float64"]
    assert loaded.origin is not None
    assert loaded.origin.dtype == "float16"


def test_a_pruned_model_edited_and_pruned_again(path: Path) -> None:
    """What was edited cannot be repeated; the edited model is the definition."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    edited: Any = prune(model, images(2, 8), 0.3)
    edited.head = nn.Conv2d(edited.head.in_channels, 5, 1)
    twice = prune(edited, images(2, 8), 0.3)
    assert twice.earlier == ()
    round_trip(twice, edited, path, images(2, 8))
    with pytest.raises(uo.MaterializeError, match="another model"):
        uo.load(catalogue.build("topology/residual_stage"), path)


class Learner(nn.Module):
    """Holds more than its forward uses: a loss, a temperature, a step counter."""

    steps: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(4))
        self.unused = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.body(self.stem(x)).relu()
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("how", ["attached", "in place", "loaded"])
def test_what_forward_does_not_use_is_not_saved(how: str, path: Path) -> None:
    x = images(2, 8)
    model: Any = catalogue.randomize(Learner(1).eval(), 1)
    if how == "attached":
        model = prune(model, x)
        model.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
        model.register_buffer("steps", torch.ones(2))
        model.loss = nn.CrossEntropyLoss(weight=torch.ones(4))
        model.unused = Extra()
        model.body.unused = nn.Linear(2, 2, device="meta")
    elif how == "in place":
        for _ in range(2):
            replace(model, prune(model, x, 0.3))
    else:
        uo.save(prune(model, x, 0.3), path)
        model = uo.load(model, path)
        model.loss = nn.CrossEntropyLoss(weight=torch.ones(4))
    model.aside = model.head.weight  # a further name for what is used
    model.head.weight.requires_grad_(False)
    model.register_module("loss_", nn.MSELoss().train())
    uo.save(model, path)
    loaded = uo.load(Learner(2).eval(), path)
    assert torch.equal(call(loaded, x), call(model, x))
    stored = unpack(path.read_bytes())
    assert {name.partition(".")[0] for name in stored.tensors} == {"stem", "body", "head"}
    assert stored.tensors.keys() == set(dict(registered(loaded)))
    assert not loaded.get_parameter("head.weight").requires_grad
    assert loaded.get_parameter("head.bias").requires_grad
    assert not hasattr(loaded, "temperature")
    assert not hasattr(loaded, "loss")
    again = path.with_name("again.safetensors")
    uo.save(loaded, again)
    assert unpack(again.read_bytes()).manifest == stored.manifest

    # And pruned further: the stages count, whatever lies beside them.
    del model.aside
    further = prune(model, x, 0.3)
    assert len(further.earlier) == (2 if how == "in place" else 1)
    round_trip(further, Learner(2), path, x)


class Extra(nn.Module):
    """Has more state than tensors."""

    def get_extra_state(self) -> Any:
        return {"some": object()}


def test_models_pruned_in_place(path: Path) -> None:
    """Once and twice; into the original, and what was loaded before."""
    model = catalogue.randomize(catalogue.build("topology/residual_stage"), 1)
    replace(model, prune(model, images(2, 8), 0.3))
    first = uo.load(catalogue.build("topology/residual_stage"), saved_to(model, path))
    assert torch.equal(call(first, images(2, 8)), call(model, images(2, 8)))
    replace(model, prune(model, images(2, 8), 0.3))
    for definition in (first, catalogue.build("topology/residual_stage")):
        second = uo.load(definition, saved_to(model, path))
        assert size(second) < size(first)
        assert torch.equal(call(second, images(2, 8)), call(model, images(2, 8)))


def saved_to(model: nn.Module, path: Path) -> Path:
    uo.save(model, path)
    return path


@pytest.mark.parametrize("name", ["topology/residual_stage", "topology/nested_cat"])
def test_everything_gathered(name: str, path: Path) -> None:
    """The baseline export: no read that selects channels is a view."""
    inputs = images(2, 8)
    model = catalogue.randomize(catalogue.build(name), 1, inputs).double()
    inputs = cast(inputs, torch.float64)
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, 0.5))
    solution = uo.solve(graph, uo.masks_of(model, graph))
    pruned = uo.materialize(model, solution)
    baseline = uo.materialize(model, gathered(solution))
    assert torch.equal(call(pruned, inputs), call(baseline, inputs))

    def narrows(module: Any) -> int:
        return sum(node.target is torch.narrow for node in module.graph.nodes)

    def gathers(module: nn.Module) -> int:
        return sum(isinstance(part, Gather) for part in module.modules())

    assert narrows(pruned) > 0
    assert narrows(baseline) == 0
    assert gathers(baseline) == gathers(pruned) + narrows(pruned)
    assert gathers(round_trip(baseline, catalogue.build(name), path, inputs)) == gathers(baseline)
    assert gathers(round_trip(pruned, catalogue.build(name), path, inputs)) == gathers(pruned)


# In a new process.

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Two residual blocks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.first = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)])
        self.second = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        for conv, norm in (self.first, self.second):
            x = x + norm(conv(x)).relu()
        return self.head(x.amax(dim=(2, 3)))


def examples(count, seed):
    """Noisy images of one of four shapes, somewhere."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draw)
    x = torch.randn(count, 1, 8, 8, generator=draw) * 0.3
    places = torch.randint(6, (count, 2), generator=draw)
    shapes = torch.tensor([
        [[1, 1, 1], [0, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    ])
    for image, label, (row, column) in zip(x, labels, places.tolist()):
        image[0, row:row + 3, column:column + 3] += shapes[label]
    return x, labels


def train(model, epochs, rate):
    x, labels = examples(512, 1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for _ in range(epochs):
        for batch, wanted in zip(x.split(32), labels.split(32)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
    return model.eval()


def quality(model):
    """Loss and accuracy on examples not trained on."""
    x, labels = examples(256, 2)
    with torch.no_grad():
        out = model(x)
    loss = nn.functional.cross_entropy(out, labels)
    return loss.item(), (out.argmax(1) == labels).float().mean().item()
'''

SECOND_PROCESS = """
import sys
import torch
import upscale_opt as uo
from net import Net, examples, quality, train

torch.set_num_threads(1)
model = uo.load(Net(), "pruned.safetensors")
torch.save((model(examples(256, 2)[0]).detach(), quality(model)), "outputs.pt")
train(model, 1, 1e-3)
print(*quality(model))
uo.save(model, "tuned.safetensors")
"""


def test_train_prune_save_load_elsewhere_tune_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "second.py").write_text(SECOND_PROCESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import net  # type: ignore[import-not-found]

    model = net.train(net.Net(), 4, 3e-3)
    trained = net.quality(model)
    assert trained[1] > 0.9
    pruned = uo.prune(model, torch.zeros(1, 1, 8, 8), amount=0.4)
    uo.save(pruned.model, tmp_path / "pruned.safetensors")
    x, _ = net.examples(256, 2)
    before = net.quality(pruned.model)
    assert before[0] > trained[0]

    done = subprocess.run(
        [sys.executable, "second.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there, quality_there = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert torch.equal(there, pruned.model(x))
    assert quality_there == before
    loss, accuracy = map(float, done.stdout.split())
    assert loss < before[0]
    assert accuracy > before[1]
    tuned = uo.load(net.Net(), tmp_path / "tuned.safetensors")
    assert net.quality(tuned) == (loss, accuracy)
    assert not any(module.training for module in tuned.modules())
