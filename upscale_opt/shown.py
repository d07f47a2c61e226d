"""Short texts of objects that hold much: what is short itself, and of the rest how much it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sized
from typing import Any

_LONGEST = 60
"""Characters of a field's value, beyond which it is counted instead."""


def shown(name: str, fields: Iterable[tuple[str, object]]) -> str:
    """``Name(field=value, …)``, with short values."""
    return f"{name}({', '.join(f'{field}={short(value)}' for field, value in fields)})"


def short(value: object) -> str:
    """``value`` as Python writes it if that is short, else what it is or how many it holds."""
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…")
    counted = f"<{type(value).__name__}>"
    if isinstance(value, Sized):
        counted = f"<{len(value):,} item{'' if len(value) == 1 else 's'}>"
    if isinstance(value, Sized) and len(value) > _LONGEST // 3:
        return counted
    text = repr(value)
    return text if len(text) <= _LONGEST else counted


class Shown:
    """A dataclass whose text is short; fields at their defaults are left out."""

    def __repr__(self) -> str:
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self)  # type: ignore[arg-type]
        held = ((field, getattr(self, field.name)) for field in fields if field.repr)
        return shown(
            type(self).__name__,
            ((field.name, value) for field, value in held if value is not field.default),
        )
