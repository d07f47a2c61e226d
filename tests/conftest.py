"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Documents, documents_of

torch.set_num_threads(1)  # tests run side by side


@pytest.fixture(autouse=True)
def random_state() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def resnet18_documents() -> Documents:
    """A masked resnet18 with its graph, masks and solution. Not to be changed."""
    return documents_of("resnet18", amount=0.5)


@pytest.fixture(scope="session")
def json_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graph's and masks' JSON of resnet50 and densenet201."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("resnet50", "densenet201"):
        documents = documents_of(name, amount=0.5)
        documents.graph.save(folder / f"{name}.graph.json")
        documents.masks.save(folder / f"{name}.masks.json")
    return folder
