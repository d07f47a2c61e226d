"""Files that are forged or newer: whole, with the right checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from comparing import complaint
from safetensors.torch import save as save_tensors
from sample_networks import images, keep
from saved_network import Net, build, call_, refused
from torch import Tensor

import upscale_opt as uo


def forge(
    saved: Path,
    path: Path,
    texts: Callable[[dict[str, str]], None] = lambda metadata: None,
    tensors: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
) -> bytes:
    """The file with other metadata and tensors, and the checksum as docs/saving.md defines it."""
    with safetensors.safe_open(str(saved), "pt") as file:
        metadata: dict[str, str] = file.metadata()
        held: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = metadata.pop("sha256")
    assert forged(metadata, held) == checksum, "it is not as docs/saving.md says"
    texts(metadata)
    tensors(held)
    return save_tensors(held, {**metadata, "sha256": forged(metadata, held)})


def forged(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    names = {torch.float32: "F32", torch.int64: "I64", torch.float64: "F64", torch.uint8: "U8"}
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        entry = [name, names.get(tensor.dtype, "F8_E5M2"), list(tensor.shape)]
        digest.update(json.dumps(entry).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def edit(part: str, change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, str]], None]:
    """A change to the JSON of one part of the metadata."""

    def apply(metadata: dict[str, str]) -> None:
        data = json.loads(metadata[part])
        change(data)
        metadata[part] = json.dumps(data)

    return apply


def replace_text(part: str, text: str) -> Callable[[dict[str, str]], None]:
    return lambda metadata: metadata.update({part: text})


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set what lies at ``path``."""

    def change(data: Any) -> None:
        *keys, last = path.split("/")
        for key in keys:
            data = data[int(key) if isinstance(data, list) else key]
        data[last] = value

    return change


def test_the_forger_makes_good_files(saved: Path, tmp_path: Path, expected: Tensor) -> None:
    path = tmp_path / "forged.safetensors"
    path.write_bytes(forge(saved, path))
    assert torch.equal(call_(uo.load(Net(), path)), expected)


@pytest.mark.parametrize("version", ["2", "1.5", "", "one"])
def test_newer_formats(version: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "newer.safetensors"

    def newer(metadata: dict[str, str]) -> None:
        metadata["format_version"] = version
        metadata["solution"] = metadata["manifest"] = "whatever it may be then"

    message = refused(path, forge(saved, path, newer))
    assert f"format version {version}" in message
    assert "reads 1" in message
    assert "the release that wrote it" in message


def test_newer_solutions(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "newer.safetensors"
    message = refused(path, forge(saved, path, edit("solution", put("schema_version", 2))))
    assert "solution has schema_version 2" in message
    assert "reads 1" in message


@pytest.mark.parametrize("part", ["solution", "manifest"])
@pytest.mark.parametrize("depth", [150, 5000, 200_000])
def test_metadata_nested_absurdly(part: str, depth: int, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    for text in ("[" * depth + "]" * depth, '{"example":' * depth + "1" + "}" * depth):
        refused(path, forge(saved, path, replace_text(part, text)))
    nested = '{"kind":"tuple","items":[' * depth + "]}" * depth

    def deep(metadata: dict[str, str]) -> None:
        data = json.loads(metadata["solution"])
        data["example"] = "HERE"
        metadata["solution"] = json.dumps(data).replace('"HERE"', nested)

    refused(path, forge(saved, path, deep))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("manifest", put("unknown", 1), "unknown: unknown field"),
        ("manifest", put("origin", {}), "not a valid manifest"),
        ("manifest", put("frozen", [1]), "not a valid manifest"),
        ("manifest", put("aliases", {"head.weight": "head.bias"}), "'head.weight' cannot be"),
        ("manifest", put("aliases", {"other": "nowhere"}), "'other' cannot be another name"),
        ("manifest", put("aliases", {"other": "head.bias"}), "holds the tensor 'other'"),
        ("manifest", put("strides", {"head.weight": [1]}), "'head.weight' cannot have the strides"),
        ("manifest", put("strides", {"head.bias": [5]}), "'head.bias' cannot have the strides"),
        ("manifest", put("strides", {"head.bias": [0]}), "'head.bias' cannot have the strides"),
        ("manifest", put("strides", {"head.bias": [-1]}), "not a valid manifest"),
        ("manifest", put("strides", {"head.bias": [2**70]}), "not a valid manifest"),
        ("manifest", put("dtypes", {"head.bias": "complex64"}), "not stored as complex64"),
        ("manifest", put("dtypes", {"head.bias": "load"}), "'load' is not a dtype"),
        ("manifest", put("origin/dtype", "quint8"), "'quint8' is not a dtype"),
        ("manifest", put("origin/dtypes", {"head.bias": "int4"}), "'int4' is not a dtype"),
        ("manifest", put("earlier", [{"solution": {}}]), "not a valid manifest"),
        ("solution", lambda d: d.pop("graph_fingerprint"), "not a valid solution"),
        ("solution", put("status", "perfect"), "not a valid solution"),
        ("solution", put("tensors/stem", "0-99999999999"), "not a valid solution"),
        ("solution", put("tensors/stem", "0,1,99"), "solution is damaged: the layout"),
        ("solution", lambda d: d["reads"].clear(), "solution is damaged"),
        ("solution", lambda d: d["tensors"].clear(), "solution is damaged"),
        ("solution", lambda d: d["parameters"].clear(), "solution is damaged: the index lists"),
        ("solution", put("parameters/stem.weight", {"7": "1"}), "solution is damaged"),
        ("solution", put("reads/1/operand", -1), "solution is damaged"),
        ("solution", put("reads/0/operand", 10**30), ""),
        ("solution", put("example/items/0/dtype", "load"), "example inputs cannot be made"),
        ("solution", put("example/items/0/dtype", "nothing"), "example inputs cannot be made"),
        ("solution", put("example/items/0/dtype", "quint8"), "example inputs cannot be made"),
        ("solution", put("example/items/0/shape", [-1, 3, 4, 4]), "example inputs cannot be made"),
        ("solution", put("example/items/0/shape", [2**62, 3, 4, 4]), "example inputs cannot be"),
        ("solution", put("example/keys", ["x", "y", "z"]), "example inputs cannot be made"),
    ],
)
def test_forged_metadata(
    part: str, change: Callable[[dict[str, Any]], object], words: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "forged.safetensors"
    assert words in refused(path, forge(saved, path, edit(part, change)))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    "dtype",
    [
        *("quint8", "qint8", "qint32", "quint4x2", "quint2x4", "bits8", "bits16", "bits2x4"),
        *("uint1", "uint4", "int4", "float4_e2m1fn_x2", "float", "Tensor", ""),
    ],
)
def test_dtypes_that_no_file_has(dtype: str, size: int, saved: Path, tmp_path: Path) -> None:
    """PyTorch crashes on some of them."""
    raw = torch.zeros(4, size, dtype=torch.uint8)
    data = forge(
        saved,
        tmp_path,
        edit("manifest", put("dtypes", {"head.bias": dtype})),
        lambda tensors: tensors.update({"head.bias": raw}),
    )
    assert f"{dtype!r} is not a dtype" in refused(tmp_path / "forged.safetensors", data)


def test_earlier_stages_are_checked_like_the_last(tmp_path: Path) -> None:
    """And belong to what the checksum is of."""
    once = build()
    graph = uo.trace(once, images(1, 4))
    keep(once.get_parameter("head.weight"), 1, [0, 2, 3])
    path, forged_path = tmp_path / "twice.safetensors", tmp_path / "forged.safetensors"
    uo.save(uo.materialize(once, uo.solve(graph, uo.masks_of(once, graph))), path)
    uo.load(Net(), path)
    stage = "earlier/0"
    for change, words in [
        (put(f"{stage}/solution/reads", []), "solution is damaged"),
        (put(f"{stage}/solution/parameters/stem.weight", {"7": "1"}), "solution is damaged"),
        (put(f"{stage}/solution/schema_version", 2), "solution has schema_version 2"),
        (put(f"{stage}/solution/example/items/0/dtype", "qint8"), "example inputs cannot be made"),
        (put(f"{stage}/origin/dtype", "qint8"), "'qint8' is not a dtype"),
        (put(f"{stage}/unknown", 1), "unknown field"),
    ]:
        assert words in refused(forged_path, forge(path, forged_path, edit("manifest", change)))
    for change in (
        lambda manifest: drop(manifest, "earlier"),
        lambda manifest: manifest["earlier"].append(manifest["earlier"][0]),
        put(f"{stage}/solution/graph_fingerprint", "0"),
        put(f"{stage}/origin/calls", ["0: output ()"]),
        put(f"{stage}/origin/shapes", {"stem.weight": [1]}),
    ):
        forged_path.write_bytes(forge(path, forged_path, edit("manifest", change)))
        message = complaint(uo.MaterializeError, lambda: uo.load(Net(), forged_path))
        assert "another model than its original" in message
    data = path.read_bytes()
    at = data.index(b"graph_fingerprint", data.index(b"earlier")) + 25
    refused(forged_path, data[:at] + (b"1" if data[at : at + 1] == b"0" else b"0") + data[at + 1 :])


@pytest.mark.parametrize("part", ["solution", "manifest"])
def test_parts_that_are_missing_or_no_json(part: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "forged.safetensors"
    for text in ("", "[1, 2", "[]", "\ud7ff\x00"):
        message = refused(path, forge(saved, path, replace_text(part, text)))
        assert f"not a valid {part}" in message
    message = refused(path, forge(saved, path, lambda metadata: drop(metadata, part)))
    assert f"not a valid {part}" in message


def drop(held: dict[str, Any], name: str) -> None:
    del held[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: drop(t, "head.bias"), "the file lacks the tensor 'head.bias'"),
        (lambda t: t.update(extra=torch.zeros(2)), "the file holds the tensor 'extra'"),
        (lambda t: t.update({"head.bias": torch.zeros(5)}), "'head.bias' with the shape (5,)"),
        (lambda t: t.update({"head.bias": torch.zeros(0)}), "'head.bias' with the shape (0,)"),
        (
            lambda t: t.update({"head.bias": torch.zeros(4, dtype=torch.float8_e5m2)}),
            "'head.bias' has the unknown dtype F8_E5M2",
        ),
    ],
)
def test_forged_tensors(
    change: Callable[[dict[str, Tensor]], None], words: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "forged.safetensors"
    message = refused(path, forge(saved, path, tensors=change))
    assert words in message
    assert "(4,)" in message or "shape" not in message


def test_weights_of_whole_numbers(saved: Path, tmp_path: Path) -> None:
    """Nonsense, but such as the file says."""
    path = tmp_path / "forged.safetensors"
    integers = torch.arange(4)
    path.write_bytes(forge(saved, path, tensors=lambda t: t.update({"head.bias": integers})))
    assert torch.equal(uo.load(Net(), path).get_parameter("head.bias"), integers)
