"""The channel graph: which channels each tensor carries, and what every operation does to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from typing_extensions import Self

from upscale_opt.errors import SchemaError
from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.consistency import Run, check_consistency, find_runs
from upscale_opt.ir.ids import Ids


class Tensor(Record):
    """An activation.

    Attributes:
        shape: its sizes in the traced example.
        dtype: such as ``"float32"``.
        axis: the channel axis, or ``None`` if its elements are not structured by channels; such a
            tensor is always stored whole.
        channels: the channel ids along the axis, in sequence; an id may occur more than once.
        features: how many consecutive elements along the axis belong to each entry of
            ``channels`` (49 behind the flattening of a 7 x 7 image).
    """

    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None
    channels: Ids = ()
    features: int = Field(default=1, ge=1)


class Space(Record):
    """Channels that every tensor holds only as a whole, and that are stored side by side.

    Attributes:
        channels: the ids, in their original sequence.
        fixed: why no other order is allowed; ``None`` if every order is.
    """

    channels: Ids
    fixed: str | None = None


class Twins(Record):
    """Channels that a concatenation made of others which it holds more than once.

    So that a reader may take one of them without the others. They are stored in the order of those
    that they were made of, and belong to the same spaces.

    Attributes:
        channels: their ids, which no space lists.
        of: the ids that they were made of, one for one, which spaces list.
    """

    channels: Ids
    of: Ids


class PerChannel(Record):
    """A parameter or buffer with one entry per element of the channel axis.

    Attributes:
        name: its name in the ``state_dict``.
        axis: the axis that runs along the channels.
        role: ``"scale"`` multiplies the channel (zero makes it zero), ``"shift"`` is added to it,
            ``"mean"`` is subtracted before scaling, ``"neutral"`` leaves zeros zero.
    """

    name: str
    axis: int = 0
    role: Literal["scale", "shift", "mean", "neutral"]


class _Operation(Record):
    """The fields that all operations have.

    Attributes:
        name: its name in the captured program.
        inputs: the tensors whose channels it treats as its kind says.
        whole: further tensors it reads, as they are and entirely.
        sizes: further tensors whose sizes it uses, though never that of the channel axis.
        outputs: the tensors it writes.
    """

    name: str
    inputs: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {"kind": getattr(self, "kind"), **data}  # noqa: B009 - every kind declares its own


class Input(_Operation):
    """A network input; its channels are given by the caller."""

    kind: Literal["input"] = "input"


class Layer(_Operation):
    """A producer and consumer: convolution, transposed convolution or linear layer.

    With several groups, the input's and the output's channels fall into as many runs of equal
    length, and each group of outputs reads its group of inputs alone. Along the weight's
    :attr:`short_axis` each slice stands for one channel of every group; masks and index lists for
    that axis count channels all the same, group after group.

    Attributes:
        weight: the weight's parameter name.
        in_axis: the weight's axis that reads the channels of ``inputs[0]``.
        out_axis: the weight's axis that writes the channels of ``outputs[0]``.
        bias: the bias's parameter name, if there is one.
        groups: into how many groups the channels fall. All must remain of one size.
    """

    kind: Literal["layer"] = "layer"
    weight: str
    in_axis: int
    out_axis: int
    bias: str | None = None
    groups: int = Field(default=1, ge=1)

    @property
    def short_axis(self) -> int | None:
        """The weight's axis that is as long as one group; the other one is always the first."""
        return None if self.groups == 1 else max(self.in_axis, self.out_axis)


class ChannelWise(_Operation):
    """Each output channel depends on the same input channel alone.

    Activations, pooling, batch norm, depthwise convolution, flattening, permuting axes …

    Attributes:
        keeps_zero: an all-zero channel stays zero, apart from what ``parameters`` add.
        parameters: what has one entry per channel.
    """

    kind: Literal["channelwise"] = "channelwise"
    keeps_zero: bool
    parameters: tuple[PerChannel, ...] = ()


class Symmetric(_Operation):
    """Every output channel depends on all input channels, in whatever order they come.

    Layer norm, group norm, softmax over channels, a mean over channels. Every channel must stay,
    zero or not, but the order is free.

    Attributes:
        reduces: the output has not the input's channels, but none, or others.
        parameters: what has one entry per channel.
        groups: into how many runs of equal length the channels fall, each treated for itself.
    """

    kind: Literal["symmetric"] = "symmetric"
    reduces: bool = False
    parameters: tuple[PerChannel, ...] = ()
    groups: int = Field(default=1, ge=1)


class Attention(_Operation):
    """Products of tensors whose channels fall into heads, each head for itself.

    Queries and keys (which have the same channels) are multiplied channel by channel, and the
    products summed over the channels of a head: a channel that is zero in either adds nothing.
    Values are averaged over tokens, channel by channel: the output has their channels, and is zero
    where they are. All heads must keep equally many channels, and every head some.

    Attributes:
        heads: into how many runs of equal length the channels fall.
        form: ``"whole"`` takes queries, keys and values; ``"scores"`` queries and keys only, and
            its output has no channels; ``"mix"`` values only, and the weights as they are.
    """

    kind: Literal["attention"] = "attention"
    heads: int = Field(ge=1)
    form: Literal["whole", "scores", "mix"] = "whole"

    @property
    def queries(self) -> tuple[str, ...]:
        """The tensors whose products are summed: queries and keys, or none."""
        return () if self.form == "mix" else self.inputs[:2]

    @property
    def values(self) -> tuple[str, ...]:
        """The tensor whose channels the output has, if any."""
        return () if self.form == "scores" else self.inputs[-1:]


class Elementwise(_Operation):
    """Several tensors with the same channels combined channel by channel.

    Attributes:
        zero_if: the output channel is zero if ``"all"`` inputs are zero there (sums), if
            ``"any"`` is (products), or ``"never"`` for certain.
        additive: it is the plain sum, so an input may leave out channels in which it is zero.
    """

    kind: Literal["elementwise"] = "elementwise"
    zero_if: Literal["all", "any", "never"]
    additive: bool = False


class Concat(_Operation):
    """The inputs' channels one after the other, or interleaved.

    Its result may hold twins in place of an input's channels (:class:`Twins`).

    Attributes:
        positions: which entries of the inputs' channels, one input after the other, the output's
            are, none of them twice; ``None``: all of them, in sequence.
    """

    kind: Literal["concat"] = "concat"
    positions: Ids | None = None


class Select(_Operation):
    """Some of the input's channels, in a sequence of its own: a slice, a chunk, a flip.

    Attributes:
        positions: which entries of the input's ``channels`` the output's are.
    """

    kind: Literal["select"] = "select"
    positions: Ids


class Constant(_Operation):
    """A parameter or buffer used as a tensor, perhaps looked up in (an embedding).

    Attributes:
        parameter: its name in the ``state_dict``.
        axis: the parameter's axis that runs along the output's channels, if any does.
    """

    kind: Literal["constant"] = "constant"
    parameter: str
    axis: int | None = None


class Opaque(_Operation):
    """Anything else: reads everything, in its order; what it writes is fixed.

    Attributes:
        reason: why it is not understood, or why it must stay.
    """

    kind: Literal["opaque"] = "opaque"
    reason: str


class Output(_Operation):
    """The network's outputs; every channel is needed, in its order."""

    kind: Literal["output"] = "output"


Operation = Annotated[
    Input
    | Layer
    | ChannelWise
    | Symmetric
    | Attention
    | Elementwise
    | Concat
    | Select
    | Constant
    | Opaque
    | Output,
    Field(discriminator="kind"),
]


class Example(Record):
    """One example input, as a tree: shapes instead of data.

    Attributes:
        kind: what stands here.
        shape: the sizes of a tensor.
        dtype: the dtype of a tensor, or that stands here itself.
        items: the members of a tuple, list or dict; the start, stop and step of a slice.
        keys: the keys of a dict.
        value: a plain value.
    """

    kind: Literal["tensor", "tuple", "list", "dict", "value", "dtype", "slice"]
    shape: tuple[int, ...] = ()
    dtype: str = ""
    items: tuple[Example, ...] = ()
    keys: tuple[str, ...] = ()
    value: bool | int | float | str | None = None


class ChannelGraph(Document):
    """A model's channels, without the model.

    Attributes:
        capture: how the model was captured, ``"fx"`` or ``"export"``.
        example: the inputs it was traced with; ``items`` are positional arguments, then the
            keyword arguments named by ``keys``.
        parameters: the shape of every parameter and buffer that an operation names.
        spaces: the channels, by what may be reordered.
        twins: further channels, each with the order of one that a space lists.
        tensors: every activation by name.
        operations: in the order of execution.
    """

    what: ClassVar[str] = "channel graph"

    capture: Literal["fx", "export"]
    example: Example
    parameters: dict[str, tuple[int, ...]]
    spaces: tuple[Space, ...]
    twins: tuple[Twins, ...] = ()
    tensors: dict[str, Tensor]
    operations: tuple[Operation, ...]

    def __repr__(self) -> str:
        channels = sum(len(space.channels) for space in self.spaces)
        opaque = sum(op.kind == "opaque" for op in self.operations)
        return (
            f"ChannelGraph({self.capture}, {len(self.operations):,} operations"
            + (f" ({opaque:,} opaque)" if opaque else "")
            + f", {len(self.tensors):,} tensors, {channels:,} channels in {len(self.spaces):,} "
            f"spaces, {len(self.parameters):,} parameters)"
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything but dtypes: equal for models with equal structure and inputs."""
        data = self.model_dump(mode="json")
        if not self.twins:
            del data["twins"]
        _strip_dtypes(data)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]

    @cached_property
    def masks_fingerprint(self) -> str:
        """A hash of all that masks refer to: equal for inputs of any size, and any tracer."""
        axes = maskable_axes(self)
        named = [[name, self.parameters[name], axes[name]] for name in sorted(axes)]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]

    @cached_property
    def originals(self) -> dict[int, int]:
        """For every twin, the channel that it was made of."""
        pairs = [pair for own in self.twins for pair in zip(own.channels, own.of, strict=True)]
        return dict(pairs)

    def original(self, channel: int) -> int:
        """The channel in whose place a twin is ordered; any other channel is its own."""
        return self.originals.get(channel, channel)

    def sequence(self, tensor: str) -> tuple[int, ...]:
        """The channels of ``tensor``, with those that twins were made of in place of them."""
        channels = self.tensors[tensor].channels
        if not self.originals or self.originals.keys().isdisjoint(channels):
            return channels
        return tuple(map(self.original, channels))

    def repeats(self, tensor: str) -> bool:
        """``tensor`` holds a channel twice, or twins of one."""
        sequence = self.sequence(tensor)
        return len(set(sequence)) < len(sequence)

    @cached_property
    def renamed(self) -> dict[tuple[str, int], dict[int, int]]:
        """For every operand of a concatenation whose channels get twins: which gets which.

        By the operation's name and the operand's number: the result's channel, by the operand's.
        """
        found: dict[tuple[str, int], dict[int, int]] = {}
        for op in self.operations if self.twins else ():
            if isinstance(op, Concat):
                for operand, read, written in self.joined(op):
                    found.setdefault((op.name, operand), {})[read] = written
        return {
            edge: names
            for edge, names in found.items()
            if any(written != read for read, written in names.items())
        }

    def joined(self, op: Concat) -> Iterator[tuple[int, int, int]]:
        """For every channel that a concatenation writes: the operand, its channel, what it is."""
        read = [
            (operand, channel)
            for operand, name in enumerate(op.inputs)
            for channel in self.tensors[name].channels
        ]
        taken = read if op.positions is None else [read[place] for place in op.positions]
        result = self.tensors[op.outputs[0]].channels
        for (operand, channel), written in zip(taken, result, strict=True):
            yield operand, channel, written

    def makes_twins(self, op: Concat) -> bool:
        """Channels of an operand get twins."""
        return any((op.name, operand) in self.renamed for operand in range(len(op.inputs)))

    def taken(self, op: Concat, operand: int, channels: frozenset[int]) -> frozenset[int]:
        """The channels of an operand that are ``channels`` of the concatenation's result."""
        names = self.renamed.get((op.name, operand))
        if names is None:
            return channels.intersection(self.tensors[op.inputs[operand]].channels)
        return frozenset(read for read, written in names.items() if written in channels)

    def given(self, op: Concat, operand: int, channels: frozenset[int]) -> frozenset[int]:
        """The channels of the concatenation's result that are ``channels`` of an operand."""
        names = self.renamed.get((op.name, operand))
        if names is None:
            return channels.intersection(self.tensors[op.outputs[0]].channels)
        return frozenset(written for read, written in names.items() if read in channels)

    @cached_property
    def space_of(self) -> dict[int, int]:
        """The number of every channel's space."""
        spaces = {c: number for number, space in enumerate(self.spaces) for c in space.channels}
        return spaces | {twin: spaces[channel] for twin, channel in self.originals.items()}

    def runs(self, tensor: str) -> tuple[Run, ...]:
        """The runs in which the channels of ``tensor`` are stored: which space lies behind which.

        In the sequence in which the spaces begin in the tensor; a tensor that holds a channel
        more than once, or twins of it, holds the spaces one behind the other.
        """
        found = self._known_runs.get(tensor)
        if found is None:
            found = self._known_runs[tensor] = find_runs(
                self.sequence(tensor), self.spaces, self.space_of
            )
        return found

    @cached_property
    def grouped(self) -> dict[str, int]:
        """The weights of grouped convolutions, with the number of groups."""
        return {
            op.weight: op.groups
            for op in self.operations
            if isinstance(op, Layer) and op.groups > 1
        }

    @cached_property
    def _known_runs(self) -> dict[str, tuple[Run, ...]]:
        return {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            check_consistency(self)
        except ValueError as error:
            raise SchemaError(f"not a valid {self.what}: {error}") from None
        return self


def _strip_dtypes(data: Any) -> None:
    if isinstance(data, dict):
        data.pop("dtype", None)
        for value in data.values():
            _strip_dtypes(value)
    elif isinstance(data, list):
        for value in data:
            _strip_dtypes(value)


def parameters_of(op: Operation) -> tuple[str, ...]:
    """The names of the parameters and buffers that ``op`` uses."""
    if isinstance(op, Layer):
        return (op.weight,) if op.bias is None else (op.weight, op.bias)
    if isinstance(op, (ChannelWise, Symmetric)):
        return tuple(use.name for use in op.parameters)
    if isinstance(op, Constant):
        return (op.parameter,)
    return ()


def axes_of(op: Operation, parameter: str) -> dict[int, str]:
    """The axes of ``parameter`` along which ``op`` has channels, with the tensor that holds them.

    Nothing if the operation uses it in a way that channels do not show, or in two ways at once.
    """
    found: list[tuple[int, str]] = []
    if isinstance(op, Layer):
        if op.weight == parameter and op.inputs:
            found += [(op.in_axis, op.inputs[0]), (op.out_axis, op.outputs[0])]
        if op.bias == parameter:
            found.append((0, op.outputs[0]))
    elif isinstance(op, (ChannelWise, Symmetric)):
        found += [(use.axis, op.outputs[0]) for use in op.parameters if use.name == parameter]
    elif isinstance(op, Constant) and op.axis is not None:
        found.append((op.axis, op.outputs[0]))
    axes = dict(found)
    return axes if len(axes) == len(found) else {}


def users_of(graph: ChannelGraph) -> dict[str, list[Operation]]:
    """The operations that use each parameter, in the order of execution."""
    users: dict[str, list[Operation]] = {}
    for op in graph.operations:
        for name in dict.fromkeys(parameters_of(op)):
            users.setdefault(name, []).append(op)
    return users


def shared_parameters(graph: ChannelGraph) -> dict[str, tuple[Operation, ...]]:
    """The parameters that several operations use, with these; all of them must be cut alike."""
    return {name: tuple(ops) for name, ops in users_of(graph).items() if len(ops) > 1}


def maskable_axes(graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    """For every parameter the graph names, the axes that run along channels."""
    axes: dict[str, tuple[int, ...]] = {}
    for op in graph.operations:
        if isinstance(op, Layer):
            axes[op.weight] = tuple(sorted((op.in_axis, op.out_axis)))
            if op.bias is not None:
                axes[op.bias] = (0,)
        elif isinstance(op, (ChannelWise, Symmetric)):
            axes.update({use.name: (use.axis,) for use in op.parameters})
        elif isinstance(op, Constant) and op.axis is not None:
            axes[op.parameter] = (op.axis,)
    return axes


def slices_of(graph: ChannelGraph, parameter: str, axis: int) -> int:
    """The number of slices that masks count along ``axis`` of ``parameter``.

    Its size; but along the short axis of a grouped convolution's weight, the channels of all
    groups.
    """
    groups = graph.grouped.get(parameter, 1) if axis != 0 else 1
    return graph.parameters[parameter][axis] * groups
