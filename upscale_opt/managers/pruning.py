"""``PruningManager``: find a model's zeros, plan its export, and prune it in place."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

from torch import nn
from typing_extensions import Self, Unpack

from upscale_opt.errors import MaskError, MaterializeError
from upscale_opt.ir.graph import ChannelGraph, Layer, maskable_axes, slices_of
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.managers.mock import MockModel
from upscale_opt.masking.zeros import masked_copy, masks_of
from upscale_opt.materializing.gathered import gathered
from upscale_opt.materializing.materialize import materialize
from upscale_opt.materializing.own_code import put_into
from upscale_opt.materializing.pruned_module import replace
from upscale_opt.solver.api import solve
from upscale_opt.solver.network.coupling import constrain
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.tracing import trace
from upscale_opt.tracing.examples import Inputs
from upscale_opt.tracing.wrappings import unwrapped
from upscale_opt.verifying.verify import VerificationReport, verify

Channels = Iterable[tuple[str, int]]
"""Pairs of a weight's name (or its module's) and a channel's number."""


class PruningManager(nn.Module):
    """Prunes a model in place, as UPSCALE's class of that name does.

        >>> import torch
        >>> from upscale_opt.models import catalogue
        >>> model = catalogue.build("topology/residual_stage")
        >>> x = catalogue.example_inputs("topology/residual_stage")
        >>> pruned_inputs = [("blocks.0.conv1.weight", 5)]
        >>> manager = PruningManager(model).compute([x], pruned_inputs=pruned_inputs)
        >>> mock = manager.get_mock_model()
        >>> want = mock(x)
        >>> _ = manager.prune()
        >>> torch.allclose(model(x), want, atol=1e-5)
        True

    Attributes:
        net: the model.
        graph: its channel graph, once computed.
        masks: which slices of its parameters are kept, once computed.
        solution: the plan of the export, once computed; after :meth:`prune`, ``net.solution``.
        report: how far the export was from the masked model, after :meth:`prune`.

    Args:
        net: any model that can be traced, on any device.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise MaskError(f"cannot prune a {type(net).__name__}; give an nn.Module")
        self.net = unwrapped(net)
        self.graph: ChannelGraph | None = None
        self.masks: Masks | None = None
        self.solution: Solution | None = None
        self.report: VerificationReport | None = None
        self._inputs: Inputs = ()
        self._asked: object = None
        self._given: Masks | None = None  # what the model does not obey by itself
        self._mocks: WeakSet[MockModel] = WeakSet()

    def __repr__(self) -> str:
        done = "pruned" if self.solution is None and self.report is not None else "not computed"
        return f"PruningManager({type(self.net).__name__}, {self.solution or done})"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the model computes."""
        return self.net(*args, **kwargs)

    def trace(self, inputs: Inputs, force: bool = False) -> ChannelGraph:
        """The model's channel graph; traced anew only if ``force`` is set."""
        if self.graph is None or force:
            self.graph = trace(self.net, inputs)
        return self.graph

    def compute(
        self,
        inputs: Inputs,
        force: bool = False,
        pruned_inputs: Channels | None = None,
        pruned_outputs: Channels | None = None,
        constrained: bool = False,
        reorder_producer: bool = True,
        reorder_consumer: bool = True,
        *,
        options: SolveOptions | None = None,
        progress: Listener | None = None,
        **fields: Unpack[SolveFields],
    ) -> Self:
        """Plan the export. The model is not changed.

        If neither ``pruned_inputs`` nor ``pruned_outputs`` is given, the zeros that the weights
        have are pruned.

        Args:
            inputs: a list or tuple of positional arguments, a tensor, or a dict of keyword
                arguments.
            force: compute anew even if nothing has changed since.
            pruned_inputs: input channels to prune, as pairs of a weight's name and a number:
                ``[("layer1.1.conv1.weight", 5)]``. The weights' own zeros are pruned as well.
            pruned_outputs: output channels to prune.
            constrained: also prune, in all layers that share a channel, what one of them prunes
                (:func:`upscale_opt.constrain`). Then nothing is copied.
            reorder_producer: let channels be reordered. If this or ``reorder_consumer`` is off,
                all stay in their order.
            reorder_consumer: as ``reorder_producer``.
            options: how to solve; if they name no objective, the fewest bytes are copied.
            progress: told of the steps ``"trace"``, ``"mask"`` and ``"solve"`` as they begin, and
                of every improvement of the solver.
            **fields: of :class:`~upscale_opt.solver.options.SolveOptions`, in place of those of
                ``options``.

        Raises:
            MaskError: if a channel to prune does not exist.
            TraceError: if the model cannot be traced.
            SolverError: for options that make no sense.
        """
        if not isinstance(force, bool):
            raise MaskError(f"force is True or False, not {force!r}; name the other arguments")
        pruned_inputs = None if pruned_inputs is None else tuple(pruned_inputs)
        pruned_outputs = None if pruned_outputs is None else tuple(pruned_outputs)
        options = SolveOptions.of(options, **fields).for_export()
        if not (reorder_producer and reorder_consumer):
            options = SolveOptions.of(options, solver="identity")
        asked = (pruned_inputs, pruned_outputs, constrained, options)
        tell: Listener = progress or (lambda event: None)
        tell(Progress("trace"))
        graph = trace(self.net, inputs)
        tell(Progress("mask"))
        given: Masks | None = None
        if pruned_inputs is not None or pruned_outputs is not None:
            given = _explicit(self.net, graph, pruned_inputs or (), pruned_outputs or ())
        masks = masks_of(self._masked(graph, given), graph)
        if constrained:
            given = masks = constrain(graph, masks)
        known = (graph, masks, asked) == (self.graph, self.masks, self._asked)
        if self.solution is not None and known and not force:
            return self
        tell(Progress("solve"))
        self.solution = solve(graph, masks, options=options, progress=progress)
        if not self.solution.parameters:
            warnings.warn(
                f"there is nothing to prune in this {type(self.net).__name__}: mask it first; and "
                "if masks are to survive training, train get_mock_model()",
                stacklevel=2,
            )
        self.graph, self.masks = graph, masks
        self._given, self._inputs, self._asked = given, inputs, asked
        return self

    def get_mock_model(self) -> MockModel:
        """The masked model that the export will equal; it shares the model's parameters.

        Raises:
            MaterializeError: if nothing has been computed.
        """
        graph, _, solution = self._computed()
        mock = MockModel(self.net, graph, solution, self._given)
        self._mocks.add(mock)
        return mock

    def prune(
        self,
        is_not_ane: bool = False,
        baseline: bool = False,
        *,
        check: bool = True,
        own_code: bool = False,
    ) -> Self:
        """Prune the model in place, and verify it on the inputs given to :meth:`compute`.

        The model stays the same object and an instance of its class. Its parameters are new ones:
        make a new optimizer to train it. Mock models keep computing what they did.

        Args:
            is_not_ane: accepted because UPSCALE has it: how its export writes a gather. Ours is
                always one ``index_select``.
            baseline: export without reordering, and gather even what could be viewed: what UPSCALE
                compares with.
            check: verify that nothing was lost; if something is, the model stays as it was.
            own_code: let the class's own code call the smaller layers, which is possible where
                pruning changed sizes alone (``constrained=True``). Then the model keeps every
                method and argument of its class
                (:func:`upscale_opt.materializing.own_code.put_into`).

        Raises:
            MaterializeError: if nothing has been computed, or the model was changed since, or its
                own code cannot stay.
            VerificationError: if the export deviates from the masked model.
        """
        graph, masks, solution = self._computed()
        if baseline:
            solution = gathered(solve(graph, masks, solver="identity"))
        masked = self._masked(graph, self._given)
        pruned = materialize(masked, solution)
        self.report = verify(masked, pruned, self._inputs) if check else None
        for mock in self._mocks:
            mock.part_with_net()
        put = put_into if own_code else replace
        put(self.net, pruned)
        self.graph = self.masks = self.solution = self._given = None
        return self

    def _masked(self, graph: ChannelGraph, masks: Masks | None) -> nn.Module:
        """The model if it obeys the masks by itself, else a copy that does."""
        return self.net if masks is None else masked_copy(self.net, graph, masks)

    def _computed(self) -> tuple[ChannelGraph, Masks, Solution]:
        if self.graph is None or self.masks is None or self.solution is None:
            raise MaterializeError("nothing has been computed; call compute(inputs) first")
        return self.graph, self.masks, self.solution


def _explicit(net: nn.Module, graph: ChannelGraph, inputs: Channels, outputs: Channels) -> Masks:
    """Masks that drop the listed channels.

    Raises:
        MaskError: naming the first that does not exist.
    """
    layers = {op.weight: op for op in graph.operations if isinstance(op, Layer)}
    axes = maskable_axes(graph)
    kept: dict[str, dict[int, set[int]]] = {}
    for side, channels in (("input", inputs), ("output", outputs)):
        for pair in channels:
            name, channel = _pair(pair)
            weight = _weight(net, name, axes)
            layer = layers.get(weight)
            if layer is None:
                axis = axes[weight][0]
            else:
                axis = layer.in_axis if side == "input" else layer.out_axis
            size = slices_of(graph, weight, axis)
            if not 0 <= channel < size:
                raise MaskError(f"{weight!r} has no {side} channel {channel}; it has {size}")
            known = kept.setdefault(weight, {}).setdefault(axis, set(range(size)))
            known.discard(channel)
    return Masks(
        kept={
            name: {axis: tuple(sorted(left)) for axis, left in by_axis.items()}
            for name, by_axis in kept.items()
        }
    )


def _pair(pair: object) -> tuple[str, int]:
    """A weight's name and a channel's number.

    Raises:
        MaskError: if it is anything else.
    """
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        name, channel = pair
        if isinstance(name, str):
            try:
                return name, operator.index(channel)
            except TypeError:
                pass
    raise MaskError(
        f"{pair!r} is no pair of a weight's name, as the state_dict has it, and a channel's "
        "number; give such as ('layer1.1.conv1.weight', 5)"
    )


def _weight(net: nn.Module, name: str, axes: dict[str, tuple[int, ...]]) -> str:
    """The name by which the graph knows a weight."""
    tensors = dict(net.named_parameters(remove_duplicate=False))
    for full in (name, f"{name}.weight"):
        for weight in axes:
            if weight == full or (full in tensors and tensors.get(weight) is tensors[full]):
                return weight
        if full in tensors:
            raise MaskError(
                f"the channels of {full!r} are not understood, so they cannot be pruned; the graph "
                "says why (the reasons of its opaque operations)"
            )
    raise MaskError(
        f"{name!r} is not the name of a weight; name weights as the state_dict does, such as "
        "'layer1.1.conv1.weight'"
    )
