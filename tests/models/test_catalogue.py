"""The groups of the catalogue beyond classifiers and topologies."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from comparing import call
from torch.utils import _pytree as pytree

from upscale_opt.errors import UpscaleError
from upscale_opt.models import catalogue
from upscale_opt.models.catalogue import timm as catalogue_timm

SIZES = {
    "classification": 80,
    "segmentation": 6,
    "video": 9,
    "optical_flow": 2,
    "quantizable": 12,
    "detection": 12,
}

ONE_OF_EACH = [
    "segmentation/lraspp_mobilenet_v3_large",
    "video/r3d_18",
    "optical_flow/raft_small",
    "quantizable/shufflenet_v2_x0_5",
    "detection/ssdlite320_mobilenet_v3_large",
    *(f"timm/{names.split()[0]}" for names in catalogue_timm.FAMILIES.values()),
]


def test_groups_hold_what_they_should() -> None:
    assert {group: len(catalogue.names(group)) for group in SIZES} == SIZES
    assert len(catalogue.names("timm")) >= 60
    every = [name for group in catalogue.GROUPS for name in catalogue.names(group)]
    assert len(every) == len(set(every))
    assert all(
        catalogue.group_of(name) == group
        for group in catalogue.GROUPS
        for name in catalogue.names(group)
    )
    assert catalogue.names() == catalogue.names("classification") + catalogue.names("topology")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_of_each_runs_and_is_random_throughout(name: str) -> None:
    inputs = catalogue.example_inputs(name, 2)
    state = torch.get_rng_state()
    model = catalogue.randomize(catalogue.build(name, seed=1), 2, inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    leaves = [leaf for leaf in pytree.tree_leaves(call(model, inputs)) if leaf is not None]
    assert leaves
    assert all(bool(leaf.isfinite().all()) for leaf in leaves)
    for key, parameter in model.named_parameters():
        equal = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
        assert not equal, key
        assert float((parameter == 0).float().mean()) < 0.01, key


@pytest.mark.parametrize("name", catalogue_timm.networks())
def test_timm_has_all_that_are_listed(name: str) -> None:
    import timm

    assert timm.is_model(name.removeprefix("timm/"))


def test_batches_are_as_large_as_asked_for() -> None:
    first, second = positional("optical_flow/raft_small")
    assert first.shape == second.shape == (3, 3, 128, 128)
    assert not torch.equal(first, second)
    (images,) = positional("detection/fasterrcnn_resnet50_fpn")
    assert [tuple(image.shape) for image in images] == [(3, 160, 160)] * 3


def positional(name: str) -> tuple[Any, ...]:
    inputs = catalogue.example_inputs(name, 3)
    assert isinstance(inputs, tuple)
    return inputs


def test_names_need_no_timm_and_building_says_what_is_missing() -> None:
    program = (
        "import sys\n"
        "sys.modules['timm'] = None\n"
        "from upscale_opt.errors import UpscaleError\n"
        "from upscale_opt.models import catalogue\n"
        "assert 'timm/resnet18' in catalogue.names('timm')\n"
        "catalogue.example_inputs('timm/resnet18')\n"
        "try:\n"
        "    catalogue.build('timm/resnet18')\n"
        "except UpscaleError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'pip install ".[timm]" in the clone, or "upscale-opt[timm]"' in done.stdout


def test_wrong_names_are_hinted_at() -> None:
    with pytest.raises(UpscaleError, match="there is no group 'cars'; there are classification"):
        catalogue.names("cars")
    with pytest.raises(UpscaleError, match="did you mean video/r3d_18"):
        catalogue.build("r3d_18")
    with pytest.raises(UpscaleError, match="timm/resnet10t"):
        catalogue.build("timm/resnet10")


def test_what_people_prune_is_listed_without_its_packages() -> None:
    names = catalogue.names("wild")
    assert len(names) >= 55
    assert not {"ultralytics", "transformers", "diffusers", "monai"} & sys.modules.keys()
    for name in names:
        leaves = pytree.tree_leaves(catalogue.example_inputs(name, 3))
        assert [len(leaf) for leaf in leaves] == [3] * len(leaves)


def test_building_what_people_prune_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", None)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(UpscaleError, match=r'"upscale-opt\[wild\]"'):
        catalogue.build("wild/yolov8n")
