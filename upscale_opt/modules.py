"""The few modules that a pruned model has and its original lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

Placement = tuple[int, int] | list[int] | None
"""Where a summand goes: everywhere (``None``), at (start, length), or at listed indices."""


class Gather(nn.Module):
    """Copies the elements ``indices`` along axis ``dim``."""

    indices: torch.Tensor

    def __init__(self, indices: Sequence[int], dim: int, device: torch.device) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("indices", torch.tensor(indices, device=device), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` with only those elements along the axis, in that order."""
        if isinstance(x, fx.Proxy):  # traced again: then the indices shall be part of the program
            chosen = self._buffers["indices"]
            assert chosen is not None
            everything = [slice(None)] * self.dim
            place = (*everything, chosen.tolist())
            return x[place]
        return x.index_select(self.dim, self.indices)

    def extra_repr(self) -> str:
        """The number of elements copied."""
        return f"{len(self.indices)} along dim {self.dim}"


class PlacedSum(nn.Module):
    """Sums tensors of which some cover only a part of the result's channels.

    Args:
        placements: one per summand.
        size: the result's size along ``dim``.
        dim: the channel axis.
        rank: the number of axes. Known beforehand, so that :mod:`torch.fx` can trace the sum.
        device: where the indices live.
    """

    def __init__(
        self, placements: Sequence[Placement], size: int, dim: int, rank: int, device: torch.device
    ) -> None:
        super().__init__()
        self.size, self.dim, self.rank = size, dim, rank
        self.slices = [p if isinstance(p, tuple) else None for p in placements]
        self.whole = [p is None for p in placements]
        for number, placement in enumerate(placements):
            if isinstance(placement, list):
                indices = torch.tensor(placement, device=device)
                self.register_buffer(f"indices_{number}", indices, persistent=False)

    def forward(self, *summands: torch.Tensor) -> torch.Tensor:
        """The sum, with zeros where a summand has no channels."""
        whole = [x for x, everywhere in zip(summands, self.whole, strict=True) if everywhere]
        if whole:
            total = whole[0].clone() if len(whole) == 1 else whole[0] + whole[1]
            for x in whole[2:]:
                total = total + x
        else:
            first = summands[0]
            shape = [self.size if a == self.dim else first.size(a) for a in range(self.rank)]
            total = first.new_zeros(shape)
        for number, x in enumerate(summands):
            if self.whole[number]:
                continue
            place = self.slices[number]
            if place is not None and isinstance(total, fx.Proxy):
                total = self._add_traced(total, x, *place)
            elif place is not None:
                total.narrow(self.dim, *place).add_(x)
            else:
                total = total.index_add(self.dim, getattr(self, f"indices_{number}"), x)
        return total

    def _add_traced(self, total: torch.Tensor, x: torch.Tensor, start: int, length: int) -> Any:
        """The same while :mod:`torch.fx` traces, which cannot modify a tensor through a view."""
        end = start + length
        parts = [total.narrow(self.dim, start, length) + x]
        if start > 0:
            parts.insert(0, total.narrow(self.dim, 0, start))
        if end < self.size:
            parts.append(total.narrow(self.dim, end, self.size - end))
        return torch.cat(parts, dim=self.dim)

    def extra_repr(self) -> str:
        """What is placed where."""
        places = [
            "all" if everywhere else "indices" if place is None else f"{place[0]}+{place[1]}"
            for place, everywhere in zip(self.slices, self.whole, strict=True)
        ]
        return f"{', '.join(places)}; {self.size} along dim {self.dim}"


def fit_sizes(module: nn.Module, groups: int | None = None) -> None:
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


Wanted = tuple[int | str | None, ...] | bool | int | float | str | None
"""What an input must be: a tensor of sizes (those of one name are equal), or a value."""


def require_inputs(inputs: Sequence[Any], names: Sequence[str], wanted: Sequence[Wanted]) -> Any:
    """Refuse inputs that a program by :mod:`torch.export` was not captured for.

    Args:
        inputs: the inputs.
        names: their names.
        wanted: for a tensor its sizes, where ``None`` is any and a name is one that other axes of
            that name have, too; for anything else the value.

    Raises:
        ValueError: naming the first input that differs, and the way out.
    """
    proxies = [x for x in inputs if isinstance(x, fx.Proxy)]
    if proxies:  # traced again: then it shall be part of the program
        arguments = (tuple(inputs), tuple(names), tuple(wanted))
        return proxies[0].tracer.create_proxy("call_function", require_inputs, arguments, {})
    known: dict[str, tuple[Any, str]] = {}
    for x, name, want in zip(inputs, names, wanted, strict=True):
        if not isinstance(want, tuple):
            if x is not want and (isinstance(x, torch.Tensor) or x != want):
                what = "a tensor" if isinstance(x, torch.Tensor) else repr(x)
                raise _refusal(f"input {name!r} is {what}", repr(want), "with this value")
            continue
        if not isinstance(x, torch.Tensor):
            raise _refusal(f"input {name!r} is {x!r}", "a tensor", "with this value")
        if x.ndim != len(want):
            raise _refusal(f"input {name!r} has {x.ndim} axes", str(len(want)))
        for axis, size in enumerate(want):
            given = x.shape[axis]
            what = f"input {name!r} has size {given} along axis {axis}"
            if isinstance(size, str):
                same, where = known.setdefault(size, (given, name))
                if given != same:
                    raise _refusal(what, f"that of {where!r}, {same},")
            elif size is not None and given != size:
                raise _refusal(what, str(size), _TWO if axis == 0 and size == 1 else _SIZES)
    return None


_SIZES = "with inputs of these sizes"
_TWO = f"{_SIZES}, or with a batch of two or more for a model that takes any batch"


def _refusal(what: str, captured: str, trace: str = _SIZES) -> ValueError:
    return ValueError(
        f"{what}, but torch.export captured this model for {captured} alone; "
        f"trace the model {trace}"
    )


fx.node.has_side_effect(require_inputs)
