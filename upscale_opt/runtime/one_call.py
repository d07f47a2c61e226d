"""Functions that a captured program calls as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import fx

Function = TypeVar("Function", bound=Callable[..., Any])


def one_call(function: Function) -> Function:
    """Let :mod:`torch.fx` record ``function`` instead of looking into it."""

    @wraps(function)
    def recorded(*args: Any) -> Any:
        proxy = next((arg for arg in args if isinstance(arg, fx.Proxy)), None)
        if proxy is None:
            return function(*args)
        return proxy.tracer.create_proxy("call_function", recorded, args, {})

    return recorded  # type: ignore[return-value]
