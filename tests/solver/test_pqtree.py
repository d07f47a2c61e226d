"""The PQ-tree against all permutations, and against Tucker's obstructions."""

from __future__ import annotations

import doctest
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upscale_opt.models.instances.obstructions import (
    OBSTRUCTIONS,
    Obstruction,
    obstruction,
)
from upscale_opt.solver.problem import pqtree
from upscale_opt.solver.problem.pqtree import End, Node, PNode, PQTree, places_of

Member = int | End

LONG: tuple[Obstruction, ...] = ("I", "II", "III")
"""The obstructions that there are for every k."""

TREES = {False: (1, 1, 1, 10, 113, 1956), True: (1, 1, 3, 22, 259, 4336)}
"""How many different trees there are of 0, 1, ... elements, without sentinels and with them."""

SETS_OF_ORDERS = {False: (1, 1, 1, 7, 68, 941), True: (1, 1, 3, 19, 190, 2631)}
"""How many different sets of orders they stand for."""


def consecutive(order: tuple[Member, ...], subset: frozenset[Member]) -> bool:
    places = [i for i, member in enumerate(order) if member in subset]
    return not places or places[-1] - places[0] + 1 == len(places)


def all_orders(size: int, ends: bool) -> list[tuple[Member, ...]]:
    orders = itertools.permutations(range(size))
    if not ends:
        return list(orders)
    return [(End.LEFT, *order, End.RIGHT) for order in orders]


@st.composite
def families(draw: st.DrawFn, ends: bool) -> list[frozenset[Member]]:
    members: list[Member] = [*range(6), *(End if ends else ())]
    return draw(st.lists(st.frozensets(st.sampled_from(members), min_size=2), max_size=8))


def bounded(order: Iterable[int], ends: bool) -> tuple[Member, ...]:
    return (End.LEFT, *order, End.RIGHT) if ends else tuple(order)


def orders_of(tree: PQTree, ends: bool) -> list[tuple[Member, ...]]:
    """All orders that the tree of 0, 1, 2, ... stands for, each once."""
    found = list(leaves(tree.root))
    if ends:
        found = [order for order in found if order[0] == 0]
        return [bounded([place - 1 for place in order[1:-1]], ends) for order in found]
    return [tuple(place - 1 for place in order) for order in found]


def leaves(node: Node) -> Iterator[tuple[int, ...]]:
    """The sequences of leaves (as bits of the node's mask) that turning nodes leads to."""
    children = [list(leaves(child)) for child in node.children]
    if isinstance(node, PNode):
        children += [[(place,)] for place in places_of(node.loose)]
        arrangements: Iterable[Sequence[list[tuple[int, ...]]]] = itertools.permutations(children)
    else:
        arrangements = [children, children[::-1]]
    for arrangement in arrangements:
        for choice in itertools.product(*arrangement):
            yield tuple(itertools.chain(*choice))


@settings(max_examples=60, deadline=None)
@given(families(ends=False))
def test_six_elements(family: list[frozenset[Member]]) -> None:
    check_incrementally(6, family, ends=False)


@settings(max_examples=60, deadline=None)
@given(families(ends=True))
def test_six_elements_between_sentinels(family: list[frozenset[Member]]) -> None:
    check_incrementally(6, family, ends=True)


def check_incrementally(size: int, family: list[frozenset[Member]], ends: bool) -> None:
    tree = PQTree(range(size), ends=ends)
    orders = set(all_orders(size, ends))
    for subset in family:
        remaining = {order for order in orders if consecutive(order, subset)}
        before = tree.frontier()
        assert tree.reduce(subset) == bool(remaining)
        if remaining:
            orders = remaining
            assert set(orders_of(tree, ends)) == orders
            assert bounded(tree.frontier(), ends) in orders
        else:
            assert tree.frontier() == before


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("size", range(6))
def test_every_family_in_every_order(size: int, ends: bool) -> None:
    """All families of sets of up to five elements, added one by one in any order.

    Reducing depends on the tree as it stands and on nothing else. So it is enough to take every
    tree that can come about, starting from the one of all orders, and reduce it by every set. Each
    time the tree must stand for those of its orders in which the set is consecutive; if there are
    none, the reduction must fail and leave the tree alone.
    """
    orders = all_orders(size, ends)
    members: list[Member] = [*range(size), *(End if ends else ())]
    start = PQTree(range(size), ends=ends)
    sets = []
    for count in range(len(members) + 1):
        for chosen in itertools.combinations(members, count):
            subset = frozenset(chosen)
            sets.append((start.mask(subset), {o for o in orders if consecutive(o, subset)}))
    stands_for = {start.root: frozenset(orders)}
    assert frozenset(orders_of(start, ends)) == frozenset(orders)
    waiting = [start]
    while waiting:
        tree = waiting.pop()
        here = stands_for[tree.root]
        for mask, met in sets:
            reduced = tree.copy()
            wanted = here & met
            assert reduced.reduce_mask(mask) == bool(wanted)
            if not wanted:
                assert reduced.root is tree.root
                continue
            if reduced.root not in stands_for:
                found = orders_of(reduced, ends)
                assert len(set(found)) == len(found)
                stands_for[reduced.root] = frozenset(found)
                assert bounded(reduced.frontier(), ends) in wanted
                waiting.append(reduced)
            assert stands_for[reduced.root] == wanted
    assert len(stands_for) == TREES[ends][size]
    assert len(set(stands_for.values())) == SETS_OF_ORDERS[ends][size]


def test_orders_are_counted() -> None:
    """A P-node with n children has n! orders, a Q-node two."""
    tree = PQTree(range(6))
    steps = [([0, 1], 240), ([1, 2], 48), ([0, 1, 2, 3], 24), ([3, 4], 8), ([2, 3], 4)]
    for members, count in steps:
        assert tree.reduce(members)
        assert len(set(orders_of(tree, ends=False))) == count


def test_orders_between_sentinels_are_counted() -> None:
    tree = PQTree(range(6), ends=True)
    steps: list[tuple[list[Member], int]]
    steps = [([End.LEFT, 0, 1], 48), ([4, 5], 24), ([1, 2], 4), ([5, End.RIGHT], 1)]
    for members, count in steps:
        assert tree.reduce(members)
        assert len(set(orders_of(tree, ends=True))) == count


CASES = [(name, k) for name in OBSTRUCTIONS for k in (range(1, 9) if name in LONG else (1,))]


@pytest.mark.parametrize(("name", "k"), CASES)
def test_tucker_obstructions_are_minimal_conflicts(name: Obstruction, k: int) -> None:
    """No order meets all rows; without any one row, or any one element, some order does."""
    rows = list(obstruction(name, k))
    elements = sorted(frozenset().union(*rows))
    for listed in (rows, rows[::-1], rows[1::2] + rows[::2]):
        assert not reduces(elements, listed)
    for row in rows:
        assert reduces(elements, [other for other in rows if other != row])
    for element in elements:
        assert reduces(elements, [row - {element} for row in rows])


def test_tucker_obstructions_have_the_sizes_that_tucker_gives() -> None:
    for k in range(1, 9):
        sizes = {"I": (k + 2, k + 2), "II": (k + 3, k + 3), "III": (k + 2, k + 3)}
        sizes |= {"IV": (4, 6), "V": (4, 5)}
        for name in OBSTRUCTIONS:
            rows = obstruction(name, k)
            assert (len(set(rows)), len(frozenset().union(*rows))) == sizes[name]


def reduces(elements: Iterable[int], rows: Iterable[frozenset[int]]) -> bool:
    """Whether some order meets all rows; its tree then has such an order at its leaves."""
    tree = PQTree(elements)
    taken = list(rows)
    if not all(tree.reduce(row) for row in taken):
        return False
    frontier = tuple(tree.frontier())
    assert all(consecutive(frontier, frozenset(row)) for row in taken)
    return True


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


def test_many_sets_over_many_elements() -> None:
    size, rng = 8192, random.Random(0)
    order = list(range(size))
    rng.shuffle(order)
    sets = []
    for _ in range(64):
        start = rng.randrange(size - 1)
        sets.append(order[start : start + rng.randint(2, size)])
    tree = PQTree(range(size))
    assert all(tree.reduce(members) for members in sets)
    frontier = tuple(tree.frontier())
    assert all(consecutive(frontier, frozenset(members)) for members in sets)


def test_documented_examples() -> None:
    assert doctest.testmod(pqtree).failed == 0
