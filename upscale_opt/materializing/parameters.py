"""The modules and tensors of a pruned model: copies of the original's, smaller where they must."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from upscale_opt.errors import MaterializeError
from upscale_opt.masking.slices import sliced
from upscale_opt.materializing.names import new_name
from upscale_opt.materializing.state import State
from upscale_opt.materializing.used import registered
from upscale_opt.tracing.claims import resize
from upscale_opt.tracing.copying import copied


def fill_root(state: State) -> None:
    """Copy the modules and tensors that the new program names into its root."""
    memo = _slices(state)
    model, captured, root = state.model, state.program.captured, state.root
    transient = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for node in state.new.nodes:
        target = str(node.target)
        if node.op == "call_module" and target in captured.modules:
            try:
                module = copied(captured.modules[target], memo)
            except RuntimeError as error:
                raise MaterializeError(f"module {target!r} cannot be copied: {error}") from error
            _fit_sizes(module, state.groups.get(target))
            if target in state.sizes:
                resize(module, *state.sizes[target])
            _attach(root, _renamed(state, node, target), module)
        elif node.op == "get_attr":
            value = copied(captured.tensors[target], memo)
            _attach(root, _renamed(state, node, target), value, persistent=target not in transient)


def _renamed(state: State, node: fx.Node, target: str) -> str:
    """The name in the pruned model of what a call names, which it does by that from now on."""
    known = {old: new for new, old in state.renamed.items()}
    if target not in known:
        names = new_name(state.model, target, state.root)
        state.renamed.update({new: old for new, old in names.items() if new != old})
        known[target] = list(names)[-1]
    node.target = known[target]
    return known[target]


def _slices(state: State) -> dict[int, Any]:
    """Copies of what changes, smaller: a memo that makes deep copies use these."""
    memo: dict[int, Any] = {}
    own = dict(registered(state.model))
    for name, by_axis in state.solution.parameters.items():
        tensor = own[name]
        data = sliced(tensor.detach(), by_axis, state.graph.grouped.get(name, 1))
        form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(data.ndim)
        if form is not None and tensor.is_contiguous(memory_format=form):
            data = data.contiguous(memory_format=form)
        memo[id(tensor)] = (
            nn.Parameter(data.clone(), requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else data.clone()
        )
    for name, indices in state.narrowed.items():
        tensor = own[name]
        data = tensor.detach()[..., list(indices)]
        learns = tensor.requires_grad
        memo[id(tensor)] = nn.Parameter(data, learns) if isinstance(tensor, nn.Parameter) else data
    return memo


def _fit_sizes(module: nn.Module, groups: int | None = None) -> None:
    """Make a module's size attributes agree with its (sliced) parameters.

    Args:
        module: of any class; those of torch are understood.
        groups: into how many groups the channels of a grouped or depthwise convolution fall; how
            many channels a norm has.
    """
    weight = module._parameters.get("weight")  # never run a parametrization
    if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, torch.Tensor):
        if module.groups > 1 and groups is not None:
            module.groups = groups
        first, second = weight.shape[0], weight.shape[1] * module.groups
        if module.transposed:
            module.in_channels, module.out_channels = first, second
        else:
            module.in_channels, module.out_channels = second, first
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        for tensor in (module.weight, module.running_mean):
            if isinstance(tensor, torch.Tensor):
                module.num_features = len(tensor)
                return
        if groups is not None:
            module.num_features = groups
    elif isinstance(module, nn.LayerNorm):
        pass  # all channels stay
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels and groups is not None:
            module.num_groups = module.num_channels = groups
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def _attach(root: nn.Module, target: str, value: Any, persistent: bool = True) -> None:
    """Set ``value`` as attribute ``target``, with plain modules on the way to it."""
    *path, last = target.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value, persistent)
