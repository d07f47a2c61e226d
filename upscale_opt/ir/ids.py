"""Lists of channel numbers, written as runs: ``[0, 1, 2, 3, 7, 5]`` is ``"0-3,7,5"`` in JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

MAX_LENGTH = 4_000_000
"""No list may be longer: a short hostile text such as ``"0-99999999999"`` must not fill memory."""

_PART = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?\Z")


def format_ids(ids: Iterable[int]) -> str:
    """The ascending runs of ``ids``, in sequence.

    >>> format_ids([0, 1, 2, 3, 7, 5, 5])
    '0-3,7,5,5'
    >>> format_ids([])
    ''
    """
    parts: list[str] = []
    first = last = -1
    for value in ids:
        if value == last + 1 and last >= 0:
            last = value
            continue
        if last >= 0:
            parts.append(_format_run(first, last))
        first = last = value
    if last >= 0:
        parts.append(_format_run(first, last))
    return ",".join(parts)


def _format_run(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first},{last}" if last == first + 1 else f"{first}-{last}"


def parse_ids(text: str) -> tuple[int, ...]:
    """Inverse of :func:`format_ids`.

    Raises:
        ValueError: if ``text`` is not a list of runs, or longer than :data:`MAX_LENGTH`.

    >>> parse_ids("0-3,7,5,5")
    (0, 1, 2, 3, 7, 5, 5)
    """
    ids: list[int] = []
    for part in text.split(",") if text else ():
        match = _PART.match(part)
        if match is None:
            raise ValueError(f"not a run of channels: {part[:40]!r} (write runs as '0-3,7')")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ValueError(f"a run must ascend: {part!r}")
        if len(ids) + last - first + 1 > MAX_LENGTH:
            raise ValueError(f"more than {MAX_LENGTH:,} channels in one list")
        ids.extend(range(first, last + 1))
    return tuple(ids)


def _validate(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        return parse_ids(value)
    if hasattr(value, "tolist"):  # an array or a tensor
        value = value.tolist()
    if isinstance(value, (list, tuple, range, frozenset)):
        ids = tuple(value)
        kinds = set(map(type, ids))
        if kinds - {int} and bool not in kinds and all(issubclass(k, Integral) for k in kinds):
            ids, kinds = tuple(map(int, ids)), {int}  # they are NumPy's
        if not ids or (kinds == {int} and min(ids) >= 0):
            return ids
    raise ValueError("expected runs of channels such as '0-3,7', or a list of non-negative ints")


_SCHEMA: dict[str, Any] = {
    "type": "string",
    "examples": ["0-63,70"],
    "description": "channel numbers, as runs",
}

Ids = Annotated[
    tuple[int, ...],
    PlainValidator(_validate),
    PlainSerializer(format_ids, return_type=str, when_used="json"),
    WithJsonSchema(_SCHEMA),
]
"""A tuple of non-negative ints in Python, a string of runs in JSON."""


def _validate_set(value: Any) -> frozenset[int]:
    ids = _validate(value)
    distinct = frozenset(ids)
    if len(distinct) < len(ids):
        raise ValueError("lists a channel twice")
    return distinct


IdSet = Annotated[
    frozenset[int],
    PlainValidator(_validate_set),
    PlainSerializer(lambda ids: format_ids(sorted(ids)), return_type=str, when_used="json"),
    WithJsonSchema(_SCHEMA),
]
"""A set of non-negative ints in Python, a string of runs in JSON, ascending when written."""
