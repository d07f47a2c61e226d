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
        between: over clusters of positions, the sum of their matrices' squares, each over its rows.
        within: the sum of the fourth powers of the positions' norms.
        clusters: how many there were.
    """

    products: Tensor
    sums: Tensor
    rows: int = 0
    samples: int = 0
    between: float = 0.0
    within: float = 0.0
    clusters: int = 0

    @property
    def independent(self) -> float:
        """The number of positions that would tell as much, if none resembled its neighbours.

        Positions of one image, and images of one batch, resemble each other. Their number is
        divided by the root of the design effect (Kish, *Survey Sampling*, 1965): by how much more
        the matrices of clusters differ than those of as many positions drawn one by one would. The
        root, since what refitted weights leave over resembles its neighbours less than inputs do.
        """
        if self.clusters < 2:
            return self.rows
        square = float(torch.linalg.vector_norm(self.products)) ** 2 / self.rows**2
        clustered = (self.between - self.rows * square) / (self.clusters - 1)
        alone = self.within / self.rows - square
        return self.rows / max(clustered / alone, 1.0) ** 0.5 if alone > 0 else self.rows

    def add(self, x: Tensor, pieces: int) -> None:
        """Add positions.

        Args:
            x: of shape (groups, positions, columns), float64.
            pieces: the clusters that they fall into.
        """
        parts = x.chunk(pieces, dim=1)
        if pieces > 1 and parts[0].shape[1] < x.shape[2]:  # as many squares, and fewer to sum
            own = [part @ part.transpose(1, 2) for part in parts]
            product = x.transpose(1, 2) @ x
        else:
            own = [part.transpose(1, 2) @ part for part in parts]
            product = sum(own[1:], own[0])
        for square, part in zip(own, parts, strict=True):
            self.between += float(square.square().sum()) / part.shape[1]
        self.clusters += len(parts)
        self.within += float(x.square().sum(2).square().sum())
        self.products += product.cpu()
        self.sums += x.sum(1).cpu()
        self.rows += x.shape[1]

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


_CLUSTERS = 8
"""The least number of clusters that positions fall into: batches, or parts of them."""


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
    pieces = -(-_CLUSTERS // max(len(calls), 1))
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
            own.add(x, pieces)

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
