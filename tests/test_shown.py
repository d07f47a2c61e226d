"""What is printed of large things fits on a screen, and says what matters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from sample_networks import Documents, images

import upscale_opt as uo
from upscale_opt.ir.profiles import PROFILES, profile
from upscale_opt.ir.solution import Read
from upscale_opt.shown import short

LINES, CHARACTERS = 30, 2000


@pytest.fixture(scope="module")
def things(resnet18_documents: Documents) -> dict[str, Any]:
    """One of everything that the public functions return, of a real network."""
    graph, masks, solution = (
        resnet18_documents.graph,
        resnet18_documents.masks,
        resnet18_documents.solution,
    )
    model, x = resnet18_documents.model, images(1, 64)
    result = uo.prune(model, x)
    cost_model = profile(next(iter(PROFILES)))
    rows = uo.solver.compare(graph, masks, ["greedy", "identity"])
    manager = uo.MaskingManager(copy.deepcopy(model), inputs=x).importance("l1")
    return {
        "graph": graph,
        "masks": masks,
        "solution": solution,
        "cost model": cost_model,
        "pruned": result,
        "report": result.report,
        "audit": uo.check(solution, graph, masks),
        "explanation": uo.explain(solution)[0],
        "removal": uo.solver.removal(graph, masks, solution),
        "row": rows[0],
        "comparison": uo.solver.Comparison(rows=rows * 50),
        "group": max(uo.groups(graph), key=lambda group: len(group.channels)),
        "instance": uo.solver.instance_of(graph, masks),
        "movement": uo.measuring.moved_bytes(model, x),
        "costs": uo.measuring.count_costs(model, x),
        "estimate": uo.measuring.estimate(model, x, cost_model),
        "manager": manager,
        "segment": manager.segments()[-1],
        "pruning manager": uo.PruningManager(copy.deepcopy(model)).compute(x),
        "operation": max(graph.operations, key=lambda op: len(op.model_dump_json())),
        "tensor": max(graph.tensors.values(), key=lambda tensor: len(tensor.channels)),
        "space": max(graph.spaces, key=lambda space: len(space.channels)),
        "read": max(solution.reads, key=lambda read: len(read.channels)),
        "demand": solution.demands[0],
    }


def test_everything_fits_on_a_screen(things: dict[str, Any]) -> None:
    for name, thing in things.items():
        for text in (str(thing), repr(thing)):
            assert len(text) <= CHARACTERS, name
            assert text.count("\n") < LINES, name
            assert " object at 0x" not in text, name


def test_summaries_say_what_matters(things: dict[str, Any]) -> None:
    solution = things["solution"]
    assert str(solution) == repr(solution)
    assert f"optimal: {solution.objective_value:,}, at least {solution.lower_bound:,}" in str(
        solution
    )
    assert f"{len(things['graph'].operations)} operations" in str(things["graph"])
    assert "102 parameters" in str(things["masks"])
    assert str(things["pruned"].solution) in str(things["pruned"])
    assert "float64_error=" in str(things["pruned"])
    assert str(things["pruning manager"].solution) in str(things["pruning manager"])


def test_records_leave_out_what_is_usual() -> None:
    read = Read(tensor="x", op="conv", operand=0, plan="view", channels=tuple(range(99)))
    assert repr(read) == (
        "Read(tensor='x', op='conv', operand=0, plan='view', channels=<99 items>)"
    )


def test_short_values() -> None:
    assert short((1, 2)) == "(1, 2)"
    assert short(tuple(range(1000))) == "<1,000 items>"
    assert short(["x" * 100]) == "<1 item>"
    assert short("x" * 100) == repr("x" * 60 + "…")
    assert short(0.5) == "0.5"
