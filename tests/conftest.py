"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from command_line import Output, Refuses, call, one_line_error
from hazards_not_yet import NOT_YET
from hypothesis import settings
from onnx_once import read_operators_once
from sample_networks import Documents, ManyReaders, documents_in, documents_of
from saved_network import Net, build, call_
from tiers import is_slow
from torch import Tensor

import upscale_opt as uo
from upscale_opt.tracing.unchanged import reseed

torch.set_num_threads(1)  # tests run side by side
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that they start, too
read_operators_once()

settings.register_profile("untimed", deadline=None)  # other work may keep the machine busy
settings.load_profile("untimed")

# Shells let what they run in the background ignore Ctrl-C, and so would our tests and commands.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the files that ``make quick`` leaves out."""
    if config.option.markexpr != "not slow" or collection_path == HERE:
        return None
    name = collection_path.relative_to(HERE).as_posix()
    return True if is_slow(f"{name}/" if collection_path.is_dir() else name) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what ``make quick`` leaves out, and the hazards that are not mended yet."""
    for item in items:
        for mark in item.iter_markers("hazard"):
            kind, variant = mark.args
            if variant in NOT_YET.get(kind, ()):
                item.add_marker(pytest.mark.xfail(strict=False, reason=f"issue 18: kind {kind}"))
        if is_slow(item.path.relative_to(HERE).as_posix(), item.name):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Look for garbage less often, and not among what was imported: a sixth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def pytest_sessionfinish() -> None:
    """Let what was frozen end in order."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def random_state() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    reseed(0)


@pytest.fixture(scope="session")
def resnet18_documents() -> Documents:
    """A masked resnet18 with its graph, masks and solution. Not to be changed."""
    return documents_of("resnet18", amount=0.5)


@pytest.fixture(scope="session")
def json_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graph's and masks' JSON of resnet50."""
    return documents_in(tmp_path_factory.mktemp("resnet50"), "resnet50")


@pytest.fixture(scope="session")
def large_json_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of densenet201."""
    return documents_in(tmp_path_factory.mktemp("densenet201"), "densenet201")


@pytest.fixture(scope="session")
def hard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a graph and masks that no solver finishes."""
    folder = tmp_path_factory.mktemp("hard")
    files = folder / "graph.json", folder / "masks.json"
    graph = uo.trace(ManyReaders(), torch.zeros(1, 3, 4, 4))
    graph.save(files[0])
    draw = random.Random(0)
    kept = {
        f"readers.{number}.weight": {1: tuple(sorted(draw.sample(range(60), draw.randint(2, 14))))}
        for number in range(70)
    }
    uo.Masks(kept=kept).save(files[1])
    return files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a pruned model may be saved."""
    return tmp_path / "pruned.safetensors"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a pruned network that is whole. Not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "whole.safetensors"
    uo.save(build(), path)
    return path


@pytest.fixture(scope="session")
def expected(saved: Path) -> Tensor:
    """What the network in that file computes."""
    return call_(uo.load(Net(), saved))


@pytest.fixture
def refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> Refuses:
    """Asserts that a call fails with this code and one line with these words, writing nothing."""

    def refuse(*arguments: object, code: int, words: list[str]) -> None:
        monkeypatch.chdir(tmp_path)
        assert call(*arguments) == code
        error = one_line_error(capsys)
        assert all(word in error for word in words), error
        assert not list(tmp_path.iterdir())

    return refuse
