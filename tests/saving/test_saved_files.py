"""Files that are damaged or foreign, and how files are written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors
import torch
from comparing import complaint, same_state, state
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from saved_network import Net, build, call_, refused
from torch import Tensor

import upscale_opt as uo
from upscale_opt.materializing.marks import MARK

# Damaged files.


def test_every_truncated_file_is_refused(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for length in [*range(0, len(data), 17), *range(300), len(data) - 1]:
        refused(tmp_path / "short.safetensors", data[:length])
    assert "truncated" in refused(tmp_path / "short.safetensors", data[:-1])


def test_a_longer_file_is_refused(saved: Path, tmp_path: Path) -> None:
    for more in (b"\0", b"x" * 1000, saved.read_bytes()):
        refused(tmp_path / "long.safetensors", saved.read_bytes() + more)


def test_a_flipped_byte_is_found_or_does_not_matter(
    saved: Path, tmp_path: Path, expected: Tensor
) -> None:
    data, path = saved.read_bytes(), tmp_path / "flipped.safetensors"
    draw = random.Random(0)
    harmless = 0
    for place in [*range(64), *draw.sample(range(len(data)), 1500)]:
        flipped = bytearray(data)
        flipped[place] ^= draw.randrange(1, 256)
        path.write_bytes(flipped)
        try:
            loaded = uo.load(Net(), path)
        except uo.SchemaError:
            continue
        assert torch.equal(call_(loaded), expected), place
        harmless += 1
    assert harmless < 20  # white space


@pytest.mark.parametrize("where", ["tensor", "solution", "checksum"])
def test_damage_is_called_so(where: str, saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    place = {
        "tensor": len(data) - 1,
        "solution": data.index(b"graph_fingerprint") + 25,
        "checksum": data.index(b'"sha256":"') + 12,
    }[where]
    data[place] = ord("0") if data[place] != ord("0") else ord("1")
    message = refused(tmp_path / "damaged.safetensors", bytes(data))
    assert "damaged" in message
    assert "checksum" in message


# Foreign files.


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.binary(max_size=300))
@example(b"")
@example(b"{}")
@example((2**63).to_bytes(8, "little") + b"{}")
@example((2).to_bytes(8, "little") + b"{}")
@example((2).to_bytes(8, "little") + b"[]")
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    refused(tmp_path_factory.getbasetemp() / "bytes.safetensors", data)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-1, 2**70) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["__metadata__", "format", "dtype", "shape", "data_offsets", "sha256", "a"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_header(tmp_path_factory: pytest.TempPathFactory, header: Any) -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text
    refused(tmp_path_factory.getbasetemp() / "header.safetensors", data)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "upscale"}])
def test_foreign_safetensors_files(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    data = save_tensors({"head.weight": torch.zeros(3)}, metadata)
    assert "not one that upscale_opt.save wrote" in refused(tmp_path / "theirs.safetensors", data)


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_headers_nested_absurdly(depth: int, tmp_path: Path) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        text = opening * depth + b"1" + closing * depth
        refused(tmp_path / "deep.safetensors", len(text).to_bytes(8, "little") + text)


class Bomb:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch", "legacy torch"])
def test_a_pickle_in_disguise_is_not_executed(how: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "pruned.safetensors", tmp_path / "executed"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(Bomb(mark), path, _use_new_zipfile_serialization=how == "torch")
    assert "not a safetensors file" in refused(path, path.read_bytes())
    assert not mark.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert mark.exists()  # it would have worked


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        message = complaint(uo.SchemaError, partial(uo.load, Net(), path))
        assert "cannot read" in message
        assert str(path) in message


# Writing.


def full(*args: Any, **options: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["fdopen", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file(
    function: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pruned.safetensors"
    path.write_bytes(saved.read_bytes())
    pruned = build()
    with torch.no_grad():
        pruned.get_parameter("head.bias").add_(1)
    with monkeypatch.context() as patched:
        patched.setattr(os, function, full)
        with pytest.raises(OSError, match="No space left"):
            uo.save(pruned, path)
    assert path.read_bytes() == saved.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    uo.save(pruned, path)
    assert path.read_bytes() != saved.read_bytes()


def test_a_reader_sees_one_file_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "pruned.safetensors"
    models = [build(), build()]
    with torch.no_grad():
        models[1].get_parameter("head.bias").add_(1)
    wanted = [call_(model) for model in models]
    uo.save(models[0], path)
    done = threading.Event()

    def write() -> None:
        for turn in range(40):
            uo.save(models[turn % 2], path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    read = 0
    while not done.is_set() or read == 0:
        found = uo.load(Net(), path).get_parameter("head.bias")
        assert any(torch.equal(found, model.get_parameter("head.bias")) for model in models)
        read += 1
    writer.join()
    assert torch.equal(call_(uo.load(Net(), path)), wanted[1])


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "pruned").mkdir()
    with pytest.raises(OSError, match="pruned"):
        uo.save(build(), tmp_path / "pruned")
    assert [entry.name for entry in tmp_path.iterdir()] == ["pruned"]
    uo.save(build(), tmp_path / "new" / "folder" / "pruned.safetensors")
    assert (tmp_path / "new" / "folder" / "pruned.safetensors").is_file()


def test_the_file_is_readable_as_plain_safetensors(saved: Path) -> None:
    """By anything that reads safetensors, without this package."""
    with safetensors.safe_open(str(saved), "pt") as file:
        assert file.metadata()["format"] == "upscale-opt"
        held: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        solution = uo.Solution.from_json(file.metadata()["solution"])
    loaded = uo.load(Net(), saved)
    now = state(loaded)
    added = set(now) - set(held)  # follows from the solution
    assert all(name == MARK or ".indices" in name for name in added)
    assert same_state({name: now[name] for name in held}, held)
    assert loaded.solution == solution
