"""Masks that need no graph, so that every version of this package is given the same ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from upscale_opt.tracing.examples import Inputs, as_call

_TINY = 1e-4
"""A weight in the place of those that are zero by chance: only masks shall make zeros."""


@dataclass
class Survey:
    """Notes of one run of a network.

    Attributes:
        used: the parameters that it uses. (In evaluation mode, networks with auxiliary classifiers
            do not use these, and exports do not have them.)
        first: the layers that read the network's input.
        last: the layers that write its output.
        norms: by layer, the batch norms directly behind it.
    """

    used: set[str] = field(default_factory=set)
    first: set[str] = field(default_factory=set)
    last: set[str] = field(default_factory=set)
    norms: dict[str, list[str]] = field(default_factory=dict)


def survey(model: nn.Module, inputs: Inputs) -> Survey:
    """Run ``model`` once and look at what happens. Weights that are zero become tiny.

    Args:
        model: the network.
        inputs: what it is called with.
    """
    with torch.no_grad():
        for _, weight, _ in weights(model):
            weight.masked_fill_(weight == 0, _TINY)
    found = Survey()
    writers: dict[int, tuple[str, weakref.ref[Tensor]]] = {}
    own = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]

    def writer(tensor: object) -> str | None:
        name, alive = writers.get(id(tensor), ("", lambda: None))
        return name if isinstance(tensor, Tensor) and alive() is tensor else None

    def watching(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            source = args[0] if args else None
            if isinstance(module, _NormBase):
                layer = writer(source)
                if layer is not None:
                    found.norms.setdefault(layer, []).append(name)
                return
            if any(source is tensor for tensor in own):
                found.first.add(name)
            if isinstance(result, Tensor):
                writers[id(result)] = name, weakref.ref(result)

        return watch

    handles = [
        module.register_forward_hook(watching(name))
        for name, module in model.named_modules()
        if isinstance(module, (_NormBase, _ConvNd, nn.Linear))
    ]
    try:
        output, used = run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    ids = {id(parameter) for parameter in used}
    found.used = {name for name, parameter in model.named_parameters() if id(parameter) in ids}
    found.last = {name for name in map(writer, pytree.tree_leaves(output)) if name is not None}
    return found


def mask(model: nn.Module, side: str, amount: float, seen: Survey, constants: bool = False) -> None:
    """Zero, in place, the slices of least L2 norm of every weight.

    On the input side a slice is an index of the weight tensor, so in a convolution with groups it
    is one channel of every group. On the output side it is a row, equally many in every group; its
    bias is zeroed with it, and its scale and shift in a batch norm directly behind: else it would
    be a constant, and could not go. The network's own inputs and outputs are left alone. With both
    sides, norms are those of the whole weight, before any masking.

    Args:
        model: the network, or a copy of it.
        side: ``"input"``, ``"output"`` or ``"both"``.
        amount: the share of slices, rounded down; so an axis of one is never masked.
        seen: what a run of the network showed.
        constants: leave biases and batch norms as they are, so that rows dropped are constants.
    """
    with torch.no_grad():
        for name, weight, (out_axis, in_axis) in weights(model):
            path, _, own_name = name.rpartition(".")
            if name not in seen.used:
                continue
            module = model.get_submodule(path)
            columns = rows = torch.zeros(0, dtype=torch.long)
            if side != "output" and path not in seen.first:
                columns = _least(weight, in_axis, 1, amount)
            if side != "input" and path not in seen.last:
                groups = module.groups if isinstance(module, _ConvNd) else 1
                even = groups < weight.shape[out_axis]  # else every channel is a group
                rows = _least(weight, out_axis, groups if even else 1, amount)
                behind = () if constants else _constants(model, path, own_name, seen)
                for values in behind:
                    if values.numel() == weight.shape[out_axis]:
                        values.index_fill_(0, rows, 0)
            weight.index_fill_(in_axis, columns, 0)
            weight.index_fill_(out_axis, rows, 0)


def run(model: nn.Module, inputs: Inputs) -> tuple[Any, list[nn.Parameter]]:
    """Call ``model``.

    Returns:
        Its outputs, and the parameters that it used.
    """
    args, kwargs = as_call(inputs)
    with torch.no_grad(), torch.random.fork_rng([]), _Used() as used:
        output = model(*args, **kwargs)
    return output, [parameter for parameter in model.parameters() if id(parameter) in used.ids]


def zeros(parameters: list[nn.Parameter]) -> int:
    """The number of zeros in the weights among ``parameters``; biases are none."""
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    return sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)


def weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, tuple[int, int]]]:
    """Name, weight, and its output and input axis; each weight once.

    Those of convolutions and linear layers; the projections of PyTorch's attention, of which the
    one for queries, keys and values is one matrix; and what modules that are not PyTorch's own
    call a weight, which is of shape (in, out) in the ``Conv1D`` of transformers.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        layer = isinstance(module, (_ConvNd, nn.Linear))
        plain = not type(module).__module__.startswith("torch.nn.")
        turned = isinstance(module, _ConvNd) and module.transposed
        axes = (1, 0) if turned or _is_in_by_out(module) else (0, 1)
        for name, weight in module.named_parameters(path, recurse=False):
            projection = isinstance(module, nn.MultiheadAttention) and name.endswith("proj_weight")
            known = projection or ((layer or plain) and name.endswith("weight"))
            if known and weight.dim() >= 2 and id(weight) not in seen:
                seen.add(id(weight))
                yield name, weight, axes


def _is_in_by_out(module: nn.Module) -> bool:
    """Tell whether a module is a ``Conv1D`` of transformers, by the sizes that it keeps."""
    weight = module._parameters.get("weight")
    sizes = vars(module).get("nx"), vars(module).get("nf")
    return type(module).__name__ == "Conv1D" and weight is not None and weight.shape == sizes


def _least(weight: Tensor, axis: int, groups: int, amount: float) -> Tensor:
    """The slices of least norm, equally many in each of the consecutive groups of slices."""
    norms: Tensor = weight.detach().transpose(0, axis).flatten(1).double().norm(dim=1)
    if len(norms) % groups:  # of a transposed convolution, an index is a channel of every group
        groups = 1
    by_group = norms.view(groups, -1)
    chosen: Tensor = by_group.argsort(dim=1, stable=True)[:, : int(amount * by_group.shape[1])]
    starts: Tensor = torch.arange(groups)[:, None] * by_group.shape[1]
    return (starts + chosen).flatten()


def _constants(model: nn.Module, path: str, weight: str, seen: Survey) -> Iterator[Tensor]:
    """Yield what else must be zero for a row of a weight to write nothing."""
    bias = model.get_submodule(path)._parameters.get(weight.removesuffix("weight") + "bias")
    if bias is not None:
        yield bias
    for norm in seen.norms.get(path, ()):
        for values in model.get_submodule(norm)._parameters.values():
            if values is not None:
                yield values


class _Used(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which parameters operations are given, by ``id``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        leaves = pytree.tree_leaves((args, kwargs))
        self.ids.update(id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter))
        return func(*args, **(kwargs or {}))
