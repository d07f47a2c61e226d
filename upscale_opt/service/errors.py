"""Errors of the service, and what the client hears of them."""

from __future__ import annotations

from typing import Any

from upscale_opt.errors import UpscaleError

LONGEST = 600
"""Characters of a message: names in it may be as long as a request."""


class ServiceError(UpscaleError):
    """A request that is not served, with the status and body of the answer.

    Args:
        status: the HTTP status.
        code: the kind of error in one word, for programs.
        message: what is wrong, and the way out.
        where: the part of the request at fault.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self, status: int, code: str, message: str, where: str = "", retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.where = where
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return error_body(self.code, str(self), self.where)


class StorageError(UpscaleError):
    """The storage of jobs or their queue cannot be reached, or does not take anything more."""


class CorruptError(StorageError):
    """The storage is there, but what is in it is not what was written."""


def error_body(code: str, message: str, where: str = "") -> dict[str, Any]:
    """The JSON of every error."""
    return {"error": {"code": code, "message": shortened(message), "where": shortened(where)}}


def shortened(text: str) -> str:
    """The text in one line of reasonable length, of characters that UTF-8 has."""
    line = " ".join(text.encode(errors="replace").decode().split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
