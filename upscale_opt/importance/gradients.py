"""First-order Taylor: how much the loss would change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upscale_opt.errors import MaskError
from upscale_opt.importance.batches import as_batches
from upscale_opt.importance.criterion import Prepared
from upscale_opt.masking.zeros import state_of
from upscale_opt.tracing.unchanged import undisturbed

if TYPE_CHECKING:
    from upscale_opt.ir.graph import ChannelGraph
    from upscale_opt.masking.segments import Segment


class Taylor(Prepared):
    """The change of the loss if a channel is dropped, squared, to first order.

    Molchanov, Mallya, Tyree, Frosio, Kautz, *Importance Estimation for Neural Network Pruning*,
    CVPR 2019, in its form for groups of weights: the square of the sum of gradient x weight over
    all weights of the channel in the segment, and the mean of that over the batches. The model is
    run in eval mode and is left as it was, gradients and random state included.

        >>> import torch
        >>> from upscale_opt import MaskingManager
        >>> from upscale_opt.models import catalogue
        >>> model = catalogue.build("topology/residual_stage")
        >>> def loss(model, batch):
        ...     return model(batch).square().mean()
        >>> taylor = Taylor(loss, [torch.randn(2, 3, 16, 16)])
        >>> manager = MaskingManager(model).importance(taylor).mask(amount=0.25)

    Args:
        loss: from the model and a batch to a scalar tensor, such as
            ``lambda model, batch: cross_entropy(model(batch[0]), batch[1])``.
        batches: what ``loss`` takes, one after the other. An iterator can be used only once.
    """

    def __init__(self, loss: Callable[[nn.Module, Any], Tensor], batches: Iterable[Any]) -> None:
        super().__init__()
        if not callable(loss):
            raise MaskError(
                f"Taylor's loss must be a function of (model, batch), not {loss!r}; such as "
                "lambda model, batch: cross_entropy(model(batch[0]), batch[1])"
            )
        self.loss = loss
        self.batches = as_batches(batches)

    def scores_of(
        self, model: nn.Module, graph: ChannelGraph, segments: Sequence[Segment]
    ) -> list[Tensor]:
        """For each segment, a float64 tensor of shape (channels,).

        Raises:
            MaskError: if there are no batches, or the loss is not a scalar that depends on the
                model's weights.
        """
        names = dict.fromkeys(share.weight for s in segments for share in s.shares)
        tensors = state_of(model, graph)
        weights = {name: tensors[name] for name in names}
        totals: list[Tensor] = []
        batches = 0
        with undisturbed(model), torch.enable_grad():
            for weight in weights.values():
                weight.requires_grad_(True)
            for batch in self.batches:
                batches += 1
                gradients = _gradients(self.loss(model, batch), weights)
                terms = [_terms(segment, weights, gradients) for segment in segments]
                totals = [a + b for a, b in zip(totals, terms, strict=True)] if totals else terms
        if not batches:
            raise MaskError(
                "Taylor was given no batches; give a list of them (an iterator gives them once)"
            )
        return [total / batches for total in totals]


def _gradients(loss: object, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the loss; zero for weights that it does not depend on.

    Raises:
        MaskError: if it is not a scalar tensor, or depends on none of them.
    """
    if not isinstance(loss, Tensor):
        raise MaskError(
            f"Taylor's loss returned a {type(loss).__name__}; it must return a tensor (no .item())"
        )
    if loss.numel() != 1:
        raise MaskError(
            f"Taylor's loss has the shape {tuple(loss.shape)}; it must be a single number, such "
            "as its mean()"
        )
    if not loss.requires_grad:
        raise MaskError(
            "Taylor's loss does not depend on the model's weights in a way that PyTorch can "
            "follow; compute it from model(...) without no_grad(), detach() or argmax()"
        )
    try:
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    except RuntimeError as error:
        raise MaskError(
            f"Taylor's loss cannot be differentiated: {error}. It must return the loss without "
            "calling backward()"
        ) from error
    if all(gradient is None for gradient in found):
        raise MaskError("Taylor's loss depends on none of the layers that are to be pruned")
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }


def _terms(segment: Segment, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    """The squared first-order change for every channel, a float64 tensor of shape (channels,)."""
    products = {
        share.weight: weights[share.weight].detach().double() * gradients[share.weight].double()
        for share in segment.shares
    }
    return segment.matrix(products).sum(dim=1).square()
