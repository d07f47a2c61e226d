"""Predict how long a model takes, without running it: its kernels, priced by a cost model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from upscale_opt.ir.cost_model import CostModel
from upscale_opt.measuring.kernels import Kernel, Watch, kernels_of
from upscale_opt.measuring.watching import watch
from upscale_opt.shown import Shown
from upscale_opt.tracing.examples import Inputs, require_model


@dataclass(frozen=True, repr=False)
class Priced(Shown):
    """A kernel and its price.

    Attributes:
        kernel: what runs.
        nanoseconds: what the cost model says it takes.
    """

    kernel: Kernel
    nanoseconds: float


@dataclass(frozen=True, repr=False)
class Estimate(Shown):
    """A cost model's prediction for one forward pass.

    Attributes:
        kernels: in the order of execution.
    """

    kernels: tuple[Priced, ...]

    @property
    def nanoseconds(self) -> float:
        """Of the whole pass."""
        return sum(priced.nanoseconds for priced in self.kernels)

    @property
    def by_kind(self) -> dict[str, float]:
        """The nanoseconds of each kind of kernel, most first."""
        return _totals((priced.kernel.kind, priced.nanoseconds) for priced in self.kernels)

    @property
    def by_module(self) -> dict[str, float]:
        """The nanoseconds of each module's own kernels, most first; ``""`` is the model itself."""
        return _totals((priced.kernel.module, priced.nanoseconds) for priced in self.kernels)

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {ns / 1e6:.2f}" for kind, ns in self.by_kind.items())
        return f"{self.nanoseconds / 1e6:.2f} ms" + (f" ({parts})" if parts else "")


def estimate(model: nn.Module, inputs: Inputs, cost_model: CostModel) -> Estimate:
    """Predict how long ``model`` takes on ``inputs``.

    The pass is run in evaluation mode and without gradients on fake tensors, which have shapes but
    no data; a model that needs data (to branch on, say) is run for real. Either way it is left as
    it was, and so is the random state. The memory format is that of the model and the inputs.

    Args:
        model: any model, on any device.
        inputs: as for :func:`upscale_opt.trace`.
        cost_model: the prices; see :func:`upscale_opt.measuring.calibrate`.

    Raises:
        TraceError: if ``model`` is no model, or ``inputs`` are none of the accepted forms.
        SchemaError: if ``cost_model`` is no cost model.
        SolverError: if the cost model lacks a kind of kernel.
    """
    require_model(model, "measure")
    CostModel.require(cost_model)
    kernels = list_kernels(model, inputs)
    return Estimate(tuple(Priced(kernel, _price(cost_model, kernel)) for kernel in kernels))


def _price(cost_model: CostModel, one: Kernel) -> float:
    return cost_model.nanoseconds(one.kind, bytes=one.bytes, macs=one.macs, sides=one.sides)


def list_kernels(model: nn.Module, inputs: Inputs) -> list[Kernel]:
    """The kernels of one forward pass, in the order of execution; see :func:`estimate`.

    Raises:
        TraceError: if ``inputs`` is none of the accepted forms.
    """
    return watch(model, inputs, _listing)


@contextmanager
def _listing(model: nn.Module) -> Iterator[list[Kernel]]:
    lister = _Lister(model)
    with lister.watching():
        yield lister.kernels


class _Lister(Watch):  # type: ignore[no-untyped-call]
    """Lists the kernels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.kernels: list[Kernel] = []

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str) -> Any:
        result = func(*args, **kwargs)
        self.kernels += kernels_of(func, args, kwargs, result, module)
        return result


def _totals(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for name, nanoseconds in pairs:
        totals[name] += nanoseconds  # type: ignore[assignment]
    return dict(totals.most_common())
