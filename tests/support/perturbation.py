"""Check what a channel graph claims of each call, by running the call on real data.

Every claim of the graph says what would happen with other inputs or other parameters: a ReLU is
channelwise if another channel 3 moves nothing but channel 3 of its result. So each call is run
again and again, alone, on what really reaches it: with single channels replaced or zeroed, with
channels and parameters in another order, with slices of its weight zeroed. Nothing here knows what
any call does, and nothing is shared with the rules that made the claims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from replayed_program import NOTHING, Replay, Values
from torch import Tensor, fx, nn

from upscale_opt.ir import graph as ir
from upscale_opt.tracing.program import Program


class FalseClaim(AssertionError):  # noqa: N818 - reads as what it is
    """The graph says something of a call that is not so."""


def check_claims(
    model: nn.Module, program: Program, args: tuple[Any, ...], graph: ir.ChannelGraph | None = None
) -> set[str]:
    """Check all that the graph of ``program`` claims of its calls.

    Args:
        model: the model that ``program`` captured, in float64; nothing in it should be zero.
        program: its calls.
        args: positional arguments to run it on, random.
        graph: to be checked instead of the program's own graph.

    Returns:
        The names of the operations of which something was claimed.

    Raises:
        FalseClaim: naming the operation and the claim.
    """
    graph = program.graph if graph is None else graph
    replay = Replay(model, program, args, graph)
    calls = {name: node for node, names in program.operations.items() for name in names}
    _check_order_kept(graph)
    checked = set()
    for op in graph.operations:
        check = _CHECKS.get(op.kind)
        if check is not None:
            check(_Site(op, graph, replay, calls.get(op.name)))
            checked.add(op.name)
    return checked


def _check_order_kept(graph: ir.ChannelGraph) -> None:
    """What is read as it is, and what comes from outside or goes there, keeps its order."""
    fixed = {c for space in graph.spaces if space.fixed is not None for c in space.channels}
    for op in graph.operations:
        around = op.kind in ("opaque", "input", "output")
        for name in (*op.whole, *((*op.inputs, *op.outputs) if around else ())):
            if not fixed.issuperset(graph.tensors[name].channels):
                raise FalseClaim(f"{op.name} ({op.kind}): the order of {name} is said to be free")


# Single operations.


class _Site:
    """One operation on real data, and how to run it on other data.

    Attributes:
        op: the operation.
        inputs: what its inputs hold, by name.
        state: what the parameters hold that it names.
        output: the name of its result.
        result: what it computes from them.
        random: it draws random numbers, so its result is not a function of the data.
    """

    def __init__(
        self, op: Any, graph: ir.ChannelGraph, replay: Replay, node: fx.Node | None
    ) -> None:
        self.op = op
        self._graph = graph
        self._replay = replay
        self._node = node
        self.inputs = {name: replay.tensors[name] for name in op.inputs}
        self.state = {name: replay.state[name] for name in ir.parameters_of(op)}
        self.output: str = op.outputs[0]
        self.result = self.run()
        self.random = any(not same(self.result, self.run(seed=seed)) for seed in (1, 2, 3))
        for name, value in (*self.inputs.items(), (self.output, self.result)):
            shape = graph.tensors[name].shape
            self.claim(shape == tuple(value.shape), f"{name} is of shape {shape}")

    def run(self, tensors: Values = NOTHING, state: Values = NOTHING, seed: int = 0) -> Tensor:
        """The result with other inputs and parameters, but the same random numbers."""
        return self._replay.result(self._node, self.output, tensors, state, seed)

    def claim(self, holds: bool, claim: str) -> None:
        """Raise FalseClaim, unless ``claim`` holds."""
        if not holds:
            raise FalseClaim(f"{self.op.name} ({self.op.kind}): {claim}")

    def channels(self, name: str) -> range:
        """The entries of a tensor's channel sequence."""
        return range(len(self._graph.tensors[name].channels))

    def axis(self, name: str) -> int:
        """The channel axis of a tensor."""
        axis = self._graph.tensors[name].axis
        assert axis is not None
        return axis

    def elements(self, name: str, channels: Sequence[int]) -> list[int]:
        """Where along the channel axis of a tensor some of its channels lie."""
        features = self._graph.tensors[name].features
        return [channel * features + k for channel in channels for k in range(features)]

    def noise(self, name: str, channels: Sequence[int]) -> Tensor:
        """An input with other data in some channels."""
        value = self.inputs[name]
        return _filled(value, self.axis(name), self.elements(name, channels), _noise(value))

    def zeroed(self, name: str, channels: Sequence[int]) -> Tensor:
        """An input with zeros in some channels."""
        value = self.inputs[name]
        zeros = torch.zeros_like(value)
        return _filled(value, self.axis(name), self.elements(name, channels), zeros)

    def reordered(self, name: str, value: Tensor, order: Sequence[int]) -> Tensor:
        """The data of a tensor with its channels in another order."""
        return _taken(value, self.axis(name), self.elements(name, order))

    def of(self, value: Tensor, channels: Sequence[int]) -> Tensor:
        """Some channels of a result."""
        return _taken(value, self.axis(self.output), self.elements(self.output, channels))

    def others(self, channel: int) -> list[int]:
        """All channels of the result but one."""
        return [other for other in self.channels(self.output) if other != channel]

    def moves_only(self, channel: int, changed: Tensor, what: str) -> None:
        """Claim that ``changed`` differs from the result in one channel at most."""
        rest = self.others(channel)
        self.claim(
            same(self.of(changed, rest), self.of(self.result, rest)),
            f"{what} moves that channel of the result alone",
        )

    def is_zero(self, channel: int, changed: Tensor, what: str) -> None:
        """Claim that a channel of ``changed`` is zero."""
        if not all(bool(torch.isfinite(value).all()) for value in self.inputs.values()):
            return  # zero times infinity is nothing in particular
        part = self.of(changed, [channel])
        self.claim(same(part, torch.zeros_like(part)), f"channel {channel} is zero if {what}")


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal, rounding aside."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not (left.is_floating_point() or left.is_complex()):
        return torch.equal(left, right)
    if not left.numel():
        return True
    finite = left[left.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    allowed = 1e4 * torch.finfo(left.dtype).eps
    return torch.allclose(left, right, rtol=allowed, atol=allowed * scale, equal_nan=True)


def _noise(value: Tensor) -> Tensor:
    """Other data of the same kind, far away."""
    if value.dtype == torch.bool:
        return ~value
    if not (value.is_floating_point() or value.is_complex()):
        return value + torch.randint_like(value, 1, 4)
    return 3 * torch.randn_like(value) + 1


def _changed(parameter: Tensor) -> Tensor:
    """Other values for a parameter; what is positive, such as a variance, remains so."""
    return _noise(parameter) if not parameter.is_floating_point() else 1.7 * parameter + 0.3


def _filled(value: Tensor, axis: int, indices: Sequence[int], source: Tensor) -> Tensor:
    """A copy with the elements ``indices`` along ``axis`` from another tensor of its shape."""
    result = value.clone()
    index = torch.tensor(indices, dtype=torch.long)
    return result.index_copy_(axis, index, source.index_select(axis, index))


def _taken(value: Tensor, axis: int, indices: Sequence[int]) -> Tensor:
    """The elements ``indices`` along ``axis``; strides as they are where possible."""
    taken = value.index_select(axis, torch.tensor(indices, dtype=torch.long))
    return torch.empty_like(value).copy_(taken) if taken.shape == value.shape else taken


def _orders(count: int, groups: int = 1) -> list[list[int]]:
    """Permutations of ``range(count)`` that keep each of ``groups`` runs together."""
    size = count // groups
    starts = range(0, size * groups, max(size, 1))
    rotated = [start + (i + 1) % size for start in starts for i in range(size)]
    return [rotated, [start + i for start in starts for i in torch.randperm(size).tolist()]]


# What the kinds of operations claim.


def _channelwise(site: _Site) -> None:
    """Each channel depends on the same channel of the input, and parameters' entries for it."""
    (source,) = site.op.inputs
    count = len(site.channels(source))
    site.claim(len(site.channels(site.output)) == count, "the result has the input's channels")
    for channel in range(count):
        changed = site.run({source: site.noise(source, [channel])})
        site.moves_only(channel, changed, f"changing channel {channel} of {source}")
        for use in site.op.parameters:
            changed = site.run(state={use.name: _entry(site, use, channel, _changed)})
            site.moves_only(channel, changed, f"changing entry {channel} of {use.name}")
    _same_in_any_order(site)
    if site.op.keeps_zero:
        for channel in range(count):
            _zeros_kept(site, source, channel)


def _entry(
    site: _Site, use: ir.PerChannel, channel: int, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """A parameter changed in the entries of one channel."""
    value = site.state[use.name]
    return _filled(value, use.axis, site.elements(site.output, [channel]), change(value))


def _same_in_any_order(site: _Site, groups: int = 1, reduces: bool = False) -> None:
    """Other orders of the inputs' channels, and of parameters, are orders of the result's.

    Or make no difference, if it ``reduces`` the channels.
    """
    sized = site.op.inputs[0] if reduces else site.output
    for order in _orders(len(site.channels(sized)), groups):
        inputs = {name: site.reordered(name, value, order) for name, value in site.inputs.items()}
        state = {
            use.name: _taken(site.state[use.name], use.axis, site.elements(sized, order))
            for use in getattr(site.op, "parameters", ())
        }
        want = site.result if reduces else site.reordered(site.output, site.result, order)
        holds = site.random or same(site.run(inputs, state), want)
        site.claim(holds, f"channels may be in the order {order}")


def _zeros_kept(site: _Site, source: str, channel: int) -> None:
    """Where zeros come from: from zeros in the input, or from a scale that is zero."""
    uses = site.op.parameters
    unshifted = {
        use.name: _entry(site, use, channel, torch.zeros_like)
        for use in uses
        if use.role == "shift"
    }
    centred = {
        use.name: _entry(site, use, channel, torch.zeros_like) for use in uses if use.role == "mean"
    }
    zeroed = site.run({source: site.zeroed(source, [channel])}, {**unshifted, **centred})
    site.is_zero(channel, zeroed, "the input's is, and shift and mean are")
    for use in uses:
        if use.role == "scale":
            scaled = {use.name: _entry(site, use, channel, torch.zeros_like)}
            site.is_zero(channel, site.run(state={**unshifted, **scaled}), f"{use.name} is, there")


def _symmetric(site: _Site) -> None:
    """The order within each group is free; the result has the input's channels, or is the same."""
    (source,) = site.op.inputs
    count, groups = len(site.channels(source)), site.op.groups
    site.claim(count % groups == 0, f"there are {groups} groups of one size")
    _same_in_any_order(site, groups, site.op.reduces)
    if site.op.reduces:
        return
    size = count // groups
    for group in range(groups):
        inside = range(group * size, (group + 1) * size)
        rest = [channel for channel in range(count) if channel not in inside]
        changed = site.run({source: site.noise(source, inside)})
        site.claim(
            same(site.of(changed, rest), site.of(site.result, rest)),
            f"changing group {group} of {source} moves that group alone",
        )
    if any(use.role == "scale" for use in site.op.parameters):
        for channel in range(count):
            zeros = {
                use.name: _entry(site, use, channel, torch.zeros_like)
                for use in site.op.parameters
                if use.role in ("scale", "shift")
            }
            site.is_zero(channel, site.run(state=zeros), "its scale and shift are")


def _elementwise(site: _Site) -> None:
    """Each channel of the result depends on the same channel of the inputs."""
    names = list(site.inputs)
    channels = site.channels(site.output)
    for channel in channels:
        for name in names:
            changed = site.run({name: site.noise(name, [channel])})
            site.moves_only(channel, changed, f"changing channel {channel} of {name}")
        if site.op.zero_if == "all":
            zeroed = site.run({name: site.zeroed(name, [channel]) for name in names})
            site.is_zero(channel, zeroed, "all inputs are")
        elif site.op.zero_if == "any":
            for name in names:
                zeroed = site.run({name: site.zeroed(name, [channel])})
                site.is_zero(channel, zeroed, f"{name} is")
    _same_in_any_order(site)
    if site.op.additive:
        terms = [site.inputs[name] for name in site.op.inputs]
        total = terms[0].clone()
        for term in terms[1:]:
            site.claim(term.shape == total.shape, "its terms are of one shape")
            total = total + term
        site.claim(same(site.result, total), "it is the sum")


def _concat(site: _Site) -> None:
    """The inputs one after the other, or some of their channels in another sequence."""
    axis = site.axis(site.output)
    sizes = [site.inputs[name].shape[site.axis(name)] for name in site.op.inputs]
    positions = site.op.positions
    for inputs in (site.inputs, {n: site.noise(n, site.channels(n)) for n in site.inputs}):
        parts = [inputs[name] for name in site.op.inputs]
        site.claim(sum(sizes) > 0 and all(site.axis(n) == axis for n in inputs), "it joins them")
        joined = torch.cat(parts, axis)
        if positions is not None:
            joined = _taken(joined, axis, site.elements(site.output, positions))
        site.claim(same(site.run(inputs), joined), "it joins its inputs in this sequence")


def _select(site: _Site) -> None:
    """Some of the input's channels, as they are."""
    (source,) = site.op.inputs
    indices = site.elements(source, site.op.positions)
    for value in (site.inputs[source], site.noise(source, site.channels(source))):
        want = _taken(value, site.axis(source), indices)
        site.claim(site.axis(site.output) == site.axis(source), "it leaves the axes alone")
        site.claim(same(site.run({source: value}), want), "it takes these channels")


def _constant(site: _Site) -> None:
    """Each channel of the result is made of one slice of the parameter."""
    parameter: str = site.op.parameter
    axis: int | None = site.op.axis
    if axis is None:
        site.claim(not site.channels(site.output), "it has no channels")
        return
    value = site.state[parameter]

    def of(channel: int, source: Tensor) -> Values:
        return {parameter: _filled(value, axis, site.elements(site.output, [channel]), source)}

    for channel in site.channels(site.output):
        changed = site.run(state=of(channel, _changed(value)))
        site.moves_only(channel, changed, f"changing slice {channel} of {parameter}")
        site.is_zero(channel, site.run(state=of(channel, torch.zeros_like(value))), "its slice is")
    for order in _orders(len(site.channels(site.output))):
        taken = _taken(value, axis, site.elements(site.output, order))
        want = site.reordered(site.output, site.result, order)
        site.claim(same(site.run(state={parameter: taken}), want), f"the order may be {order}")


# Layers.


def _layer(site: _Site) -> None:
    """Columns read the input's channels, rows write the result's, each group for itself."""
    op, weight = site.op, site.state[site.op.weight]
    source = op.inputs[0] if op.inputs else None
    for axis, name in ((op.in_axis, source), (op.out_axis, site.output)):
        if name is not None:
            size = len(site.elements(name, site.channels(name)))
            slices = weight.shape[axis] * (1 if axis == 0 else op.groups)
            site.claim(size == slices, f"axis {axis} of {op.weight} has one slice per channel")
    for channel in site.channels(site.output):
        row = _slices(site, op.out_axis, site.output, channel)
        rest = {} if op.bias is None else {op.bias: _bias(site, channel, _changed)}
        changed = site.run(state={op.weight: torch.where(row, _changed(weight), weight), **rest})
        site.moves_only(channel, changed, f"changing row {channel} of {op.weight} (and its bias)")
        rest = {} if op.bias is None else {op.bias: _bias(site, channel, torch.zeros_like)}
        zeroed = site.run(state={op.weight: weight.masked_fill(row, 0), **rest})
        site.is_zero(channel, zeroed, "its row is, and its bias")
        if source is not None:
            nothing = {source: torch.zeros_like(site.inputs[source])}
            site.is_zero(channel, site.run(nothing, rest), "all inputs are, and its bias")
    if source is not None:
        for channel in site.channels(source):
            _column(site, source, channel)
    _layer_in_any_order(site, source)


def _column(site: _Site, source: str, channel: int) -> None:
    """What a channel of the input does, it does through its column, in its group."""
    op, weight = site.op, site.state[site.op.weight]
    column = _slices(site, op.in_axis, source, channel)
    without = {op.weight: weight.masked_fill(column, 0)}
    noisy = {source: site.noise(source, [channel])}
    ignored = site.run(state=without)
    what = f"column {channel} of {op.weight}"
    site.claim(same(site.run(noisy, without), ignored), f"channel {channel} matters by {what} only")
    zero = {source: site.zeroed(source, [channel])}
    site.claim(
        same(site.run(zero), ignored), f"{what} does not matter if channel {channel} is zero"
    )
    size = len(site.channels(source)) // op.groups
    own = range(len(site.channels(site.output)) // op.groups)
    first = channel // size * len(own)
    rest = [c for c in site.channels(site.output) if c - first not in own]
    site.claim(
        same(site.of(site.run(noisy), rest), site.of(site.result, rest)),
        f"channel {channel} is read in group {channel // size} alone",
    )


def _layer_in_any_order(site: _Site, source: str | None) -> None:
    """Rows and columns may be reordered, within their groups, together with the channels."""
    op, weight = site.op, site.state[site.op.weight]
    count = 0 if source is None else len(site.channels(source))
    orders = _orders(len(site.channels(site.output)), op.groups)
    for rows, columns in zip(orders, reversed(_orders(count, op.groups)), strict=True):
        inputs: dict[str, Tensor] = {}
        indices = site.elements(site.output, rows)
        moved = _reordered_weight(weight, op.out_axis, indices, op.groups)
        if source is not None:
            inputs[source] = site.reordered(source, site.inputs[source], columns)
            indices = site.elements(source, columns)
            moved = _reordered_weight(moved, op.in_axis, indices, op.groups)
        state = {op.weight: moved}
        if op.bias is not None:
            state[op.bias] = _taken(site.state[op.bias], 0, site.elements(site.output, rows))
        want = site.reordered(site.output, site.result, rows)
        site.claim(same(site.run(inputs, state), want), f"its rows may be in the order {rows}")


def _reordered_weight(weight: Tensor, axis: int, indices: list[int], groups: int) -> Tensor:
    """A weight with the slices along one axis in another order, each group's in its own.

    Axis 0 runs over all groups. Along any other, a slice belongs to one channel of every group;
    so there the groups, runs along axis 0, are reordered one by one.
    """
    if axis == 0:
        return _taken(weight, 0, indices)
    size = len(indices) // groups
    parts = [
        _taken(part, axis, [i - group * size for i in indices[group * size : (group + 1) * size]])
        for group, part in enumerate(weight.chunk(groups))
    ]
    return torch.cat(parts)


def _slices(site: _Site, axis: int, name: str, channel: int) -> Tensor:
    """Which elements of a layer's weight belong to a channel of its input or its result."""
    op, weight = site.op, site.state[site.op.weight]
    mask = torch.zeros_like(weight, dtype=torch.bool)
    indices = site.elements(name, [channel])
    if axis == 0 or op.groups == 1:
        return mask.index_fill_(axis, torch.tensor(indices), True)
    size = len(site.elements(name, site.channels(name))) // op.groups
    rows = weight.shape[0] // op.groups
    group = indices[0] // size
    inside = torch.tensor([index - group * size for index in indices])
    mask.narrow(0, group * rows, rows).index_fill_(axis, inside, True)
    return mask


def _bias(site: _Site, channel: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    bias = site.state[site.op.bias]
    return _filled(bias, 0, site.elements(site.output, [channel]), change(bias))


_CHECKS: dict[str, Callable[[_Site], None]] = {
    "layer": _layer,
    "channelwise": _channelwise,
    "symmetric": _symmetric,
    "elementwise": _elementwise,
    "concat": _concat,
    "select": _select,
    "constant": _constant,
}
