"""Graphs, masks and solutions as documents: JSON out and in, refusals, files, sizes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_networks import Documents
from torch import nn

import upscale_opt as uo
from upscale_opt.ir.base import Document, write_atomically
from upscale_opt.ir.graph import Space, Tensor
from upscale_opt.ir.ids import MAX_LENGTH, format_ids, parse_ids
from upscale_opt.models import catalogue

# Runs.

runs = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(1, 40)).map(lambda r: range(r[0], r[0] + r[1]))
).map(lambda parts: [i for part in parts for i in part])
anything = st.lists(st.integers(0, 9_999_999_999), max_size=50)


@given(runs | anything)
def test_runs_round_trip(ids: list[int]) -> None:
    assert parse_ids(format_ids(ids)) == tuple(ids)


@given(st.integers(0, 5000), st.integers(3, 5000))
def test_a_run_takes_one_part(first: int, length: int) -> None:
    assert format_ids(range(first, first + length)) == f"{first}-{first + length - 1}"


@given(st.text(max_size=30) | st.text("0123456789,- ", max_size=30))
def test_any_text_is_runs_or_a_value_error(text: str) -> None:
    try:
        ids = parse_ids(text)
    except ValueError:
        return
    assert parse_ids(format_ids(ids)) == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-99999999999", "not a run"),
        ("0-9999999999", "more than 4,000,000 channels"),
        (",".join(["0-3999999"] * 2), "more than 4,000,000 channels"),
        ("5-3", "must ascend"),
        ("-1", "not a run"),
        ("1,,2", "not a run"),
        ("1, 2", "not a run"),
        ("1-2-3", "not a run"),
        ("²", "not a run"),
        ("1\n", "not a run"),
        ("x" * 1000, "not a run"),
    ],
)
def test_hostile_runs_are_refused_quickly(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_ids(text)
    assert len(str(caught.value)) < 200


def test_the_longest_list_is_allowed() -> None:
    assert len(parse_ids(f"0-{MAX_LENGTH - 1}")) == MAX_LENGTH


@pytest.mark.parametrize("ids", [[-1], [1.0], [True], ["1"], {1: 2}, 5, None])
def test_python_lists_hold_non_negative_ints(ids: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        Space(channels=ids)


# Documents.


@pytest.fixture
def documents(resnet18_documents: Documents) -> dict[str, Document]:
    d = resnet18_documents
    return {"channel graph": d.graph, "masks": d.masks, "solution": d.solution}


KINDS = ("channel graph", "masks", "solution")


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(documents: dict[str, Document], kind: str, tmp_path: Path) -> None:
    document = documents[kind]
    again = type(document).from_json(document.to_json())
    assert again == document
    assert again.to_json() == document.to_json()
    document.save(tmp_path / "some" / "where.json")
    assert type(document).load(tmp_path / "some" / "where.json") == document
    assert type(document).from_json(document.to_json().encode()) == document


def test_the_fingerprint_survives_json_and_ignores_dtypes(documents: dict[str, Document]) -> None:
    graph = documents["channel graph"]
    assert isinstance(graph, uo.ChannelGraph)
    assert uo.ChannelGraph.from_json(graph.to_json()).fingerprint == graph.fingerprint
    solution = documents["solution"]
    assert isinstance(solution, uo.Solution)
    assert solution.graph_fingerprint == graph.fingerprint
    halved = uo.ChannelGraph.from_json(graph.to_json().replace("float32", "float16"))
    assert halved.fingerprint == graph.fingerprint
    other = uo.trace(torch_net(), torch.zeros(1, 3, 8, 8))
    assert other.fingerprint != graph.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_frozen(documents: dict[str, Document], kind: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        documents[kind].schema_version = 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_refused_by_name(documents: dict[str, Document], kind: str) -> None:
    document = documents[kind]
    data = json.loads(document.to_json())
    data["surprise"] = 1
    with pytest.raises(uo.SchemaError, match=f"not (a )?valid {kind}: surprise: unknown field"):
        type(document).from_json(json.dumps(data))


def test_an_unknown_field_deep_inside_is_refused_by_name(documents: dict[str, Document]) -> None:
    data = json.loads(documents["channel graph"].to_json())
    data["tensors"]["conv1"]["layout"] = "NHWC"
    with pytest.raises(uo.SchemaError, match=r"tensors\.conv1\.layout: unknown field"):
        uo.ChannelGraph.from_json(json.dumps(data))
    data = json.loads(documents["solution"].to_json())
    data["reads"][0]["cost"] = 1
    with pytest.raises(uo.SchemaError, match=r"reads\.0\.cost: unknown field"):
        uo.Solution.from_json(json.dumps(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [0, 2, 99])
def test_an_unknown_version_is_refused(
    documents: dict[str, Document], kind: str, version: int
) -> None:
    document = documents[kind]
    data = json.loads(document.to_json())
    data["schema_version"] = version
    with pytest.raises(uo.SchemaError, match=f"schema_version {version}.*reads 1"):
        type(document).from_json(json.dumps(data))


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_version_with_unknown_fields_is_refused_for_its_version(
    documents: dict[str, Document], kind: str
) -> None:
    """A newer release adds fields; to be told of those instead of the version helps nobody."""
    document = documents[kind]
    data = json.loads(document.to_json())
    data["schema_version"] = 2
    data["something_new"] = {}
    with pytest.raises(uo.SchemaError, match="schema_version 2"):
        type(document).from_json(json.dumps(data))


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_json_is_refused_with_the_files_name(
    documents: dict[str, Document], kind: str, tmp_path: Path
) -> None:
    document = documents[kind]
    text = document.to_json()
    path = tmp_path / "cut.json"
    for length in (0, 1, 10, len(text) // 2, len(text) - 3):
        path.write_text(text[:length])
        with pytest.raises(uo.SchemaError, match=r"cut\.json: not (a )?valid") as caught:
            type(document).load(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["[]", "null", "3", '"graph"', "{}", '{"a": 1}', "\0", "\ud800"])
@pytest.mark.parametrize("kind", [uo.ChannelGraph, uo.Solution, uo.Masks])
def test_foreign_json_is_refused(kind: type[Document], text: str) -> None:
    with pytest.raises(uo.SchemaError, match=f"not {kind.article}valid {kind.what}"):
        kind.from_json(text)


def test_one_kind_is_not_another(documents: dict[str, Document]) -> None:
    for kind in (uo.ChannelGraph, uo.Solution, uo.Masks):
        for document in documents.values():
            if not isinstance(document, kind):
                with pytest.raises(uo.SchemaError, match=r"not (a )?valid"):
                    kind.from_json(document.to_json())


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.json"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(uo.SchemaError, match=r"image\.json"):
        uo.Masks.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(uo.SchemaError, match=r"cannot read masks .*nowhere\.json: No such file"):
        uo.Masks.load(tmp_path / "nowhere.json")
    with pytest.raises(uo.SchemaError, match="cannot read channel graph"):
        uo.ChannelGraph.load(tmp_path)


def test_huge_runs_in_a_document_are_refused() -> None:
    for runs in ("0-99999999999", "0-9999999999", ",".join(["0-3999999"] * 5)):
        with pytest.raises(uo.SchemaError, match=r"kept\.conv\.weight\.0"):
            uo.Masks.from_json(
                json.dumps({"schema_version": 1, "kept": {"conv.weight": {"0": runs}}})
            )


# Graphs that contradict themselves.


def torch_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


@pytest.fixture
def plain() -> dict[str, Any]:
    graph = uo.trace(torch_net(), torch.zeros(1, 3, 8, 8))
    data: dict[str, Any] = json.loads(graph.to_json())
    return data


def swap_operations(data: dict[str, Any]) -> None:
    data["operations"][1], data["operations"][2] = data["operations"][2], data["operations"][1]


def write_twice(data: dict[str, Any]) -> None:
    data["operations"].insert(2, dict(data["operations"][1], name="again"))


def share_channel(data: dict[str, Any]) -> None:
    data["spaces"].append({"channels": "0"})


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "reads an unwritten tensor": (
        lambda d: d["operations"][2].update(inputs=["nowhere"]),
        "'_1' reads 'nowhere' before it is written",
    ),
    "reads too early": (swap_operations, "reads '_0' before it is written"),
    "writes an unknown tensor": (
        lambda d: d["operations"][2].update(outputs=["nowhere"]),
        "'_1' writes unknown tensor 'nowhere'",
    ),
    "writes twice": (write_twice, "'_0' is written twice"),
    "unwritten tensor": (
        lambda d: d["tensors"].update(stray=dict(d["tensors"]["_0"])),
        "'stray' is written by no operation",
    ),
    "unknown parameter": (
        lambda d: d["parameters"].pop("0.weight"),
        "'_0' uses unknown parameter '0.weight'",
    ),
    "channel in two spaces": (share_channel, "channel 0 belongs to two spaces"),
    "channel in no space": (lambda d: d["spaces"].pop(), "belongs to no space"),
    "axis out of range": (lambda d: d["tensors"]["_0"].update(axis=7), "'_0' has no axis 7"),
    "negative axis": (lambda d: d["tensors"]["_0"].update(axis=-1), "'_0' has no axis -1"),
    "channels do not fill the axis": (
        lambda d: d["tensors"]["_0"].update(features=2),
        "4 channels of 2 features on an axis of 4",
    ),
    "no features": (lambda d: d["tensors"]["_0"].update(features=0), "greater than or equal to 1"),
    "channels change order": (
        lambda d: d["tensors"]["_1"].update(channels="6,5,4,3"),
        "'_1'",
    ),
    "unknown kind": (lambda d: d["operations"][1].update(kind="magic"), "magic"),
    "layer without output": (lambda d: d["operations"][3].update(outputs=[]), "'_2'"),
    "weight axis out of range": (lambda d: d["operations"][1].update(out_axis=9), "'_0'"),
    "negative weight axis": (lambda d: d["operations"][1].update(out_axis=-1), "'_0'"),
    "activation of nothing": (lambda d: d["operations"][2].update(inputs=[]), "'_1'"),
    "weight does not fit its tensor": (
        lambda d: d["parameters"].update({"0.weight": [5, 3, 1, 1]}),
        "0.weight",
    ),
    "bias does not fit its tensor": (
        lambda d: d["parameters"].update({"0.bias": [3]}),
        "0.bias",
    ),
    "layer that reads nothing": (lambda d: d["operations"][1].update(inputs=[]), "'_0' (layer)"),
    "no output": (lambda d: d["operations"].pop(), "'_2', and no other must be an output"),
    "no operations": (lambda d: d["operations"].clear(), "None, and no other must be an output"),
    "an output in between": (
        lambda d: d["operations"].insert(1, {"kind": "output", "name": "early"}),
        "'output', and no other must be an output",
    ),
    "two operations of one name": (lambda d: d["operations"][2].update(name="_0"), "'_0'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_graph_that_contradicts_itself_is_refused(plain: dict[str, Any], name: str) -> None:
    change, message = CONTRADICTIONS[name]
    change(plain)
    with pytest.raises(uo.SchemaError, match="not a valid channel graph") as caught:
        uo.ChannelGraph.from_json(json.dumps(plain))
    assert message in str(caught.value)


def test_the_uncontradicted_graph_is_accepted(plain: dict[str, Any]) -> None:
    graph = uo.ChannelGraph.from_json(json.dumps(plain))
    assert [op.name for op in graph.operations] == ["input_1", "_0", "_1", "_2", "output"]


# Readable and small.


def test_the_json_of_a_small_network_is_a_pleasure_to_read() -> None:
    model = catalogue.build("topology/residual_stage")
    graph = uo.trace(model, catalogue.example_inputs("topology/residual_stage"))
    masks = uo.masks_of(model, graph)
    text = graph.to_json()
    lines = text.splitlines()
    assert len(graph.operations) > 20
    assert len(lines) < 25 * len(graph.operations)
    assert max(map(len, lines)) <= 120
    assert text.endswith("}\n")
    tensor = json.loads(text)["tensors"]["relu"]
    assert tensor["channels"] == "3-14"
    assert json.loads(masks.to_json())["kept"]["stem.weight"] == {"0": "0-11", "1": "0-2"}
    assert Tensor.model_validate(tensor).channels == tuple(range(3, 15))


def test_densenet201_stays_under_two_megabytes(large_json_folder: Path) -> None:
    assert (large_json_folder / "densenet201.graph.json").stat().st_size < 2_000_000
    assert (large_json_folder / "densenet201.masks.json").stat().st_size < 2_000_000


# Files.


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "masks.json"
    old = uo.Masks(kept={"a": {0: (1,)}})
    old.save(path)
    before = path.read_bytes()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    for function in ("replace", "chmod"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, interrupted)
            with pytest.raises(KeyboardInterrupt):
                uo.Masks(kept={"b": {0: (2,)}}).save(path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]
    assert uo.Masks.load(path) == old


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "masks.json"
    path.write_text("old")
    real = os.fdopen

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[:3])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", lambda *args: Full(real(*args)))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"something new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    old = os.umask(0o027)
    try:
        uo.Masks(kept={}).save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_saving_into_a_file_as_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        uo.Masks(kept={}).save(tmp_path / "file" / "masks.json")
