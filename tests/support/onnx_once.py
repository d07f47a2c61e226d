"""What the exporter of ONNX files knows of operators, read once by every process of the tests.

It parses the source of some five hundred functions for every file: two fifths of its time.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import suppress
from typing import Any


def read_operators_once() -> None:
    """Let ``torch.onnx.export`` find them as it did first; nothing is imported before it does."""
    with suppress(ImportError, AttributeError):  # other versions of PyTorch read them as ever
        lazy: Any = importlib.import_module("torch.onnx._internal._lazy_import")
        apis: Any = lazy.onnxscript_apis
        fresh = type(apis)(apis._name)
        apis.get_torchlib_ops = functools.cache(lambda: fresh.get_torchlib_ops())
