"""One order for all layers that read the same channels: what constrained pruning would keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.reconstruction.elimination import Elimination, Quadratic, at_once
from upscale_opt.reconstruction.sites import Site

Weighed = Callable[[Tensor], Tensor]
"""From squared deviations to comparable losses."""

Part = tuple[Site, Quadratic, Weighed]


def orders_together(parts: Sequence[Part]) -> dict[str, Tensor]:
    """For every weight that shares channels with others, the order in which its units go.

    Greedy: each time the channel goes that adds least to the sum over all its readers, where each
    has its other weights refitted. Layers of groups or heads follow the order of the others, group
    by group. A layer that reads its channels alone is left out: its own order is the order.

    Args:
        parts: the layers.
    """
    return {
        site.weight: order
        for component in _components(parts)
        if len(component) > 1
        for site, order in _component(component)
    }


def _components(parts: Sequence[Part]) -> list[list[Part]]:
    """The layers that have channels in common, directly or not."""
    sets = UnionFind()
    owner: dict[int, int] = {}
    for number, (site, _, _) in enumerate(parts):
        sets.join([number])
        for entry in site.free_entries:
            sets.join([owner.setdefault(site.channels[entry], number), number])
    found: dict[int, list[Part]] = {}
    for number, part in enumerate(parts):
        found.setdefault(sets.find(number), []).append(part)
    return list(found.values())


def _component(parts: Sequence[Part]) -> list[tuple[Site, Tensor]]:
    """The orders of layers that have channels in common."""
    single = [(s, q, w) for s, q, w in parts if s.groups == s.parts == 1]
    ids = list(dict.fromkeys(site.channels[e] for site, _, _ in single for e in site.free_entries))
    number = {id: at for at, id in enumerate(ids)}
    readers = [
        (Elimination(q), w, torch.tensor([number[s.channels[e]] for e in s.free_entries]))
        for s, q, w in single
    ]
    spent = [0.0] * len(readers)
    left = torch.ones(len(ids), dtype=torch.bool)
    rank = torch.zeros(len(ids), dtype=torch.int64)
    done = 0
    while done < len(ids):
        price = torch.zeros(len(ids), dtype=torch.float64)
        extra: list[Tensor] = []
        for (going, weighed, channel), own in zip(readers, spent, strict=True):
            if not going.left:
                extra.append(torch.zeros(0))
                continue
            scores = going.scores()[0, 0]
            alive = torch.isfinite(scores)
            where = channel[going.units[0, 0]]
            if going.left == 1:  # which leaves nothing
                change = weighed(torch.tensor([own + 1e300], dtype=torch.float64)).expand(
                    len(scores)
                )
            else:
                change = weighed(scores.masked_fill(~alive, 0) + own)
            change = change - weighed(torch.tensor([own], dtype=torch.float64))
            price.index_add_(0, where[alive], change[alive].clamp(min=0))
            extra.append(scores)
        price[~left] = torch.inf
        count = at_once(len(ids) - done, len(ids) - done)
        picked = price.topk(count, largest=False, sorted=True).indices
        rank[picked] = torch.arange(done, done + count)
        left[picked] = False
        done += count
        goes = torch.zeros(len(ids), dtype=torch.bool)
        goes[picked] = True
        for at, (going, _, channel) in enumerate(readers):
            if not going.left:
                continue
            places = torch.nonzero(
                goes[channel[going.units[0, 0]]] & torch.isfinite(extra[at])
            ).flatten()
            if len(places):
                spent[at] += float(extra[at][places].sum())
                going.drop(places[None, None])
    found = []
    for site, quadratic, _ in parts:
        channels = [site.channels[entry] for entry in site.free_entries]
        ranks = torch.tensor([int(rank[number[c]]) if c in number else -1 for c in channels])
        by_part = ranks.reshape(site.groups, site.parts, quadratic.units)
        found.append((site, by_part.argsort(dim=2, stable=True)))
    return found
