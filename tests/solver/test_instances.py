"""Instances without networks: generators, obstructions, helpers, and their JSON."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_outcomes import instances

from upscale_opt.errors import SchemaError, UpscaleError
from upscale_opt.models.instances.from_sets import (
    of_parts,
    one_space,
    with_measure,
    with_pieces,
)
from upscale_opt.models.instances.handmade import HANDMADE, NETWORK_LIKE
from upscale_opt.models.instances.obstructions import obstruction
from upscale_opt.models.instances.random import (
    GENERATORS,
    chains,
    correlated,
    embedded,
    laminar,
    noisy_intervals,
    random_instance,
)
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.problem.instance import (
    Instance,
    Part,
    Space,
    Window,
    cost,
    is_view,
    satisfied,
)
from upscale_opt.solver.problem.instance_file import InstanceFile

SEEDS = st.integers(0, 2**20)


@pytest.mark.parametrize("name", GENERATORS)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, sets=st.integers(0, 8), channels=st.integers(1, 30))
def test_generators(name: str, seed: int, sets: int, channels: int) -> None:
    """The sizes asked for, the same for the same seed, and consistent."""
    instance, again = (GENERATORS[name](random.Random(seed), sets, channels) for _ in range(2))
    assert instance == again
    if name == "anything":
        assert len(instance.demands) == sets
    else:
        assert len(instance.reads) == sets
        assert all(any(part.channels for part in read.parts) for read in instance.reads)
    if name != "dense-block":
        assert sum(len(space.channels) for space in instance.spaces) == channels
    assert InstanceFile.from_instance(instance, name).to_instance() == instance


def test_random_instances_are_of_every_kind() -> None:
    drawn = [random_instance(random.Random(seed)) for seed in range(400)]
    demands = [demand for instance in drawn for demand in instance.demands]
    reads = [read for instance in drawn for read in instance.reads]
    assert {demand.kind for demand in demands} == {"interval", "prefix", "suffix"}
    assert {0, 1, 8} <= {len(demand.channels) for demand in demands}
    assert {0, 10**12} <= {read.weight for read in reads}
    assert {len(read.pieces) for read in reads} >= {0, 1, 2, 3}
    assert {len(read.parts) for read in reads} >= {0, 1, 2, 3}
    assert {len(instance.spaces) for instance in drawn} >= {1, 2, 3, 4}
    assert any(space.fixed for instance in drawn for space in instance.spaces)
    assert any(len(set(i.demands)) < len(i.demands) for i in drawn), "no demand is repeated"
    largest = max(len(space.channels) for instance in drawn for space in instance.spaces)
    assert largest == 8


@pytest.mark.parametrize("name", NETWORK_LIKE)
def test_views_of_handmade_instances_are_single_runs(name: str) -> None:
    for seed in range(30):
        assert_views_are_single_runs(NETWORK_LIKE[name], random.Random(seed))


@pytest.mark.parametrize("name", sorted(GENERATORS.keys() - {"anything"}))
@given(seed=SEEDS, sets=st.integers(1, 6), channels=st.integers(1, 6))
def test_views_of_random_instances_are_single_runs(
    name: str, seed: int, sets: int, channels: int
) -> None:
    rng = random.Random(seed)
    assert_views_are_single_runs(GENERATORS[name](rng, sets, channels), rng)


def assert_views_are_single_runs(instance: Instance, rng: random.Random) -> None:
    """Demands and parts mean the same: under any orders, a read is a view where it is one run."""
    orders = tuple(
        space.channels if space.fixed else tuple(rng.sample(space.channels, len(space.channels)))
        for space in instance.spaces
    )
    held = satisfied(instance, orders)
    for read in instance.reads:
        alone = with_measure(replace(instance, reads=(read,)), "blocks")
        assert is_view(read.view, held) == (cost(alone, orders) == 1)


@given(SEEDS, st.integers(1, 8), st.integers(1, 8))
def test_planted_orders_are_optima(seed: int, sets: int, channels: int) -> None:
    rng = random.Random(seed)
    assert brute_force(noisy_intervals(rng, sets, channels, flips=0)) == 0
    assert brute_force(laminar(rng, sets, channels)) == 0
    assert brute_force(chains(rng, sets, channels, count=1)) == 0
    assert brute_force(correlated(rng, sets, channels, correlation=1)) == 0


def test_correlated_sets_agree_more() -> None:
    def agreement(correlation: float) -> int:
        instance = correlated(random.Random(0), 8, 200, correlation=correlation)
        sets = [demand.channels for demand in instance.demands]
        return sum(len(a & b) for a in sets for b in sets)

    assert agreement(0) < agreement(0.5) < agreement(0.9)


@settings(deadline=None)
@given(SEEDS, st.sampled_from(["I", "II", "III", "IV", "V"]), st.integers(6, 8))
def test_embedded_obstructions_remain_obstructions(seed: int, name: Any, channels: int) -> None:
    rows = embedded(random.Random(seed), obstruction(name, 1), channels)
    assert brute_force(one_space(channels, rows)) > 0
    for row in rows:
        assert brute_force(one_space(channels, [other for other in rows if other is not row])) == 0


@pytest.mark.parametrize(("name", "k"), [("VI", 1), ("I", 0)])
def test_unknown_obstructions_are_refused(name: Any, k: int) -> None:
    with pytest.raises(UpscaleError, match=rf"no obstruction M_{name}\({k}\)"):
        obstruction(name, k)


def test_parts_make_demands() -> None:
    spaces = [Space((0, 1, 2)), Space((3,)), Space((4, 5))]
    full, empty = frozenset({3}), frozenset[int]()
    instance = of_parts(
        spaces,
        [
            [Part(0, frozenset({1})), Part(1, full), Part(2, frozenset({4}))],
            [Part(0, frozenset({1})), Part(1, empty), Part(2, frozenset({4}))],
            [Part(0, empty), Part(2, frozenset({5}))],
            [Part(0, empty)],
        ],
    )
    asked = [(demand.space, demand.kind, sorted(demand.channels)) for demand in instance.demands]
    assert asked == [(0, "suffix", [1]), (2, "prefix", [4]), (2, "interval", [5])]
    assert [read.view for read in instance.reads] == [(0, 1), None, (2,), ()]
    assert [read.weight for read in instance.reads] == [3, 2, 1, 0]
    pieces = with_pieces(instance, 2).reads[1].pieces
    assert [piece.weight for piece in pieces] == [1, 1]
    counted = with_measure(instance, "blocks")
    assert [read.weight for read in counted.reads] == [1] * 4
    assert brute_force(counted) == 4


def test_instances_need_no_torch() -> None:
    program = (
        "import sys, upscale_opt.solver.problem.instance_file\n"
        "import upscale_opt.models.instances.random\n"
        "import upscale_opt.models.instances.handmade, upscale_opt.solver.brute_force\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@settings(max_examples=200)
@given(instances(), st.text(max_size=20))
def test_json_round_trip(instance: Instance, name: str) -> None:
    document = InstanceFile.from_instance(
        replace(instance, wishes=tuple(replace(read, pieces=()) for read in instance.reads)), name
    )
    again = InstanceFile.from_json(document.to_json())
    assert again == document
    assert replace(again.to_instance(), wishes=()) == instance
    assert again.name == name


def windowed() -> Instance:
    """Two reads that cannot both be views, and a window for one of them."""
    instance = one_space(4, [{0, 1}, {0, 2}, {0, 3}])
    reads = list(instance.reads)
    reads[0] = replace(reads[0], weight=5, window=Window(2, frozenset({0, 1, 2})))
    return replace(instance, reads=tuple(reads))


def test_windows_are_a_part_of_the_document() -> None:
    document = InstanceFile.from_instance(windowed(), "windows")
    assert InstanceFile.from_json(document.to_json()).to_instance() == windowed()


def test_unsound_windows_are_refused() -> None:
    data = json.loads(InstanceFile.from_instance(windowed(), "windows").to_json())
    for key, value, message in (
        ("allowed", "0-2,9", r"reads\.0\.window allows channel 9, which space 0 does not have"),
        ("allowed", "0-9999999999", "more than 4,000,000 channels"),
        ("price", -1, r"reads\.0\.window\.price"),
    ):
        broken = json.loads(json.dumps(data))
        broken["reads"][0]["window"][key] = value
        with pytest.raises(SchemaError, match=message):
            InstanceFile.from_json(json.dumps(broken))
    broken = json.loads(json.dumps(data))
    broken["demands"][0]["kind"] = "prefix"
    with pytest.raises(SchemaError, match=r"reads\.0 has a window, but its view is not one"):
        InstanceFile.from_json(json.dumps(broken))


def test_unsound_instances_are_not_written() -> None:
    instance = one_space(3, [{0, 1}])
    with pytest.raises(SchemaError, match=r"reads\.0 refers to demand 0; there are 0"):
        InstanceFile.from_instance(replace(instance, demands=()), "broken")
    cheap = tuple(replace(read, weight=-1) for read in instance.reads)
    with pytest.raises(SchemaError, match=r"reads\.0\.weight: .*greater than or equal"):
        InstanceFile.from_instance(replace(instance, reads=cheap), "broken")


def raw() -> dict[str, Any]:
    """A small instance as JSON data, to be broken."""
    document = InstanceFile.from_instance(
        HANDMADE["pieces-within-the-limit"], "raw", optimum=4, optimum_by="brute force"
    )
    data: dict[str, Any] = json.loads(document.to_json())
    data["wishes"] = [{"weight": 1, "view": [0]}]
    return data


BROKEN: dict[str, tuple[list[str | int], Any, str]] = {
    "version": (["schema_version"], 2, "schema_version 2"),
    "unknown field": (["colour"], "red", "colour: unknown field"),
    "measure": (["measure"], "bytes", "measure: .*'copies' or 'blocks'"),
    "shared channel": (["spaces", 1, "channels"], "3-7", r"spaces\.1 lists channel 3.*spaces\.0"),
    "repeated channel": (["spaces", 0, "channels"], "0-3,2", r"spaces\.0 lists channel 2"),
    "negative channel": (["spaces", 0, "channels"], "-1", r"spaces\.0\.channels: .*not a run"),
    "no such space": (["demands", 0, "space"], 2, r"demands\.0 refers to space 2; there are 2"),
    "negative space": (["demands", 0, "space"], -1, r"demands\.0\.space: .*greater than or equal"),
    "kind": (["demands", 0, "kind"], "cyclic", r"demands\.0\.kind"),
    "foreign channel": (
        ["demands", 0, "channels"],
        "0,7",
        r"demands\.0 wants channel 7, which space 0 does not have",
    ),
    "channel wanted twice": (
        ["demands", 0, "channels"],
        "1,1",
        r"demands\.0\.channels: .*lists a channel twice",
    ),
    "no such demand": (["reads", 1, "view"], [99], r"reads\.1 refers to demand 99; there are"),
    "no such demand in a piece": (
        ["reads", 0, "pieces", 0, "view"],
        [99],
        r"reads\.0 refers to demand 99; there are",
    ),
    "no such demand in a wish": (["wishes", 0, "view"], [99], r"wishes\.0 refers to demand 99"),
    "a wish with pieces": (
        ["wishes", 0, "pieces"],
        [{"weight": 1, "view": None}],
        r"wishes\.0 has pieces",
    ),
    "foreign channel in a part": (
        ["reads", 0, "parts", 0, "channels"],
        "7",
        r"reads\.0\.parts\.0 wants channel 7, which space 0 does not have",
    ),
    "negative weight": (["reads", 0, "weight"], -1, r"reads\.0\.weight: .*greater than or equal"),
    "weight with a fraction": (["reads", 0, "weight"], 1.5, r"reads\.0\.weight: .*integer"),
    "weight in words": (["reads", 0, "weight"], "3", r"reads\.0\.weight: .*integer"),
    "weight that is none": (["reads", 0, "weight"], True, r"reads\.0\.weight: .*integer"),
    "negative number of gathers": (["reads", 0, "max_gathers"], -1, r"reads\.0\.max_gathers"),
    "negative optimum": (["optimum"], -1, "optimum: .*greater than or equal"),
    "an optimum by nobody": (["optimum_by"], None, "optimum and optimum_by must be given together"),
    "an optimum by magic": (["optimum_by"], "magic", "optimum_by"),
    "endless space": (["spaces", 0, "channels"], "0-9999999999", "more than 4,000,000 channels"),
    "not a list": (["spaces"], 5, "spaces"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_json_is_refused_by_name(name: str) -> None:
    path, value, message = BROKEN[name]
    InstanceFile.from_json(json.dumps(raw()))
    data = place = raw()
    for key in path[:-1]:
        place = place[key]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    with pytest.raises(SchemaError, match=message) as caught:
        InstanceFile.from_json(json.dumps(data))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", "[" * 10**5, '{"name": 1}'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(SchemaError, match="not a valid instance"):
        InstanceFile.from_json(text)


def test_many_short_lists_do_not_fill_memory() -> None:
    """Each list alone would be allowed; together they would take gigabytes."""
    data = raw()
    data["demands"] = [{"space": 0, "channels": "0-3999999"}] * 10_000
    with pytest.raises(SchemaError, match="more than 4,000,000 channels altogether"):
        InstanceFile.from_json(json.dumps(data))
