"""Questions so small that all masks can be tried: one or two spaces, up to four readers."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import upscale_opt as uo
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.cost_model import KINDS as KINDS_OF_KERNELS
from upscale_opt.ir.cost_model import CostModel, KernelCost
from upscale_opt.ir.graph import Layer
from upscale_opt.ir.losses import Chain, Losses, Reader
from upscale_opt.solver.selection.setting import Setting

KINDS = ("plain", "cat", "residual", "chain", "twins")


class Tiny(nn.Module):
    """One or two spaces that up to three layers read."""

    def __init__(self, kind: str, size: int, other: int, readers: int) -> None:
        super().__init__()
        self.kind = kind
        self.a = nn.Conv2d(3, size, 1)
        self.b = nn.Conv2d(3 if kind == "cat" else size, size if kind == "residual" else other, 1)
        width = {"cat": size + other, "twins": 2 * size}.get(kind, size)
        self.readers = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(readers))
        self.last = nn.Conv2d(other, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        if self.kind == "chain":
            last = self.last(self.b(a).relu())
            return torch.as_tensor(last + sum(reader(a) for reader in self.readers))
        if self.kind == "cat":
            a = torch.cat([a, self.b(x)], 1)
        elif self.kind == "twins":
            a = torch.cat([a, functional.max_pool2d(a, 3, 1, 1)], 1)
        elif self.kind == "residual":
            a = (a + self.b(a)).relu()
        return torch.as_tensor(sum(reader(a) for reader in self.readers))


@dataclass(frozen=True)
class TinyQuestion:
    """A question, and the loss of every set of channels.

    Attributes:
        graph: the graph.
        losses: with every set in some chain, so that all sets are columns.
        budget: what may remain.
        tables: by reader, the loss of every set dropped, by its bits.
    """

    graph: uo.ChannelGraph
    losses: Losses
    budget: Budget
    tables: list[list[float]]

    def least_loss(self, most: int = 3000) -> float | None:
        """The least loss within the budget: masks in the order of their losses are counted.

        ``None`` if there is none among the first so many.
        """
        setting = Setting(self.graph, self.losses, self.budget)
        sorted_sets = [
            sorted((value, bits) for bits, value in enumerate(table[:-1])) for table in self.tables
        ]
        start = (0,) * len(self.tables)
        waiting, seen = [(0.0, start)], {start}
        for _ in range(most):
            if not waiting:
                return None
            loss, at = heapq.heappop(waiting)
            dropped = tuple(
                frozenset(i for i in range(16) if own[place][1] >> i & 1)
                for own, place in zip(sorted_sets, at, strict=True)
            )
            if setting.meets(setting.account(dropped)):
                return loss
            for reader, own in enumerate(sorted_sets):
                following = (*at[:reader], at[reader] + 1, *at[reader + 1 :])
                if at[reader] + 1 < len(own) and following not in seen:
                    seen.add(following)
                    value = sum(s[p][0] for s, p in zip(sorted_sets, following, strict=True))
                    heapq.heappush(waiting, (value, following))
        return None

    def nested(self) -> Losses:
        """Losses with the chains that reconstruction makes, each dropping what is missed least.

        One for each reader by itself, and one for all readers of the same channels together.
        """
        channels = [
            self.graph.tensors[op.inputs[0]].channels
            for reader in self.losses.readers
            for op in self.graph.operations
            if op.name == reader.operation
        ]
        readers = []
        for reader, own, table in zip(self.losses.readers, channels, self.tables, strict=True):
            sharing = [t for c, t in zip(channels, self.tables, strict=True) if c == own]
            together = [sum(losses) for losses in zip(*sharing, strict=True)]
            chains = [_chain("own", table, table)]
            if len(sharing) > 1:
                chains.append(_chain("space", together, table))
            readers.append(reader.model_copy(update={"chains": tuple(chains)}))
        return self.losses.model_copy(update={"readers": tuple(readers)})


def in_blocks(prices: CostModel, size: int, uneven: float, both: bool = True) -> CostModel:
    """The same prices, but convolutions count channels in blocks: all, or those written."""
    kernels = dict(prices.kernels)
    for kind in ("conv1x1", "conv", "depthwise"):
        way = {"block": size, "uneven": uneven, "both": both}
        kernels[kind] = kernels[kind].model_copy(update=way)
    return prices.model_copy(update={"kernels": kernels})


def _only_convolutions() -> CostModel:
    kernels = dict.fromkeys(KINDS_OF_KERNELS, KernelCost(launch=0, ns_per_byte=0))
    kernels["conv1x1"] = KernelCost(launch=1, ns_per_byte=0, ns_per_mac=1)
    return CostModel(device="cpu", device_name="none", kernels=kernels)


def _chain(origin: str, by: list[float], table: list[float]) -> Chain:
    """A chain that drops what adds least to ``by``, with the losses of ``table``."""
    gone, losses = 0, [table[0]]
    steps: list[tuple[int]] = []
    size = len(table).bit_length() - 1
    for _ in range(size):
        _, unit = min((by[gone | 1 << i], i) for i in range(size) if not gone >> i & 1)
        gone |= 1 << unit
        steps.append((unit,))
        losses.append(table[gone])
    return Chain(origin=origin, steps=tuple(steps), losses=tuple(losses))


def tiny_question(seed: int, *, timed: bool = False) -> TinyQuestion:
    """A question drawn at random.

    Args:
        seed: of all that is drawn.
        timed: limit the time, by prices that count channels in pairs, and odd ones dearer.
    """
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    least = 3 if timed else 2
    size, other = (rng.randint(least, least + 1) for _ in range(2))
    size = min(size, 3) if kind == "twins" else size
    model = Tiny(kind, size, other, rng.randint(1, 2))
    graph = uo.trace(model, torch.zeros(1, 3, 4, 4))
    losses, tables = _with_all_sets(graph, rng)
    limit: dict[str, Any] = {rng.choice(["macs", "parameters"]): rng.uniform(0.6, 0.95)}
    if timed:
        uneven, both = rng.uniform(1, 1.5), rng.random() < 0.6
        model_of_time = in_blocks(_only_convolutions(), 2, uneven, both)
        limit = {"latency": rng.uniform(0.7, 0.95), "cost_model": model_of_time}
    return TinyQuestion(graph, losses, Budget(**limit), tables)


def _with_all_sets(graph: uo.ChannelGraph, rng: random.Random) -> tuple[Losses, list[list[float]]]:
    """Losses with every set of channels in some chain; and by reader the losses of all sets."""
    readers, tables = [], []
    makers = {name: op for op in graph.operations for name in op.outputs}
    for op in graph.operations:
        if not isinstance(op, Layer) or makers[op.inputs[0]].kind == "input":
            continue
        size = len(graph.tensors[op.inputs[0]].channels)
        single = [rng.random() for _ in range(size)]
        both = [[rng.random() for _ in range(size)] for _ in range(size)]
        table = []
        for bits in range(1 << size):
            gone = [i for i in range(size) if bits >> i & 1]
            table.append(sum(single[i] for i in gone) + sum(both[i][j] for i in gone for j in gone))
        chains = []
        for bits in range(1, (1 << size) - 1):
            order = sorted(range(size), key=lambda i: (not bits >> i & 1, rng.random()))
            at = [sum(1 << i for i in order[:done]) for done in range(size + 1)]
            chains.append(
                Chain(
                    origin=f"set {bits}",
                    steps=tuple((i,) for i in order),
                    losses=tuple(table[b] for b in at),
                )
            )
        floors = [
            min(value for bits, value in enumerate(table) if bits.bit_count() == gone)
            for gone in range(size + 1)
        ]
        readers.append(
            Reader(
                operation=op.name,
                parameter=op.weight,
                axis=op.in_axis,
                slices=tuple(range(size)),
                chains=tuple(chains),
                floors=tuple(floors),
            )
        )
        tables.append(table)
    losses = Losses(
        graph_fingerprint=graph.masks_fingerprint, weighting="random", readers=tuple(readers)
    )
    return losses, tables
