"""Saving pruned models, loading them, and comparing the two bit by bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from comparing import call, storages, tensors_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import upscale_opt as uo
from upscale_opt.materializing.origin import calls_of
from upscale_opt.materializing.pruned_module import PrunedModule
from upscale_opt.saving.file import unpack
from upscale_opt.tracing.examples import Inputs


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(5)  # for models in training mode
    return [leaf for leaf in pytree.tree_leaves(call(model, inputs)) if isinstance(leaf, Tensor)]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """NaN is NaN, and -0.0 is not 0.0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (t.detach().cpu().contiguous().reshape(-1) for t in (left, right))
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def ties(model: nn.Module) -> list[list[str]]:
    """The names that each parameter or buffer has."""
    names: dict[int, list[str]] = {}
    for pairs in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in pairs:
            names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def assert_same(saved: PrunedModule, loaded: PrunedModule, inputs: Inputs | None = None) -> None:
    """Whatever can be seen of the two is the same."""
    assert repr(loaded) == repr(saved)
    assert type(loaded).__name__ == type(saved).__name__
    assert ties(loaded) == ties(saved)
    for name, parameter in saved.named_parameters():
        assert loaded.get_parameter(name).requires_grad == parameter.requires_grad, name
        assert loaded.get_parameter(name).is_leaf
    for (name, module), (other, twin) in zip(
        saved.named_modules(), loaded.named_modules(), strict=True
    ):
        assert name == other
        assert module.training == twin.training, name
    assert calls_of(saved.graph) == calls_of(loaded.graph)
    for tensor, copied in zip(tensors_of(saved), tensors_of(loaded), strict=True):
        assert same_bits(tensor, copied)
        assert tensor.stride() == copied.stride()
    if inputs is not None:
        expected = outputs(copy.deepcopy(saved), inputs)
        actual = outputs(copy.deepcopy(loaded), inputs)
        assert len(expected) == len(actual)
        assert all(map(same_bits, expected, actual))


def prune(model: nn.Module, inputs: Inputs, amount: float = 0.5) -> PrunedModule:
    """Prune by magnitude, without checks; a model in training mode, too."""
    model = copy.deepcopy(model)
    graph = uo.trace(model, inputs)
    uo.apply_masks(model, graph, uo.choose_masks(model, graph, amount, side="both"))
    return uo.materialize(model, uo.solve(graph, uo.masks_of(model, graph)))


def round_trip(
    pruned: PrunedModule, definition: nn.Module, path: Path, inputs: Inputs | None = None
) -> PrunedModule:
    """Save, load, compare; and save and load what was loaded."""
    uo.save(pruned, path)
    loaded = uo.load(definition, path)
    assert_same(pruned, loaded, inputs)
    assert loaded.solution == pruned.solution
    assert loaded.origin == pruned.origin
    assert storages(loaded).isdisjoint(storages(definition))
    again = path.with_name("again.safetensors")
    uo.save(loaded, again)
    one, two = unpack(path.read_bytes()), unpack(again.read_bytes())
    assert (one.solution, one.manifest) == (two.solution, two.manifest)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(same_bits(one.tensors[name], two.tensors[name]) for name in one.tensors)
    return loaded


class Exported(nn.Module):
    """FX does not capture what is modified through views; torch.export's program has constants."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.readers = nn.ModuleList(nn.Conv2d(12, 6, 1) for _ in range(3))
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Any:
        x = x.clone()
        x.view(x.shape).mul_(1)
        x = self.norm(self.stem(x)).relu() * torch.tensor([0.5], dtype=x.dtype)
        y = self.readers[0](x)
        for reader in self.readers[1:]:
            y = y + reader(x)
        return self.drop(y) + torch.arange(6, dtype=x.dtype).view(1, -1, 1, 1)
