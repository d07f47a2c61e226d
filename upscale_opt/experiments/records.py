"""A folder for records of finished work, so that what was interrupted can go on."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

from upscale_opt.errors import SchemaError
from upscale_opt.ir.base import Document

Kept = TypeVar("Kept", bound=Document)


class Store(Generic[Kept]):
    """Records, each in a JSON file of its own, in one folder.

    A file is whole, or it is not there. What cannot be read as such a record all the same (it is
    damaged, or of another version) counts as not there; when its work is done again, it is written
    anew.

    Args:
        folder: where the files lie; made with the first of them.
        kind: the class of the records.
    """

    def __init__(self, folder: Path, kind: type[Kept]) -> None:
        self.folder = folder
        self._kind = kind

    def file(self, name: str) -> Path:
        """The path of the record of that name."""
        return self.folder / f"{name.replace('/', '--')}.json"

    def find(self, name: str) -> Kept | None:
        """The record of that name, if it is there."""
        try:
            return self._kind.load(self.file(name))
        except SchemaError:
            return None

    def put(self, name: str, record: Kept) -> None:
        """Keep a record, instead of an earlier one of that name.

        Raises:
            OSError: if the file cannot be written.
        """
        record.save(self.file(name))
