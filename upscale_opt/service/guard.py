"""JSON from strangers: looked at before it is read, and read within limits."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from upscale_opt.service.errors import ServiceError
from upscale_opt.service.settings import Settings

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"?')
_LIST = re.compile(r"[0-9,\-]+\Z")
_RUN = re.compile(r"(\d{1,10})-(\d{1,10})")
_OTHERS = bytes(byte for byte in range(256) if byte not in b'"[]{}')


def read_json(body: bytes, settings: Settings) -> Any:
    """The JSON in ``body``.

    Raises:
        ServiceError: 422, if it is no JSON, nested too deeply, has numbers of too many digits or
            such as NaN, or lists of channels that would fill memory.
    """
    if depth(body) > settings.max_depth:
        raise _refused("too_deep", f"the JSON is nested deeper than {settings.max_depth} levels")
    most = settings.max_digits

    def whole(text: str) -> int:
        if len(text.lstrip("-")) > most:
            raise _refused(
                "huge_number", f"a number of {len(text)} digits; at most {most} are read"
            )
        return int(text)

    def real(text: str) -> float:
        if len(text) > 2 * most + 10:
            raise _refused("huge_number", f"a number of {len(text)} characters")
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise _refused("huge_number", f"the number {text[:40]} is too large")
        return value

    def constant(text: str) -> float:
        raise _refused("not_json", f"{text} is no JSON number")

    try:
        data = json.loads(body.decode(), parse_int=whole, parse_float=real, parse_constant=constant)
    except UnicodeDecodeError:
        raise _refused("not_json", "the body is not UTF-8") from None
    except RecursionError:
        raise _refused("too_deep", "the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _refused("not_json", f"the body is not JSON: {error}") from None
    entries = _check_texts(data)
    if entries > settings.max_entries:
        raise _refused(
            "too_large",
            f"the lists of channels have {entries:,} entries; at most "
            f"{settings.max_entries:,} are allowed",
        )
    return data


def depth(body: bytes) -> int:
    """The depth to which the brackets in ``body`` are nested; nothing is read for that."""
    if b"\\" in body:
        body = _ESCAPED.sub(b"", body)
    brackets = _STRING.sub(b"", body.translate(None, _OTHERS))
    if not brackets:
        return 0
    codes = np.frombuffer(brackets, dtype=np.uint8)
    steps = np.where((codes == ord("[")) | (codes == ord("{")), 1, -1)
    return max(0, int(np.cumsum(steps).max()))


def _check_texts(data: Any) -> int:
    """Count the channels in all runs of ``data``; texts that are no Unicode are refused."""
    total = 0
    stack = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            for key in value:
                _check_text(key)
            stack.extend(value.values())
        elif isinstance(value, list):
            total += len(value)
            stack.extend(value)
        elif isinstance(value, str):
            _check_text(value)
            if _LIST.match(value):
                runs = ((int(first), int(last)) for first, last in _RUN.findall(value))
                total += 1 + value.count(",") + sum(max(0, last - first) for first, last in runs)
    return total


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _refused("not_json", "a text has half of a surrogate pair in it") from None
    if "\0" in text:
        raise _refused("not_json", "a text has a NUL character in it")


def _refused(code: str, message: str) -> ServiceError:
    return ServiceError(422, code, message, "body")
