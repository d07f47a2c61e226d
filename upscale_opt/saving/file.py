"""The file of a pruned model: a safetensors file with the solution in its metadata.

Reading one runs no code from it: safetensors holds plain numbers, and the metadata are JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import safetensors
import torch
from pydantic import Field, ValidationError
from safetensors import torch as safetensors_torch

from upscale_opt.errors import SchemaError
from upscale_opt.ir.base import Record, first_problem
from upscale_opt.ir.solution import Solution
from upscale_opt.materializing.origin import Dtype, Modes, Origin, Stage
from upscale_opt.saving.module_settings import Settings
from upscale_opt.tracing.examples import DTYPES, dtype_name

FORMAT = "upscale-opt"
VERSION = 1
"""The version of the file format that this package writes, and the only one it reads."""

Stride = Annotated[int, Field(ge=0, lt=2**62)]


class Manifest(Record):
    """The facts about the model that the file holds besides tensors and solution.

    Attributes:
        package: the version of this package that wrote it.
        torch: the version of PyTorch.
        origin: what the model was made of, and how.
        modes: the modes of its modules.
        frozen: parameters that do not require a gradient.
        aliases: further names of tensors that have several: the name they are stored by.
        strides: of tensors that are not contiguous.
        dtypes: of tensors that are stored as bytes, as safetensors has no such dtype.
        settings: of the modules that the model calls.
        earlier: the prunings before the last one, the first one first.
    """

    package: str
    torch: str
    origin: Origin
    modes: Modes
    frozen: tuple[str, ...] = ()
    aliases: dict[str, str] = Field(default_factory=dict)
    strides: dict[str, tuple[Stride, ...]] = Field(default_factory=dict)
    dtypes: dict[str, Dtype] = Field(default_factory=dict)
    settings: tuple[Settings, ...] = ()
    earlier: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Contents:
    """All that a file holds.

    Attributes:
        solution: what the model was made by, in the last pruning.
        manifest: the rest about it.
        tensors: on the CPU, of any dtype; where several names share one, by one of them.
    """

    solution: Solution
    manifest: Manifest
    tensors: dict[str, torch.Tensor]


def pack(contents: Contents) -> bytes:
    """The file's bytes. How tensors are stored (strides, dtypes) is added to the manifest."""
    stored = {name: _as_stored(tensor) for name, tensor in contents.tensors.items()}
    manifest = contents.manifest.model_copy(
        update={
            "strides": {
                name: tensor.stride()
                for name, tensor in contents.tensors.items()
                if tensor.stride() != _usual(tensor) and _dense(tensor.shape, tensor.stride())
            },
            "dtypes": {
                name: dtype_name(tensor.dtype)
                for name, tensor in contents.tensors.items()
                if tensor.dtype not in _NAMES
            },
        }
    )
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "solution": contents.solution.model_dump_json(exclude_defaults=True),
        "manifest": manifest.model_dump_json(exclude_defaults=True),
    }
    entries = {
        name: _Entry(_NAMES[tensor.dtype], list(tensor.shape), _bytes(tensor))
        for name, tensor in stored.items()
    }
    metadata["sha256"] = _checksum(metadata, entries)
    return safetensors_torch.save(stored, metadata)


def unpack(data: bytes) -> Contents:
    """Unpack what :func:`pack` packed.

    Raises:
        SchemaError: if ``data`` is anything else, damaged, or of another version.
    """
    try:
        # Untyped; its data may be read and written, and are ours.
        deserialize: Any = safetensors.deserialize
        entries = {
            name: _Entry(entry["dtype"], list(entry["shape"]), entry["data"])
            for name, entry in deserialize(data)
        }
    except safetensors.SafetensorError as error:
        text = str(error).rpartition("deserializing: ")[2]
        raise SchemaError(f"not a safetensors file, or a truncated one ({text})") from None
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        raise SchemaError(
            "a safetensors file, but not one that upscale_opt.save wrote: it has no solution"
        )
    if metadata.get("format_version") != str(VERSION):
        raise SchemaError(
            f"the file has format version {metadata.get('format_version')}, but this version of "
            f"upscale-opt reads {VERSION}; use the release that wrote it"
        )
    if metadata.get("sha256") != _checksum(metadata, entries):
        raise SchemaError("the file is damaged: its contents do not have the checksum it names")
    solution = Solution.from_json(metadata.get("solution", ""))
    try:
        manifest = Manifest.model_validate_json(metadata.get("manifest", ""))
    except ValidationError as error:
        raise SchemaError(f"not a valid manifest: {first_problem(error)}") from None
    except SchemaError as error:  # of a solution within
        raise SchemaError(f"not a valid manifest: {error}") from None
    with torch.device("cpu"):  # whatever the default device is
        return Contents(solution, manifest, _tensors(entries, manifest))


@dataclass(frozen=True)
class _Entry:
    """A tensor as safetensors stores it."""

    dtype: str
    shape: list[int]
    data: Any  # bytes, a bytearray or an array of bytes


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes that every version of safetensors knows; others are stored as bytes."""

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy; bytes along one more axis if safetensors has no such dtype."""
    copied = tensor.clone(memory_format=torch.contiguous_format)
    if copied.dtype in _NAMES:
        return copied
    return copied.reshape(-1).view(torch.uint8).reshape(*copied.shape, copied.element_size())


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _usual(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of a contiguous tensor; exactly, as kernels look even at those of single rows."""
    return torch.empty(tensor.shape, device="meta").stride()


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether the elements lie in memory without gaps, in the order of some axes."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _checksum(metadata: Mapping[str, str], entries: Mapping[str, _Entry]) -> str:
    """SHA-256 of everything in the file but the checksum itself."""
    texts = sorted((key, text) for key, text in metadata.items() if key != "sha256")
    digest = hashlib.sha256(json.dumps(texts).encode())
    for name, entry in sorted(entries.items()):
        digest.update(json.dumps([name, entry.dtype, entry.shape]).encode())
        digest.update(entry.data)
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of what is known to be a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return found


def _tensors(entries: Mapping[str, _Entry], manifest: Manifest) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in entries.items():
        stored = _DTYPES.get(entry.dtype)
        if stored is None:
            raise SchemaError(f"tensor {name!r} has the unknown dtype {entry.dtype}")
        dtype, shape = stored, entry.shape
        if name in manifest.dtypes:
            own = DTYPES[manifest.dtypes[name]]
            if stored != torch.uint8 or shape[-1:] != [own.itemsize]:
                raise SchemaError(f"tensor {name!r} is not stored as {manifest.dtypes[name]}")
            dtype, shape = own, shape[:-1]
        # A copy lies where PyTorch wants it; kernels may round otherwise on memory not aligned.
        flat = torch.frombuffer(entry.data, dtype=dtype) if entry.data else torch.empty(0).to(dtype)
        strides = manifest.strides.get(name)
        if strides is None:
            tensors[name] = flat.reshape(shape).clone()
        elif len(strides) == len(shape) and _dense(tuple(shape), strides):
            tensor = torch.empty_strided(shape, strides, dtype=dtype)
            tensors[name] = tensor.copy_(flat.reshape(shape))
        else:
            raise SchemaError(f"tensor {name!r} cannot have the strides {strides}")
    for alias, name in manifest.aliases.items():
        if alias in entries or name not in entries:
            raise SchemaError(f"tensor {alias!r} cannot be another name of {name!r}")
    return tensors
