"""``MaskingManager``: score a model's channels and zero the least important, in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from typing_extensions import Self

from upscale_opt.errors import BudgetError, MaskError
from upscale_opt.importance import Criterion, score_segments
from upscale_opt.importance.choosing import choose, merge
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.choice import Choice
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.managers.inputs import trace_without_inputs
from upscale_opt.masking.segments import Layers, Method, Segment, Side, find_segments
from upscale_opt.masking.zeros import apply_masks
from upscale_opt.reconstruction.data import listed
from upscale_opt.reconstruction.losses import losses_of
from upscale_opt.reconstruction.refitting import refit
from upscale_opt.solver.choosing import choose as choose_within
from upscale_opt.tracing import trace
from upscale_opt.tracing.wrappings import unwrapped

if TYPE_CHECKING:
    from upscale_opt.tracing.examples import Inputs


class ManagedSegment(Segment):
    """A segment that scores itself, for loops over :meth:`MaskingManager.segments`."""

    def importance(self, heuristic: Criterion | None = None) -> ManagedSegment:
        """Score the channels; see :meth:`MaskingManager.importance`."""
        score_segments([self], heuristic)
        return self


class MaskingManager:
    """Masks a model by a criterion, as UPSCALE's class of that name does.

        >>> from upscale_opt.importance import LAMP
        >>> from upscale_opt.models import catalogue
        >>> model = catalogue.build("topology/residual_stage")
        >>> manager = MaskingManager(model).importance(LAMP()).mask(amount=0.25)

    Attributes:
        model: the model.
        graph: its channel graph.
        side: the side pruned.
        method: with or without constraints.
        is_global: whether all channels are ranked together.
        choice: what a budget left, once :meth:`mask` was given one.

    Args:
        model: any model that can be traced, on any device.
        side: prune the channels that layers read (``"input"``), those that they write
            (``"output"``), or ``"both"``.
        method: ``"unconstrained"``: every layer decides for itself; ``"constrained"``: all layers
            that share a channel decide together, so that the export copies nothing.
        is_global: rank the channels of the whole model together, rather than those of every
            segment by themselves. Some segments may lose all of their channels then.
        inputs: example inputs, as for :func:`upscale_opt.trace`. Needed only for models that take
            something else than one batch of images or vectors.
        layers: prune convolutions only (and what is coupled to them), as UPSCALE's class does, or
            ``"all"`` layers, which is the default everywhere else.

    Raises:
        MaskError: if an option is not one of those, or ``inputs`` are needed.
        TraceError: if the model cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        side: Side = "input",
        method: Method = "unconstrained",
        is_global: bool = False,
        *,
        inputs: Inputs | None = None,
        layers: Layers = "conv",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise MaskError(f"cannot mask a {type(model).__name__}; give an nn.Module")
        self.model = model = unwrapped(model)
        self.side = side
        self.method = method
        self.is_global = is_global
        self.graph: ChannelGraph = (
            trace_without_inputs(model) if inputs is None else trace(model, inputs)
        )
        self._segments = [
            ManagedSegment(**vars(segment))
            for segment in find_segments(model, self.graph, side, method, layers)
        ]
        self._layers = layers
        self._scored = False
        self._criterion: Criterion | None = None
        self.choice: Choice | None = None

    def __repr__(self) -> str:
        return (
            f"MaskingManager({type(self.model).__name__}, {self.side}, {self.method}, "
            f"{len(self._segments)} segments)"
        )

    def segments(self) -> list[ManagedSegment]:
        """The units that masks are chosen for, in the order of execution.

        Each has the ``layers`` concerned (modules), and their ``weights()`` by channel;
        ``importance(...)`` scores its channels, ``mask(...)`` zeroes the lowest, and ``drop(...)``
        channels by number.
        """
        return self._segments

    def importance(self, heuristic: Criterion | None = None) -> Self:
        """Score the channels of all segments.

        Args:
            heuristic: a name such as ``"l1"``, one of :mod:`upscale_opt.importance`, or a function
                from weights (a float64 tensor of shape (channels, weights per channel)) to scores
                of shape (channels,); higher is more important. The L2 norm by default.

        Raises:
            MaskError: if it does not give one score per channel.
        """
        score_segments(self._segments, heuristic)
        self._scored = True
        self._criterion = heuristic
        return self

    def mask(
        self,
        amount: float = 0.5,
        *,
        budget: Budget | None = None,
        data: Iterable[Any] | None = None,
        time_limit: float = 60.0,
    ) -> Self:
        """Zero the least important channels, in place.

        A masked input channel is a zero column of the weights that would read it. A masked output
        channel is a zero row, without bias, and stays zero behind its batch norm.

            >>> import torch, upscale_opt as uo
            >>> from upscale_opt.models.small_networks import build_small
            >>> model, batch = build_small("resnet", image=8), torch.randn(16, 1, 8, 8)
            >>> manager = uo.MaskingManager(model, inputs=batch[:1], layers="all")
            >>> manager = manager.mask(budget=uo.Budget(macs=0.5), data=[batch], time_limit=1)
            >>> manager.choice.resources[0].share <= 0.5
            True

        Args:
            amount: the share of channels to zero, in [0, 1); rounded down.
            budget: choose what may remain instead, for all layers together, as
                :func:`upscale_opt.prune` does; of input channels, with or without constraints.
            data: with a budget: batches of inputs, by which the losses are found, and to which the
                remaining weights are refitted, in place. Without, the scores of :meth:`importance`
                decide, if it was called.
            time_limit: to choose within a budget, in seconds.

        Raises:
            MaskError: if ``amount`` is out of range, or :meth:`importance` was not called; if a
                budget is given for output channels.
            BudgetError: if the budget cannot be met, or data come without one.
            TraceError: if the data do not fit the model.
        """
        if budget is not None:
            self._keep_to(budget, data, time_limit)
            return self
        if data is not None:
            raise BudgetError("data are for a budget: give one, such as budget=Budget(macs=0.5)")
        if not self._scored:
            raise MaskError("call importance() before mask(), so that there are scores to rank by")
        chosen = choose(self._segments, amount, self.is_global)
        pairs = zip(self._segments, chosen, strict=True)
        apply_masks(self.model, self.graph, merge(segment.masks(rows) for segment, rows in pairs))
        return self

    def _keep_to(self, budget: Budget, data: Iterable[Any] | None, time_limit: float) -> None:
        if self.side != "input":
            raise MaskError(
                f"a budget chooses the channels that layers read, not side={self.side!r}; make the "
                "manager with side='input'"
            )
        batches = None if data is None else listed(data)
        criterion = self._criterion if batches is None else None
        losses = losses_of(self.model, self.graph, batches, criterion=criterion)
        if self._layers == "conv":
            shapes = self.graph.parameters
            kept = tuple(r for r in losses.readers if len(shapes[r.parameter]) > 2)
            losses = losses.model_copy(update={"readers": kept})
        solver = "joint" if self.method == "unconstrained" else "constrained"
        self.choice = choose_within(
            self.graph, losses, budget, solver=solver, time_limit=time_limit
        )
        if batches is None:
            apply_masks(self.model, self.graph, self.choice.masks)
            return
        refitted, _ = refit(self.model, self.choice.masks, batches, graph=self.graph)
        self.model.load_state_dict(refitted.state_dict())
