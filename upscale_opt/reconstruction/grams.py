"""Gram matrices of every layer's inputs, in one pass over the calibration data."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from upscale_opt.errors import TraceError
from upscale_opt.reconstruction.columns import matrix, rows_of
from upscale_opt.reconstruction.data import Given, samples_in
from upscale_opt.reconstruction.sites import Site
from upscale_opt.reconstruction.stepping import Stepper
from upscale_opt.reconstruction.watching import Seen, Watcher, tensors_of
from upscale_opt.tracing.program import Program
from upscale_opt.tracing.unchanged import undisturbed

WIDE = 8192
"""With more columns than this, a channel's weights are refitted by one factor only."""


@dataclass
class Gram:
    """The sums over positions that a layer's losses depend on, in float64 on the CPU.

    Attributes:
        products: of the columns, shape (groups, columns, columns); of a wide layer, of what each
            entry adds to the output, shape (1, entries, entries).
        sums: of the columns, shape (groups, columns).
        rows: positions.
        samples: inputs of the network.
    """

    products: Tensor
    sums: Tensor
    rows: int = 0
    samples: int = 0

    def centre(self) -> None:
        """Make ``products`` those of columns less their means, in place: it may be a file."""
        for one, sums in zip(self.products, self.sums, strict=True):
            one.addr_(sums, sums, alpha=-1 / max(self.rows, 1))


class Store:
    """Makes Gram matrices: in memory up to a limit, then in files.

    Args:
        memory: the limit in bytes.
    """

    def __init__(self, memory: int) -> None:
        self._left = memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def zeros(self, *shape: int) -> Tensor:
        """A float64 tensor."""
        size = 8 * math.prod(shape)
        if size <= self._left:
            self._left -= size
            return torch.zeros(shape, dtype=torch.float64)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="upscale-opt-grams-")
        self._files += 1
        name = str(Path(self._folder.name) / f"{self._files}.bin")
        count = math.prod(shape)
        mapped = torch.from_file(name, shared=True, size=count, dtype=torch.float64)
        return mapped.zero_().reshape(shape)


def is_wide(site: Site, weight: Tensor) -> bool:
    """Tell whether a layer has too many columns for a Gram matrix of them."""
    columns = len(site.channels) * site.features * math.prod(weight.shape[2:]) // site.groups
    return columns > WIDE and site.groups == site.parts == 1 and columns > len(site.channels)


def grams_of(
    model: nn.Module,
    program: Program,
    calls: Sequence[Given],
    sites: Sequence[Site],
    scales: Mapping[str, Tensor],
    store: Store,
) -> dict[str, Gram]:
    """The Gram matrix of every site by its weight; only activations still to be read are held.

    Args:
        model: the model, which is as before afterwards.
        program: it captured.
        calls: the calibration batches.
        sites: whose inputs to look at.
        scales: what to multiply outputs by; for wide layers.
        store: where the matrices go.

    Raises:
        TraceError: if the model does not run on them, or a layer reads what is not finite.
    """
    tensors = tensors_of(model)
    by_weight = {site.weight: site for site in sites}
    found: dict[str, Gram] = {}

    def add(seen: Seen) -> None:
        site, weight = by_weight[seen.name], tensors[seen.name]
        own = found.get(seen.name)
        if own is None:
            groups = site.groups
            columns = len(site.channels) * site.features * math.prod(weight.shape[2:]) // groups
            if is_wide(site, weight):
                columns = len(site.channels)
            own = Gram(store.zeros(groups, columns, columns), store.zeros(groups, columns))
            found[seen.name] = own
        mixed = None
        if is_wide(site, weight):
            mixed = matrix(weight, site.in_axis)[0] * scales[seen.name].to(weight.device)
        for x, _ in rows_of(seen):
            x = x.double()
            if mixed is not None:
                _add_wide(own, x[0], mixed)
                continue
            own.products += (x.transpose(1, 2) @ x).cpu()
            own.sums += x.sum(1).cpu()
            own.rows += x.shape[1]

    stepper = Stepper(program.captured, model)
    watched = _nodes_with(program, set(by_weight))
    with undisturbed(model), torch.no_grad():
        for given in calls:
            touched: set[str] = set()

            def call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
                if node not in watched:
                    return stepper.call(node, values)
                watcher = Watcher(tensors, by_weight)
                with watcher:
                    result = stepper.call(node, values)
                for seen in watcher.seen:
                    add(seen)
                    touched.add(seen.name)  # noqa: B023 - called before the next batch
                return result

            stepper.run(given, call)
            for name in touched:
                found[name].samples += samples_in(given)
    for name, gram in found.items():
        if not bool(gram.products.isfinite().all()):
            raise TraceError(
                f"the layer {by_weight[name].operation!r} reads numbers that are not finite; look "
                "for overflows in the model, or huge numbers in the calibration data"
            )
    return found


def _add_wide(gram: Gram, x: Tensor, weights: Tensor) -> None:
    """Add what each entry adds to the output, for x of shape (positions, columns)."""
    entries = gram.products.shape[1]
    each = x.shape[1] // entries
    outputs = weights.shape[1]
    step = max(1, 2**23 // (entries * outputs))
    blocks = weights.reshape(entries, each, outputs)
    for at in range(0, len(x), step):
        part = x[at : at + step].reshape(-1, entries, each).transpose(0, 1)
        added = (part @ blocks).flatten(1)
        gram.products += (added @ added.T).cpu()[None]
    gram.rows += len(x)


def _nodes_with(program: Program, weights: set[str]) -> set[fx.Node]:
    """The calls that amount to layers with these weights."""
    operations = {op.name: op for op in program.graph.operations}
    found = set()
    for node, names in program.operations.items():
        for name in names:
            op = operations.get(name)
            if op is not None and getattr(op, "weight", None) in weights:
                found.add(node)
    return found
