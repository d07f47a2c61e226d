"""The masters by PuLP: against brute force and CP-SAT's, and whatever can befall their process."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solver_outcomes import check, is_solved, random_sets
from test_direct import heavy, tight

from upscale_opt.errors import SolverError
from upscale_opt.models.instances.from_sets import with_measure
from upscale_opt.solver.algorithms import milp
from upscale_opt.solver.algorithms.exact import solve_exact
from upscale_opt.solver.algorithms.exact_master import Master, Relaxed
from upscale_opt.solver.algorithms.milp import PulpMaster, solve_pulp, solve_pulp_cbc
from upscale_opt.solver.algorithms.milp_process import MilpProcess
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.conflicts import Cut
from upscale_opt.solver.problem.instance import Instance, Outcome
from upscale_opt.solver.problem.reduction import Component, reduce_instance

SOLVERS = ["highs", "cbc"]
NAMES = {"highs": "pulp", "cbc": "pulp-cbc"}


@pytest.fixture(scope="module", params=SOLVERS)
def process(request: pytest.FixtureRequest) -> Iterator[MilpProcess]:
    with MilpProcess(request.param) as process:
        yield process


def solve_in(process: MilpProcess, instance: Instance, time_limit: float = 600) -> Outcome:
    """What ``solve_pulp`` does, in a process that is there already."""

    def master(component: Component, seed: int, workers: int) -> PulpMaster:
        return PulpMaster(component, seed, workers, process)

    return solve_exact(instance, time_limit=time_limit, master=master)


def hard_problem() -> Component:
    """Too hard for any solver, once it knows of some conflicts."""
    (component,) = reduce_instance(random_sets(150, 200, 3, 2, 14)).components
    return component


def conflicts_of(component: Component) -> list[Cut]:
    """Made up ones: the master believes what it is told."""
    rng = random.Random(0)
    size = len(component.demands)
    return [Cut(tuple(sorted(rng.sample(range(size), 4))), 2) for _ in range(4 * size)]


def run(master: PulpMaster | Master, time_limit: float = 600) -> Relaxed:
    return master.run(time_limit, frozenset(), lambda held, bound: None)


@settings(
    max_examples=16,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**20))
def test_tight_instances(process: MilpProcess, seed: int) -> None:
    instance = tight(random.Random(seed), "copies")
    outcome = solve_in(process, instance)
    check(instance, outcome)
    assert outcome.objective == outcome.lower_bound == brute_force(instance)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**20))
def test_bounds_are_true_under_heavy_weights(process: MilpProcess, seed: int) -> None:
    rng = random.Random(seed)
    instance = heavy(tight(rng, "copies"), rng)
    outcome = solve_in(process, instance)
    check(instance, outcome)
    assert outcome.lower_bound <= brute_force(instance)
    assert is_solved(instance, NAMES[process.solver], outcome)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**20))
def test_masters_agree(process: MilpProcess, seed: int) -> None:
    """Given the same conflicts, whatever they are, CP-SAT's and PuLP's find the same cost."""
    rng = random.Random(seed)
    for component in reduce_instance(tight(rng, "copies")).components:
        cuts = []
        for _ in range(2 * len(component.demands)):
            some = rng.sample(component.demands, rng.randint(1, len(component.demands)))
            cuts.append(Cut(tuple(sorted(some)), rng.randint(0, len(some) - 1)))
        masters = Master(component, 0, 1), PulpMaster(component, 0, 1, process)
        results = []
        for master in masters:
            master.add(cuts[::2])
            master.add(cuts[1::2])
            results.append(run(master))
        assert results[0].bound == results[1].bound
        for result in results:
            assert result.finished
            assert result.chosen is not None
            assert all(len(result.chosen & set(cut.demands)) <= cut.limit for cut in cuts)


@given(
    st.lists(st.integers(0, 10**6) | st.integers(0, 10**30), min_size=1, max_size=40),
    st.data(),
)
def test_scaled_bounds_are_true(weights: list[int], data: st.DataObject) -> None:
    """Whatever is paid, up to the tolerance, the bound is no more, and the same if it can be."""
    scale = milp._Scale.of(weights)
    paid = [weight for weight in weights if data.draw(st.booleans())]
    units = sum(weight // scale.unit for weight in paid)
    for wrong in (-0.9, -0.5, 0.0, 0.5, 0.9):
        assert scale.bound(units + wrong * scale.tolerance) <= sum(paid)
    total = sum(weight // scale.unit for weight in weights)
    assert scale.tolerance < 0.5
    assert total <= 2**28
    if scale.unit == (math.gcd(*weights) or 1):
        assert scale.bound(units - 0.9 * scale.tolerance) == sum(paid)
    assert scale.bound(-math.inf) == scale.bound(math.nan) == scale.bound(math.inf) == 0


def test_better_choices_are_told_on_the_way() -> None:
    """By HiGHS; whoever is told can stop it, and the process is ready for the next problem."""
    component = hard_problem()
    told: list[int] = []
    with MilpProcess("highs") as process:
        master = PulpMaster(component, 0, 1, process)
        master.add(conflicts_of(component))

        def tell(held: frozenset[int], bound: int) -> None:
            told.append(bound)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            master.run(3600, frozenset(), tell)
        assert told
        assert process.pid is None
        assert solve_in(process, random_sets(7, 8, 3, 2, 5)).optimal


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_process_that_is_killed_is_reported(solver: str) -> None:
    component = hard_problem()
    with MilpProcess(solver) as process:
        master = PulpMaster(component, 0, 1, process)
        master.add(conflicts_of(component))
        assert process.pid is not None
        timer = threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        with pytest.raises(SolverError, match=r"ended before it was done.*cp-sat"):
            run(master, 3600)
        timer.join()
        assert process.pid is None
        assert solve_in(process, random_sets(7, 8, 3, 2, 5)).optimal


@pytest.mark.parametrize("solver", SOLVERS)
def test_time_ends_a_solve_and_its_bound_is_true(solver: str) -> None:
    component = hard_problem()
    master = Master(component, 0, 1)
    master.add(conflicts_of(component))
    known = master.run(1.0, frozenset(), lambda held, bound: None)
    cost = sum(
        read.weight
        for read in component.reads
        if not set(read.view or ()) <= (known.chosen or set())
    )
    with MilpProcess(solver) as process:
        pulp = PulpMaster(component, 0, 1, process)
        pulp.add(conflicts_of(component))
        for time_limit in (0.0, 0.01, 0.7):
            relaxed = run(pulp, time_limit)
            assert 0 <= relaxed.bound <= cost
            assert relaxed.chosen is not None or not relaxed.finished


@pytest.mark.parametrize("solver", SOLVERS)
def test_interrupt_returns_what_there_is(solver: str) -> None:
    """A limit of an hour: were Ctrl-C ignored, this test would not end."""
    instance = random_sets(60, 70, 3, 2, 14)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        outcome = solve_instance(instance, NAMES[solver], time_limit=3600)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, previous)
    check(instance, outcome)
    assert not outcome.optimal


def test_two_at_once(process: MilpProcess) -> None:
    """Two masters in one process take turns; two processes work side by side."""
    instances = [random_sets(12, 8, seed, 2, 4) for seed in range(2)]
    components = [c for i in instances for c in reduce_instance(i).components]
    masters = [PulpMaster(component, 0, 1, process) for component in components]
    for master, component in zip(masters, components, strict=True):
        master.add(Cut((d,), 0) for d in component.demands)
    bounds = [run(master).bound for master in masters]
    assert bounds == [sum(r.weight for r in component.reads) for component in components]

    outcomes: dict[int, Outcome] = {}

    def solve(number: int) -> None:
        name = NAMES[process.solver]
        outcomes[number] = solve_instance(instances[number], name, time_limit=600)

    threads = [threading.Thread(target=solve, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, instance in enumerate(instances):
        assert outcomes[number].optimal
        assert outcomes[number].objective == brute_force(instance)


ORPHAN = """
import sys, threading
sys.path[:0] = sys.argv[2:]
from test_milp import PulpMaster, conflicts_of, hard_problem, run
from upscale_opt.solver.algorithms.milp_process import MilpProcess

component = hard_problem()
with MilpProcess(sys.argv[1]) as process:
    master = PulpMaster(component, 0, 1, process)
    master.add(conflicts_of(component))
    threading.Timer(2.0, lambda: print(process.pid, flush=True)).start()
    run(master, 3600)
"""


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_outlives_its_parent(solver: str) -> None:
    """Nor does CBC outlive the process that started it: they are one group."""
    here = Path(__file__).parent
    folders = [str(here), str(here.parent / "support")]
    command = [sys.executable, "-c", ORPHAN, solver, *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert is_alive(group)
        parent.kill()
    while is_alive(group):  # if it does not end, nor does this test
        time.sleep(0.05)


def is_alive(group: int) -> bool:
    """Whether the group has a process that is not dead and waiting for its parent to notice."""
    states = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [row.split() for row in states.stdout.splitlines()]
    return any(int(pgid) == group and not state.startswith("Z") for pgid, state in rows)


@pytest.mark.parametrize("solver", ["pulp", "pulp-cbc"])
def test_blocks_are_refused(solver: str) -> None:
    instance = with_measure(random_sets(3, 5, 0, 2, 3), "blocks")
    with pytest.raises(SolverError, match=rf"'{solver}' minimises copies only; use 'cp-sat'"):
        solve_instance(instance, solver, time_limit=1)


def test_highs_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SolverError, match=r'highspy: pip install "\.\[highs\]"'):
        solve_pulp(random_sets(3, 5, 0, 2, 3), time_limit=1)


def in_the_process(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Let processes run ``code`` when they start."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_cbc_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = (
        "import pulp\npulp.COIN_CMD.available = pulp.PULP_CBC_CMD.available = lambda self: False\n"
    )
    in_the_process(monkeypatch, tmp_path, gone)
    with pytest.raises(SolverError, match=r"pip install 'pulp\[cbc\]'"):
        solve_pulp_cbc(random_sets(7, 8, 3, 2, 5), time_limit=60)


def test_a_failing_solver_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = "import pulp\npulp.HiGHS.callSolver = None\n"
    in_the_process(monkeypatch, tmp_path, broken)
    with pytest.raises(SolverError, match="HiGHS failed: TypeError"):
        solve_pulp(random_sets(7, 8, 3, 2, 5), time_limit=60)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_solvers_print_does_no_harm(
    solver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise = """
import os, pulp
def noisy(solve):
    def solve_noisily(self, *rest, **more):
        print('{"state": "done"}', flush=True)
        os.write(1, b"half a line")
        return solve(self, *rest, **more)
    return solve_noisily
pulp.HiGHS.callSolver = noisy(pulp.HiGHS.callSolver)
pulp.LpProblem.solve = noisy(pulp.LpProblem.solve)
"""
    in_the_process(monkeypatch, tmp_path, noise)
    instance = random_sets(7, 8, 3, 2, 5)
    outcome = solve_instance(instance, NAMES[solver], time_limit=60)
    assert outcome.optimal
    assert outcome.objective == brute_force(instance)


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_is_left_behind(
    solver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert solve_instance(random_sets(7, 8, 3, 2, 5), NAMES[solver], time_limit=600).optimal
    solve_instance(random_sets(60, 70, 3, 2, 14), NAMES[solver], time_limit=1.5)
    assert list(tmp_path.iterdir()) == []


def test_neither_pulp_nor_highspy_comes_into_this_process() -> None:
    """HiGHS and OR-Tools have versions of one library, and whichever comes second fails."""
    code = (
        "import sys; from upscale_opt.solver.algorithms.registry import SOLVERS; "
        "from upscale_opt.models.instances.handmade import HANDMADE; "
        "SOLVERS['pulp'](HANDMADE['cycle-of-pairs'], time_limit=60); "
        "assert not {'pulp', 'highspy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
