"""Files that are damaged, foreign, forged or newer, and definitions and models that do not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors
import torch
import torchvision
from helpers import call, complaint, images, keep, same_state, state
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import upscale_opt as uo


class Net(nn.Module):
    """Small, with views, gathers and a placed sum; its arguments change more or less."""

    def __init__(
        self, act: type[nn.Module] = nn.ReLU, p: float = 0.5, factor: float = 0.5, width: int = 12
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.act = act()
        self.readers = nn.ModuleList(nn.Conv2d(width, 8, 1, bias=False) for _ in range(3))
        self.drop = nn.Dropout(p)
        self.head = nn.Conv2d(8, 4, 1)
        self.factor = factor

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.norm(self.stem(x)))
        y = self.readers[0](x) + self.readers[1](x) + self.readers[2](x)
        return self.head(self.drop(y)) * self.factor


def build() -> Any:
    """A pruned network."""
    torch.manual_seed(1)
    model = Net().eval()
    for reader, kept in enumerate(([0, 1, 2, 3, 4], [4, 5, 6], [0, 5, 7])):
        keep(model.get_parameter(f"readers.{reader}.weight"), 1, kept)
    keep(model.get_parameter("readers.2.weight"), 0, [1, 3])
    graph = uo.trace(model, images(1, 4))
    return uo.materialize(model, uo.solve(graph, uo.Masks.from_model(model, graph)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is whole. Not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "whole.safetensors"
    uo.save(build(), path)
    return path


@pytest.fixture(scope="module")
def expected(saved: Path) -> Tensor:
    return call_(uo.load(Net(), saved))


def call_(model: nn.Module) -> Tensor:
    result = call(model, images(2, 5))
    assert isinstance(result, Tensor)
    return result


def refused(path: Path, data: bytes) -> str:
    """Why a file with these contents is refused; the message names it."""
    path.write_bytes(data)
    message = complaint(uo.SchemaError, lambda: uo.load(Net(), path))
    assert message.startswith(f"{path}: ")
    return message


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


# Forged and newer files: whole, with the right checksum.


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
    uo.save(uo.materialize(once, uo.solve(graph, uo.Masks.from_model(once, graph))), path)
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


# Definitions of other models.


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        (lambda: torchvision.models.resnet18(), ["ResNet", "call 'conv1'", "'stem.weight'"]),
        (lambda: nn.Linear(4, 4), ["Linear"]),
        (lambda: Net(width=13), ["a Net", "channel graph differs"]),
        (lambda: Net(act=nn.GELU), ["'act'", "a GELU instead of a ReLU"]),
        (lambda: Net(act=nn.Sigmoid), ["channel graph differs"]),
        (lambda: Net(p=0.25), ["drop.p is 0.25 instead of 0.5"]),
        (lambda: Net(factor=2.0), ["mul(%", "2.0", "instead of", "0.5"]),
        (lambda: nn.Sequential(Net()), ["Sequential"]),
    ],
)
def test_other_definitions(
    definition: Callable[[], nn.Module], words: list[str], saved: Path
) -> None:
    made = definition()
    before = state(made)
    message = complaint(uo.MaterializeError, lambda: uo.load(made, saved))
    assert "a pruned Net was saved here" in message
    assert "same arguments" in message
    assert any(word in message for word in words[-1:]) or words[1:] == ["call 'conv1'", words[-1]]
    assert words[0] in message
    assert same_state(before, state(made))
    assert all(module.training for module in made.modules())


def test_settings_of_the_definition_are_compared(saved: Path) -> None:
    definition = Net()
    definition.norm.eps = 1e-3
    assert "norm.eps is 0.001 instead of 1e-05" in complaint(
        uo.MaterializeError, lambda: uo.load(definition, saved)
    )
    definition = Net()
    definition.readers[1] = nn.Conv2d(12, 8, 1, bias=False, padding=0, padding_mode="circular")
    assert "readers.1.padding_mode is 'circular' instead of 'zeros'" in complaint(
        uo.MaterializeError, lambda: uo.load(definition, saved)
    )


def test_settings_changed_before_saving_are_asked_for(tmp_path: Path) -> None:
    pruned, path = build(), tmp_path / "pruned.safetensors"
    pruned.get_submodule("drop").p = 0.1
    uo.save(pruned, path)
    assert "drop.p is 0.5 instead of 0.1" in complaint(
        uo.MaterializeError, lambda: uo.load(Net(), path)
    )
    assert torch.equal(call_(uo.load(Net(p=0.1), path)), call_(pruned))


def test_tensors_of_the_definition_have_other_shapes(tmp_path: Path) -> None:
    """In modules that are not understood, the channel graph does not show it."""
    path = tmp_path / "pruned.safetensors"

    def model(hidden: int) -> nn.Module:
        return nn.Sequential(nn.TransformerEncoderLayer(6, 2, hidden, batch_first=True)).eval()

    pruned = uo.prune(model(4), torch.zeros(1, 3, 6))
    uo.save(pruned, path)
    assert same_state(state(uo.load(model(4), path)), state(pruned.model))
    assert "'0.linear1.weight' gets (5, 6) instead of (4, 6)" in complaint(
        uo.MaterializeError, lambda: uo.load(model(5), path)
    )


@pytest.mark.parametrize("given", [torchvision.models.resnet18, Net, None, {}])
def test_what_is_no_definition(given: Any, saved: Path) -> None:
    message = complaint(uo.MaterializeError, lambda: uo.load(given, saved))
    assert "not a module" in message
    assert "resnet18()" in message


def test_a_definition_in_the_way_does_not_matter_for_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"nothing")
    complaint(uo.SchemaError, lambda: uo.load(nn.Linear(2, 2), path))


# Models that cannot be saved.


@pytest.mark.parametrize(
    "model", [Net(), nn.Sequential(build()), torch.fx.symbolic_trace(Net()), None, "pruned"]
)
def test_what_is_no_pruned_model(model: Any, tmp_path: Path) -> None:
    message = complaint(uo.MaterializeError, lambda: uo.save(model, tmp_path / "no.safetensors"))
    assert type(model).__name__ in message
    assert "materialize or prune" in message
    assert not list(tmp_path.iterdir())


class Extra(nn.Conv2d):
    """Has more state than tensors."""

    def get_extra_state(self) -> Any:
        return {"some": object()}


def replace_head(model: Any) -> None:
    model.head = nn.Conv2d(8, 10, 1)


def append_parameter(model: Any) -> None:
    """To a module that the program calls, which may use it."""
    model.head.more = nn.Parameter(torch.zeros(2))


def drop_bias(model: Any) -> None:
    model.head.bias = None


def edit_program(model: Any) -> None:
    graph: torch.fx.Graph = model.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        more = graph.call_function(torch.neg, (output.args[0],))
    output.args = (more,)
    model.recompile()


def extra_state(model: Any) -> None:
    made = Extra(8, 4, 1)
    made.load_state_dict(model.head.state_dict(), strict=False)
    model.head = made


def sparse_weight(model: Any) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse())


def odd_dtype(model: Any) -> None:
    odd = torch.zeros(4, dtype=torch.uint8).view(torch.bits8)
    model.head.bias = nn.Parameter(odd, requires_grad=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace_head, ["'head.weight'", "(10, 8, 1, 1)", "(4, 8, 1, 1)", "solution"]),
        (append_parameter, ["'head.more'", "did not exist", "(2,)"]),
        (drop_bias, ["'head.bias'", "is gone", "(4,)"]),
        (edit_program, ["program was edited", "neg(%"]),
        (extra_state, ["'head'", "Extra", "extra state", "torch.save"]),
        (sparse_weight, ["'head.weight'", "sparse"]),
        (odd_dtype, ["'head.bias'", "bits8"]),
        (lambda model: model.to("meta"), ["'stem.weight'", "meta device"]),
    ],
)
def test_models_changed_since(
    change: Callable[[Any], None], words: list[str], tmp_path: Path
) -> None:
    pruned = build()
    change(pruned)
    message = complaint(uo.MaterializeError, lambda: uo.save(pruned, tmp_path / "no.safetensors"))
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


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
    assert same_state(state(loaded), held)
    assert loaded.solution == solution
