"""Explanations: true, minimal, and there for every gather."""

from __future__ import annotations

import itertools
import json

import pytest
from comparing import complaint
from sample_networks import Documents, documents_of

import upscale_opt as uo
from upscale_opt.errors import SolverError
from upscale_opt.solver.checking.explaining import Explanation, Member
from upscale_opt.solver.problem.pqtree import End, PQTree

ENDS: dict[str, list[int | End]] = {"interval": [], "prefix": [End.LEFT], "suffix": [End.RIGHT]}


@pytest.fixture(scope="module", params=["resnet18", "densenet121"])
def documents(request: pytest.FixtureRequest) -> Documents:
    return documents_of(request.param, 0.5)


def can_hold(witnesses: tuple[int, ...], members: tuple[Member, ...]) -> bool:
    """Whether some order of the witnesses alone has every member's share where it wants it."""
    tree = PQTree(witnesses, ends=True)
    return all(
        tree.reduce([*ENDS[member.kind], *(c for c in member.witnesses if c in witnesses)])
        for member in members
    )


def test_every_gather_has_a_reason_that_is_true(documents: Documents) -> None:
    solution = documents.solution
    found = uo.explain(solution)
    gathers = [f"{r.op}[{r.operand}]" for r in solution.reads if r.plan == "gather"]
    assert [explanation.read for explanation in found] == gathers
    assert sum(explanation.copied for explanation in found) == solution.objective_value
    views = {f"{r.op}[{r.operand}]" for r in solution.reads if r.plan == "view"}
    for explanation in found:
        assert explanation.reason in ("conflict", "hindrance"), explanation
        if explanation.reason == "hindrance":
            assert explanation.hindrance
            continue
        own, *others = explanation.members
        assert explanation.read in own.reads
        assert all(views.intersection(other.reads) for other in others)


def test_witnesses_are_minimal(documents: Documents) -> None:
    for explanation in uo.explain(documents.solution):
        witnesses, members = explanation.witnesses, explanation.members
        if explanation.reason != "conflict":
            continue
        assert set(witnesses) <= set(documents.solution.orders[explanation.space or 0])
        assert not can_hold(witnesses, members)
        for channel in witnesses:
            assert can_hold(tuple(c for c in witnesses if c != channel), members)
        for fewer in itertools.combinations(members, len(members) - 1):
            assert can_hold(witnesses, fewer)


def test_one_read_by_any_of_its_names(documents: Documents) -> None:
    solution = documents.solution
    gather = next(read for read in solution.reads if read.plan == "gather")
    for name in (f"{gather.op}[{gather.operand}]", gather.name):
        assert [e.tensor for e in uo.explain(solution, name)] == [gather.tensor]
    assert uo.explain(solution, gather.op)


def test_a_view_says_that_it_is_one(documents: Documents) -> None:
    view = next(r for r in documents.solution.reads if r.plan == "view" and not r.optional)
    (explanation,) = uo.explain(documents.solution, f"{view.op}[{view.operand}]")
    assert explanation.reason == "view"
    assert "copies nothing" in str(explanation)


def test_unknown_reads_are_named(documents: Documents) -> None:
    with pytest.raises(SolverError, match=r"'nonsense'; the gathers are: .*\["):
        uo.explain(documents.solution, "nonsense")


def test_a_heuristics_slack_is_called_a_choice() -> None:
    documents = documents_of("densenet121", 0.5)
    plain = uo.solve(documents.graph, documents.masks, solver="identity")
    reasons = {explanation.reason for explanation in uo.explain(plain)}
    assert "choice" in reasons
    choice = next(e for e in uo.explain(plain) if e.reason == "choice")
    assert "need not" in str(choice)


def test_hindrances_are_explained() -> None:
    documents = documents_of("densenet121", 0.5)
    hindered = [e for e in uo.explain(documents.solution) if e.reason == "hindrance"]
    assert any("both sides of space" in str(explanation) for explanation in hindered)


def test_text() -> None:
    explanation = Explanation(
        read="c[0]",
        tensor="x",
        copied=2,
        reason="conflict",
        space=1,
        members=(
            Member(reads=("c[0]",), kind="interval", size=2, witnesses=(4, 6)),
            Member(reads=("a[0]", "d[0]"), kind="prefix", size=2, witnesses=(4, 5)),
            Member(reads=("b[0]",), kind="interval", size=2, witnesses=(5, 6)),
        ),
        witnesses=(4, 5, 6),
    )
    assert str(explanation).splitlines() == [
        "c[0] gathers 2 channels of x",
        "  it cannot be a view together with a[0] = d[0]; b[0]",
        "  channels 4-6 of space 1 show it; side by side are wanted",
        "    by c[0] (2): 4,6",
        "    by a[0] (2, first): 4,5",
        "    by b[0] (2): 5,6",
    ]


def test_a_read_whose_own_demands_exclude_each_other() -> None:
    """A read of a space joined with itself wants the same channels first and last."""
    documents = documents_of("topology/add_of_slices", 0.5)
    solution = uo.solve(documents.graph, documents.masks)
    assert solution.status == "optimal"
    for explanation in uo.explain(solution):
        assert explanation.reason != "choice", str(explanation)


@pytest.mark.parametrize("space", [99, -1, 1])
def test_a_damaged_solution_is_refused(documents: Documents, space: int) -> None:
    data = json.loads(documents.solution.to_json())
    data["demands"] = [{"space": space, "kind": "interval", "channels": "0,1", "reads": ["x[0]"]}]
    solution = uo.Solution.from_json(json.dumps(data))
    message = complaint(uo.VerificationError, lambda: uo.explain(solution))
    assert f"demand 0 is for channels that space {space} does not have" in message
