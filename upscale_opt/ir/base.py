"""The base of all documents (graph, masks, solution): versions, JSON, files and their errors."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from upscale_opt.errors import DocumentError, SchemaError
from upscale_opt.shown import shown

SCHEMA_VERSION = 1
"""The version of the JSON this package writes, and the only one it reads."""


class Record(BaseModel):
    """A frozen part of a document; unknown fields are refused by name.

    Where JSON has another name for a field than Python, both are read, and JSON's is written.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True
    )

    def __repr__(self) -> str:
        """The fields that are not at their defaults; of long ones, how many they hold."""
        known = type(self).model_fields
        held = ((name, getattr(self, name)) for name in known)
        kept = (
            (name, value)
            for name, value in held
            if value != known[name].get_default(call_default_factory=True)
        )
        return shown(type(self).__name__, kept)

    def __str__(self) -> str:
        return repr(self)


class Document(Record):
    """A top-level JSON document.

    Attributes:
        schema_version: the version of the format; anything but :data:`SCHEMA_VERSION` is refused.
    """

    what: ClassVar[str] = "document"
    article: ClassVar[str] = "a "

    schema_version: int = SCHEMA_VERSION

    if not TYPE_CHECKING:  # which knows the fields better

        def __init__(self, /, **fields: Any) -> None:
            """Make a document of Python's values.

            Raises:
                DocumentError: if they make no valid document.
            """
            try:
                super().__init__(**fields)
            except SchemaError as error:
                raise DocumentError(str(error)) from None

        # Else Pydantic would call it for what it reads from JSON, and for parts of documents, too.
        __init__.__pydantic_base_init__ = True

    @model_validator(mode="wrap")
    @classmethod
    def _validated(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse a version this package does not know, then whatever Pydantic refuses."""
        version = data.get("schema_version", SCHEMA_VERSION) if isinstance(data, dict) else None
        if version is not None and version != SCHEMA_VERSION:
            raise SchemaError(
                f"{cls.what} has schema_version {version}, but this version of upscale-opt reads "
                f"{SCHEMA_VERSION}; use the release that wrote it"
            )
        try:
            return handler(data)
        except ValidationError as error:
            raise cls._invalid(error) from None

    @classmethod
    def _invalid(cls, error: ValidationError) -> SchemaError:
        return SchemaError(f"not {cls.article}valid {cls.what}: {first_problem(error)}")

    @classmethod
    def require(cls, given: object) -> None:
        """Refuse what is no such document: a dict, say, or another argument.

        Raises:
            DocumentError: naming what was given.
        """
        if not isinstance(given, cls):
            raise DocumentError(
                f"expected {cls.article}{cls.what} ({cls.__name__}), but got "
                f"{'None' if given is None else f'an object of class {type(given).__name__}'}"
            )

    def to_json(self) -> str:
        """The document as JSON to read: no fields at their defaults, short things on one line."""
        return _pretty(self.model_dump(mode="json", exclude_defaults=True), 0) + "\n"

    @model_serializer(mode="wrap")
    def _with_version(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"schema_version": self.schema_version, **handler(self)}

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            SchemaError: if ``text`` is not valid JSON of this kind and version.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:  # it is no JSON
            raise cls._invalid(error) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to ``path``, whole or not at all.

        Raises:
            OSError: if the file cannot be written.
        """
        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a document from ``path``.

        Raises:
            SchemaError: if the file cannot be read or is not a valid document.
        """
        try:
            return cls.from_json(Path(path).read_bytes())
        except OSError as error:
            raise SchemaError(f"cannot read {cls.what} {path}: {error.strerror}") from None
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from None


def first_problem(error: ValidationError) -> str:
    """The first of Pydantic's complaints, in one line."""
    problems = error.errors(include_url=False, include_context=False)
    where = ".".join(str(part) for part in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = problems[0]["msg"]
    if problems[0]["type"] == "extra_forbidden":
        message = "unknown field"
    return f"{where}: {message}{more}" if where else f"{message}{more}"


_WIDTH = 110


def _pretty(value: Any, depth: int) -> str:
    """JSON with whatever fits on a line on one line."""
    line = json.dumps(value, ensure_ascii=False)
    pad = " " * depth
    if not isinstance(value, (dict, list)) or (len(line) + depth <= _WIDTH and depth > 0):
        return line
    if isinstance(value, list):
        inner = [_pretty(item, depth + 1) for item in value]
        return "[\n" + ",\n".join(f"{pad} {item}" for item in inner) + f"\n{pad}]"
    inner = [f"{json.dumps(key)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
    return "{\n" + ",\n".join(f"{pad} {item}" for item in inner) + f"\n{pad}}}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one.

    Raises:
        OSError: if the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
