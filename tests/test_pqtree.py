"""The PQ-tree against all permutations, and against Tucker's obstructions."""

from __future__ import annotations

import doctest
import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upscale_opt.solver import pqtree
from upscale_opt.solver.pqtree import End, PQTree

Member = int | End


def consecutive(order: tuple[Member, ...], subset: frozenset[Member]) -> bool:
    places = [i for i, member in enumerate(order) if member in subset]
    return places[-1] - places[0] + 1 == len(places)


def all_orders(size: int, ends: bool) -> list[tuple[Member, ...]]:
    orders = itertools.permutations(range(size))
    if not ends:
        return list(orders)
    return [(End.LEFT, *order, End.RIGHT) for order in orders]


@st.composite
def families(draw: st.DrawFn, ends: bool) -> tuple[int, list[frozenset[Member]]]:
    size = draw(st.integers(1, 5))
    members = [*range(size), *(End if ends else ())]
    subsets = st.frozensets(st.sampled_from(members), min_size=1)
    return size, draw(st.lists(subsets, max_size=8))


def check_incrementally(size: int, family: list[frozenset[Member]], ends: bool) -> None:
    tree = PQTree(range(size), ends=ends)
    orders = all_orders(size, ends)
    for subset in family:
        remaining = [order for order in orders if consecutive(order, subset)]
        before = tree.frontier()
        assert tree.reduce(subset) == bool(remaining)
        if remaining:
            orders = remaining
        else:
            assert tree.frontier() == before
        frontier = tuple(tree.frontier())
        assert ((End.LEFT, *frontier, End.RIGHT) if ends else frontier) in orders
    assert [order for order in all_orders(size, ends) if admits(tree, order)] == orders


def admits(tree: PQTree, order: tuple[Member, ...]) -> bool:
    """Whether the tree stands for ``order``: all its neighbours can stay neighbours."""
    copy = tree.copy()
    return all(copy.reduce(pair) for pair in itertools.pairwise(order))


@settings(max_examples=300, deadline=None)
@given(families(ends=False))
def test_agrees_with_all_permutations(case: tuple[int, list[frozenset[Member]]]) -> None:
    check_incrementally(*case, ends=False)


@settings(max_examples=300, deadline=None)
@given(families(ends=True))
def test_agrees_with_all_permutations_between_sentinels(
    case: tuple[int, list[frozenset[Member]]],
) -> None:
    check_incrementally(*case, ends=True)


def test_every_family_of_three_subsets_of_four_elements() -> None:
    subsets = [
        frozenset(subset) for size in (2, 3) for subset in itertools.combinations(range(4), size)
    ]
    orders = all_orders(4, ends=False)
    for family in itertools.permutations(subsets, 3):
        tree = PQTree(range(4))
        feasible = all(tree.reduce(subset) for subset in family)
        assert feasible == any(all(consecutive(o, s) for s in family) for o in orders)


def tucker_families() -> dict[str, list[set[int]]]:
    """The minimal matrices without the consecutive-ones property (Tucker 1972), rows as sets."""
    families: dict[str, list[set[int]]] = {}
    for k in range(1, 6):
        chain = [{i, i + 1} for i in range(k + 1)]
        families[f"I-{k}"] = [*chain, {0, k + 1}]
        everything = set(range(k + 3))
        families[f"II-{k}"] = [*chain, everything - {0}, everything - {k + 1}]
        inner = set(range(1, k + 1)) | {k + 2}
        families[f"III-{k}"] = [*chain, inner]
    families["IV"] = [{0, 1}, {2, 3}, {4, 5}, {0, 2, 4}]
    families["V"] = [{0, 1}, {0, 1, 2, 3}, {2, 3}, {0, 2, 4}]
    return families


@pytest.mark.parametrize("name", tucker_families())
def test_tucker_obstructions_are_minimal_conflicts(name: str) -> None:
    rows = tucker_families()[name]
    elements = sorted(set().union(*rows))
    tree = PQTree(elements)
    assert not all(tree.reduce(row) for row in rows)
    for left_out in range(len(rows)):
        tree = PQTree(elements)
        assert all(tree.reduce(row) for i, row in enumerate(rows) if i != left_out)


def test_sentinels_make_prefixes_and_suffixes() -> None:
    tree = PQTree(range(6), ends=True)
    assert tree.reduce([End.LEFT, 4, 5])
    assert tree.reduce([End.RIGHT, 0])
    assert not tree.reduce([End.LEFT, 3])
    assert not tree.reduce([End.LEFT, End.RIGHT, 1])
    assert tree.reduce([5, 2, 3])
    assert tree.frontier() == [4, 5, 2, 3, 1, 0]


@pytest.mark.parametrize("ends", [False, True])
def test_few_elements(ends: bool) -> None:
    assert PQTree([], ends=ends).frontier() == []
    tree = PQTree([7], ends=ends)
    assert tree.reduce([7])
    assert tree.reduce([])
    assert tree.frontier() == [7]


def test_unknown_elements_are_refused() -> None:
    with pytest.raises(KeyError):
        PQTree(range(3)).reduce([2, 3])
    with pytest.raises(KeyError):
        PQTree(range(3)).reduce([End.LEFT, 0])


def test_frontier_keeps_the_original_order_where_it_is_free() -> None:
    tree = PQTree([5, 3, 8, 1, 9])
    assert tree.frontier() == [5, 3, 8, 1, 9]
    assert tree.reduce([8, 1])
    assert tree.frontier() == [5, 3, 8, 1, 9]
    assert tree.reduce([5, 1])
    assert tree.frontier() == [5, 1, 8, 3, 9]


def test_copies_are_independent() -> None:
    tree = PQTree(range(4))
    twin = tree.copy()
    assert twin.reduce([0, 3])
    assert tree.frontier() == [0, 1, 2, 3]
    assert twin.frontier() == [0, 3, 1, 2]
    assert tree.reduce([0, 1])
    assert tree.reduce([0, 2])
    assert not tree.reduce([0, 3])


def test_deep_trees() -> None:
    size = 1500
    growing, shrinking = PQTree(range(size)), PQTree(range(size))
    for length in range(2, size):
        assert growing.reduce(range(length))
    for length in range(size, 500, -1):
        assert shrinking.reduce(range(length))
    assert growing.frontier() == shrinking.frontier() == list(range(size))
    assert growing.reduce([0, size - 1])


def test_many_sets_over_many_elements_are_fast() -> None:
    size, rng = 8192, random.Random(0)
    order = list(range(size))
    rng.shuffle(order)
    sets = []
    for _ in range(64):
        start = rng.randrange(size - 1)
        sets.append(order[start : start + rng.randint(2, size)])
    began = time.perf_counter()
    tree = PQTree(range(size))
    assert all(tree.reduce(members) for members in sets)
    frontier = tuple(tree.frontier())
    assert time.perf_counter() - began < 2
    assert all(consecutive(frontier, frozenset(members)) for members in sets)


def test_documented_examples() -> None:
    assert doctest.testmod(pqtree).failed == 0
