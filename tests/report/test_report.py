"""The report: what is in the page, how it is made, and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from sample_networks import Documents, documents_of
from synthetic_losses import synthetic_losses

import upscale_opt as uo
from upscale_opt.cli.report import report
from upscale_opt.errors import SchemaError, UpscaleError, VerificationError
from upscale_opt.ir.ids import parse_ids
from upscale_opt.ir.profiles import profile
from upscale_opt.measuring.costs import count_costs
from upscale_opt.models import catalogue
from upscale_opt.report import page
from upscale_opt.solver.layers import layers_of

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "arena": {"selection": "arena"},
    "windows": {"max_extra_macs": 0.05},
    "latency": {"objective": "latency"},
    "greedy": {"solver": "greedy"},
    "segment": {"selection": "segment", "solver": "identity"},
}


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("network", ["resnet18", "topology/dense_block", "topology/cat_twice"])
def test_every_read_is_drawn_as_it_is(network: str, option: str) -> None:
    """Views and windows are one run of columns, and every read takes what it is said to."""
    documents = documents_of(network, 0.5)
    graph = documents.graph
    solution = uo.solve(graph, documents.masks, **OPTIONS[option])
    data = data_of(page(solution, graph, documents.masks))
    operations = {op.name: op for op in graph.operations}
    drawn = {}
    for segment in data["segments"]:
        columns = [c for column in segment["columns"] for c in parse_ids(column["after"])]
        for row in segment["rows"]:
            at = parse_ids(row["at"])
            drawn[row["name"], row.get("place", 0)] = row, {columns[p] for p in at}
            if row["plan"] != "gather":
                assert at == tuple(range(at[0], at[0] + len(at))), row["name"]
    reads = [read for read in solution.reads if not read.optional]
    assert len(drawn) == len(reads)
    for read in reads:
        row, channels = drawn[f"{read.op}[{read.operand}]", int(read.kind == "place")]
        name = operations[read.op].outputs[0] if read.kind == "place" else read.tensor
        sequence = graph.tensors[name].channels
        assert channels == {sequence[entry] for entry in read.channels}
        assert (row["plan"], row["count"]) == (read.plan, len(read.channels))


@pytest.mark.parametrize("with_graph", [True, False])
def test_every_copy_is_explained(resnet18_documents: Documents, with_graph: bool) -> None:
    documents = resnet18_documents
    graph = documents.graph if with_graph else None
    rows = [r for s in data_of(page(documents.solution, graph))["segments"] for r in s["rows"]]
    explained = {row["name"]: row["why"] for row in rows if row["plan"] != "view"}
    wanted = uo.explain(documents.solution)
    assert set(explained) == {found.read for found in wanted}
    assert wanted
    for found in wanted:
        why = explained[found.read]
        assert why["reason"] == found.reason
        if found.reason == "conflict":
            assert tuple(why["witnesses"]) == found.witnesses
            assert [tuple(m["reads"]) for m in why["members"]] == [m.reads for m in found.members]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_sizes_are_those_of_the_models(name: str) -> None:
    """The graph alone says what counting on the models themselves says."""
    inputs = catalogue.example_inputs(name)
    model = catalogue.randomize(catalogue.build(name), 0, inputs)
    pruned = uo.prune(model, inputs, amount=0.5, check=False)
    before, after = count_costs(pruned.masked, inputs), count_costs(pruned.model, inputs)
    for costs, found in (
        (before, pruned.table.before),
        (after, pruned.table.after),
    ):
        assert found is not None
        assert (found.parameters, found.multiply_adds) == (costs.parameters, costs.multiply_adds)


def test_names_cannot_escape(resnet18_documents: Documents) -> None:
    """Whatever a layer is called, it stays text."""
    bad = "</script><script>alert(1)</script><!--&"
    text = resnet18_documents.solution.to_json()
    tensor = resnet18_documents.solution.reads[1].tensor
    solution = uo.Solution.from_json(text.replace(json.dumps(tensor), json.dumps(bad)))
    made = page(solution, title=bad)
    assert "<script>alert" not in made
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in made
    assert any(bad in segment["tensors"] for segment in data_of(made)["segments"])


def test_what_does_not_belong_together_is_refused(resnet18_documents: Documents) -> None:
    documents, other = resnet18_documents, documents_of("topology/unet", 0.5)
    with pytest.raises(VerificationError, match="another graph"):
        page(documents.solution, other.graph)
    damaged = documents.solution.model_copy(update={"lower_bound": 10**9})
    with pytest.raises(VerificationError, match="lower bound"):
        page(damaged, documents.graph, documents.masks)
    with pytest.raises(SchemaError, match="expected a solution"):
        page(documents.graph)  # type: ignore[arg-type]


def save(documents: Documents, folder: Path) -> Path:
    documents.graph.save(folder / "graph.json")
    documents.masks.save(folder / "masks.json")
    documents.solution.save(folder / "solution.json")
    return folder / "solution.json"


def test_the_command_finds_what_lies_beside(
    resnet18_documents: Documents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solution = save(resnet18_documents, tmp_path)
    report(solution, tmp_path / "full.html")
    full = (tmp_path / "full.html").read_text()
    assert "checked here: the proof holds" in full
    assert f"<h1>{tmp_path.name}</h1>" in full
    assert "made without" not in capsys.readouterr().out
    documents_of("topology/unet", 0.5).graph.save(tmp_path / "graph.json")
    report(solution, tmp_path / "bare.html")
    assert "Made without the graph" in (tmp_path / "bare.html").read_text()
    assert "made without the graph" in capsys.readouterr().out
    with pytest.raises(VerificationError, match="another graph"):
        report(solution, tmp_path / "no.html", graph=tmp_path / "graph.json")
    with pytest.raises(typer.BadParameter, match="--graph"):
        report(solution, tmp_path / "no.html", masks=tmp_path / "masks.json")
    assert not (tmp_path / "no.html").exists()


def test_layers_stand_in_the_page(
    resnet18_documents: Documents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every one of them; and what it gave up, where a choice lies beside the solution."""
    documents = resnet18_documents
    table = layers_of(documents.graph, documents.solution, cost_model=profile("cpu"))
    made = page(documents.solution, documents.graph, documents.masks)
    found = re.search(r'<details class="more layers" open>(.*?)</details>', made, re.S)
    assert found is not None
    for name, *cells in table.cells():
        assert f'<th scope="row">{name}</th>' in found[1]
        assert all(f">{cell}</td>" in found[1] for cell in cells)
    assert 'data-title="loss"' not in made
    choice = uo.solver.choose(
        documents.graph,
        synthetic_losses(documents.graph),
        uo.Budget(macs=0.5),
        solver="constrained",
    )
    choice.save(tmp_path / "choice.json")
    report(save(documents, tmp_path), tmp_path / "page.html")
    made = (tmp_path / "page.html").read_text()
    assert 'data-title="loss"' in made
    assert f"{choice.resources[0].share:.0%} of the multiply-adds, loss {choice.loss:.3g}" in made
    other = choice.model_copy(update={"graph_fingerprint": "0" * 32})
    other.save(tmp_path / "choice.json")
    report(tmp_path / "solution.json", tmp_path / "page.html")
    made = (tmp_path / "page.html").read_text()
    assert 'data-title="loss"' not in made
    assert "What other budgets would lose" not in made
    with pytest.raises(VerificationError, match="the choice was made for another graph"):
        report(tmp_path / "solution.json", tmp_path / "no.html", choice=tmp_path / "choice.json")


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    for path, words in ((bad, "not a valid solution"), (tmp_path / "none.json", "cannot read")):
        with pytest.raises(SchemaError, match=words):
            report(path, tmp_path / "page.html")
    with pytest.raises(UpscaleError, match="is a folder"):
        report(bad, tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_needs_no_torch(resnet18_documents: Documents, tmp_path: Path) -> None:
    solution = save(resnet18_documents, tmp_path)
    program = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from upscale_opt.cli.report import report\n"
        f"report(Path({str(solution)!r}), Path({str(tmp_path / 'page.html')!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert (tmp_path / "page.html").stat().st_size > 10_000
