"""PQ-trees: all orders in which given sets are consecutive (Booth & Lueker 1976).

A P-node's children may be permuted at will, a Q-node's only reversed. Reading the leaves from left
to right gives one admissible order; the tree stands for all of them. Three liberties are taken with
the original, all for brevity:

* A node knows its elements as the bits of a Python integer, so "full", "empty" and "partial" are
  two bit operations and no labels have to be propagated.
* Leaves that are children of one P-node stay together in one integer (``loose``): elements that no
  set tells apart cost nothing, however many there are.
* Nodes are immutable. A reduction builds new nodes along its path and shares the rest, hence a
  failed one leaves no trace and a copy is free.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class End(enum.Enum):
    """The sentinels pinned to the two ends of an order (``PQTree(..., ends=True)``)."""

    LEFT = "left"
    RIGHT = "right"


class PNode(NamedTuple):
    """Children in any order: the single elements ``loose`` and the subtrees ``children``."""

    mask: int
    loose: int
    children: tuple[PNode | QNode, ...]


class QNode(NamedTuple):
    """Children in this order or its reverse."""

    mask: int
    children: tuple[PNode | QNode, ...]


Node = PNode | QNode


class PQTree:
    """The orders of ``elements`` in which every set reduced so far is consecutive.

    With ``ends=True`` the sentinels ``End.LEFT`` and ``End.RIGHT`` may be members of a set, which
    makes the rest of it a prefix or a suffix.

    >>> tree = PQTree([3, 1, 4, 5], ends=True)
    >>> tree.reduce([1, 5]), tree.reduce([End.LEFT, 4, 5]), tree.reduce([3, 4])
    (True, True, False)
    >>> tree.frontier()
    [4, 5, 1, 3]
    """

    def __init__(self, elements: Iterable[int], ends: bool = False) -> None:
        """Start with all orders of the distinct ``elements``."""
        self._elements = tuple(elements)
        size = len(self._elements)
        self._bits: dict[int | End, int] = {e: i for i, e in enumerate(self._elements, 1)}
        if ends:
            self._bits |= {End.LEFT: 0, End.RIGHT: size + 1}
        inner = ((1 << size) - 1) << 1
        self._root: Node = PNode(inner, inner, ())
        if ends:
            left, right = 1, 1 << (size + 1)
            middle = (self._root,) if inner else ()
            nodes = (PNode(left, left, ()), *middle, PNode(right, right, ()))
            self._root = QNode(left | inner | right, nodes)

    @property
    def elements(self) -> tuple[int, ...]:
        """The elements that are ordered, as given."""
        return self._elements

    def copy(self) -> PQTree:
        """A tree that can be reduced independently of this one, in constant time."""
        twin = object.__new__(PQTree)
        twin._elements, twin._bits, twin._root = self._elements, self._bits, self._root
        return twin

    def mask(self, subset: Iterable[int | End]) -> int:
        """``subset`` as an integer for :meth:`reduce_mask`.

        ``End.LEFT`` is bit 0, element number i (from 1) is bit i, ``End.RIGHT`` the bit behind.
        """
        packed = bytearray((len(self._elements) + 9) // 8)
        for member in subset:
            place = self._bits[member]
            packed[place >> 3] |= 1 << (place & 7)
        return int.from_bytes(packed, "little")

    def reduce(self, subset: Iterable[int | End]) -> bool:
        """Keep only the orders in which ``subset`` is consecutive.

        Returns:
            False if there is none; the tree is then unchanged.
        """
        return self.reduce_mask(self.mask(subset))

    def reduce_mask(self, wanted: int) -> bool:
        """:meth:`reduce` for a set of elements given by :meth:`mask`."""
        if not wanted & (wanted - 1):
            return True
        path: list[tuple[Node, int]] = []
        node = self._root
        while (index := _child_with(node, wanted)) is not None:
            path.append((node, index))
            node = node.children[index]
        if node.mask == wanted:
            return True
        new = _reduce_root(node, wanted)
        if new is None:
            return False
        for parent, index in reversed(path):
            children = (*parent.children[:index], new, *parent.children[index + 1 :])
            new = parent._replace(children=children)
        self._root = new
        return True

    @property
    def root(self) -> Node:
        """The tree itself; element number i (from 1) is bit i of a mask, see :meth:`mask`."""
        return self._root

    def frontier(self) -> list[int]:
        """One admissible order: the original one as far as the tree leaves it free."""
        order: list[int] = []
        size = len(self._elements)
        stack: list[Node | int] = [self._root]
        while stack:
            node = stack.pop()
            if isinstance(node, int):
                if 0 < node <= size:
                    order.append(self._elements[node - 1])
                continue
            if isinstance(node, PNode):
                singles = [(place, place) for place in places_of(node.loose)]
                subtrees = [(_first(child), child) for child in node.children]
                items: list[Node | int] = [
                    item for _, item in sorted([*singles, *subtrees], key=lambda pair: pair[0])
                ]
            else:
                forward = _first(node.children[0]) < _first(node.children[-1])
                items = list(node.children if forward else node.children[::-1])
            stack.extend(reversed(items))
        return order


def places_of(mask: int) -> list[int]:
    """The bits of ``mask``, ascending."""
    return [place for place, bit in enumerate(reversed(f"{mask:b}")) if bit == "1"]


def _first(node: Node) -> int:
    return (node.mask & -node.mask).bit_length() - 1


def _child_with(node: Node, wanted: int) -> int | None:
    """The number of the child that holds all of ``wanted``: the pertinent root is further down."""
    lowest = wanted & -wanted
    for index, child in enumerate(node.children):
        if child.mask & lowest:
            return None if wanted & ~child.mask else index
    return None


def _group(loose: int, children: Sequence[Node]) -> list[Node]:
    """A P-node over these items, as a list: empty without items, the item itself if only one."""
    if not loose and len(children) <= 1:
        return list(children)
    mask = loose
    for child in children:
        mask |= child.mask
    return [PNode(mask, loose, tuple(children))]


def _split(children: Iterable[Node], wanted: int) -> tuple[list[Node], list[Node], list[Node]]:
    """The children that are empty, partial and full."""
    empty: list[Node] = []
    partial: list[Node] = []
    full: list[Node] = []
    for child in children:
        if not child.mask & wanted:
            empty.append(child)
        elif child.mask & ~wanted:
            partial.append(child)
        else:
            full.append(child)
    return empty, partial, full


def _reduce_root(node: Node, wanted: int) -> Node | None:
    """The pertinent root after the reduction (templates P2, P4, P6, Q2, Q3), None if impossible."""
    if isinstance(node, QNode):
        return _reduce_q_root(node, wanted)
    empty, partial, full = _split(node.children, wanted)
    if len(partial) > 2:
        return None
    middle = _group(node.loose & wanted, full)
    if partial:
        sides = [_linear(child, wanted) for child in partial]
        if any(side is None for side in sides):
            return None
        left, right = (sides[0] or []), (sides[1] or [] if len(sides) > 1 else [])
        middle = [QNode(_union(partial) | _union(middle), (*left, *middle, *reversed(right)))]
    return _group(node.loose & ~wanted, [*empty, *middle])[0]


def _union(nodes: Iterable[Node]) -> int:
    mask = 0
    for node in nodes:
        mask |= node.mask
    return mask


def _reduce_q_root(node: QNode, wanted: int) -> QNode | None:
    """Empty children outside, full ones in the middle, a partial one at most on either border."""
    touched = [i for i, child in enumerate(node.children) if child.mask & wanted]
    first, last = touched[0], touched[-1]
    if last - first + 1 != len(touched):
        return None
    children: list[Node] = []
    for index, child in enumerate(node.children):
        if not first <= index <= last or not child.mask & ~wanted:
            children.append(child)
            continue
        line = _linear(child, wanted) if index in (first, last) else None
        if line is None:
            return None
        children.extend(line if index == first else reversed(line))
    return QNode(node.mask, tuple(children))


def _linear(node: Node, wanted: int) -> list[Node] | None:
    """A partial node as a run of Q-children, the empty ones left, the full ones right.

    Templates P3, P5 and Q2 below the root. Only one child may be partial again, so the recursion of
    the textbook is a loop, and deep trees are no problem.
    """
    left: list[Node] = []
    right: list[Node] = []
    while True:
        children = node.children
        if isinstance(node, QNode) and _falls(children, wanted):
            children = children[::-1]
        empty, partial, full = _split(children, wanted)
        if len(partial) > 1:
            return None
        if isinstance(node, PNode):
            left.extend(_group(node.loose & ~wanted, empty))
            right.extend(_group(node.loose & wanted, full))
        else:
            rising = (*empty, *partial, *full)
            if any(child is not other for child, other in zip(children, rising, strict=True)):
                return None
            left.extend(empty)
            right.extend(reversed(full))
        if not partial:
            return left + right[::-1]
        node = partial[0]


def _falls(children: Sequence[Node], wanted: int) -> bool:
    """A Q-node must be reversed to have its empty children left."""
    return not children[-1].mask & wanted or not children[0].mask & ~wanted
