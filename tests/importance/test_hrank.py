"""HRank: ranks of feature maps, against NumPy image by image."""

from __future__ import annotations

import copy
import gc
import pickle
import statistics
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import call
from importance_reference import Part, Small, masked, scores_of, segments_of, traced
from torch import Tensor, nn

import upscale_opt as uo
from upscale_opt.importance import HRank, score_segments
from upscale_opt.importance.choosing import choose_masks
from upscale_opt.managers.masking import MaskingManager
from upscale_opt.masking.segments import Method, Side, find_segments


def images(count: int, size: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images of low rank: one to three outer products per color."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(count, 3, size, size, dtype=dtype)
    for image in found:
        for color in image:
            for _ in range(int(torch.randint(1, 4, (), generator=generator))):
                left, right = torch.randn(2, size, generator=generator, dtype=dtype)
                color += left[:, None] * right
    return found


class Ranked(nn.Module):
    """Layers through which ranks differ from channel to channel."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 5, 1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.wide = nn.Conv2d(5, 4, 3)
        self.narrow = nn.Conv2d(5, 4, (1, 3), padding=(0, 0))
        self.last = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.mix.weight.copy_(
                torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]])[
                    :, :, None, None
                ]
            )
        self.double().eval()

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """What goes in and comes out of layers, worked out by hand."""
        mixed = self.mix(x)
        normed = self.norm(mixed).relu()
        wide, narrow = self.wide(normed), self.narrow(normed)[:, :, :4]
        added = wide + narrow
        return {
            "mix.weight (output)": mixed,
            "wide.weight (input)": normed,
            "wide.weight (output)": wide,
            "narrow.weight (input)": normed,
            "narrow.weight (output)": self.narrow(normed),
            "last.weight (input)": added,
        }

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.mix(x)).relu()
        out: Tensor = self.last(self.wide(normed) + self.narrow(normed)[:, :, :4])
        return out


def mean_ranks(batches: list[Tensor]) -> list[float]:
    """The mean rank of every channel, image by image, by NumPy."""
    ranks = [
        [int(np.linalg.matrix_rank(channel)) for channel in image.numpy()]
        for batch in batches
        for image in batch
    ]
    return [statistics.fmean(own) for own in zip(*ranks, strict=True)]


BATCHES = [images(2, seed=1), images(5, seed=2), images(1, seed=3)]


def reference_ranks(model: Ranked, batches: list[Tensor]) -> dict[str, list[float]]:
    with torch.no_grad():
        maps = [model.maps(batch) for batch in batches]
    return {name: mean_ranks([one[name] for one in maps]) for name in maps[0]}


def test_hrank_is_the_mean_rank_over_all_images() -> None:
    model = Ranked()
    expected = reference_ranks(model, BATCHES)
    assert len(set(expected["mix.weight (output)"])) == 5  # or there is little to tell apart
    found = scores_of(segments_of(model, "unconstrained", "both"), HRank(BATCHES))
    assert found.keys() == expected.keys()
    for name, ranks in expected.items():
        assert found[name] == pytest.approx(ranks), name


def test_hrank_in_single_precision() -> None:
    model, batches = Ranked().float(), [batch.float() for batch in BATCHES]
    graph = uo.trace(model, batches[0])
    found = scores_of(find_segments(model, graph, "both"), HRank(batches))
    for name, ranks in reference_ranks(model, batches).items():
        assert found[name] == pytest.approx(ranks), name


def test_hrank_in_half_precision() -> None:
    model, batches = Ranked().bfloat16(), [batch.bfloat16() for batch in BATCHES]
    graph = uo.trace(model, batches[0])
    found = scores_of(find_segments(model, graph, "output"), HRank(batches))
    with torch.no_grad():
        maps = [model.mix(batch).float() for batch in batches]
    assert found["mix.weight (output)"] == pytest.approx(mean_ranks(maps))


def test_hrank_as_in_the_seed() -> None:
    model = Ranked()
    hrank = HRank()
    assert hrank.needs_feature_map_statistics
    assert hrank.register(model) is True
    for batch in BATCHES:
        call(model, batch)
    hrank.deregister(model)
    call(model, images(4, seed=9))  # counts no more
    assert not any(module._forward_hooks for module in model.modules())
    expected = scores_of(segments_of(model, "unconstrained", "both"), HRank(BATCHES))
    assert scores_of(segments_of(model, "unconstrained", "both"), hrank) == expected
    MaskingManager(model, inputs=BATCHES[0]).importance(hrank).mask(0.4)
    order = sorted(range(5), key=lambda c: (expected["wide.weight (input)"] or [])[c])
    zero = (model.wide.weight == 0).all(dim=3).all(dim=2).all(dim=0)
    assert set(zero.nonzero().flatten().tolist()) == set(order[:2])


def test_hrank_in_the_mode_that_the_user_runs() -> None:
    model = Ranked().train()
    hrank = HRank(side="output")
    hrank.register(model)
    model(BATCHES[1])
    hrank.deregister(model)
    assert model.training
    assert model.norm.num_batches_tracked == 1
    found = scores_of(segments_of(model, "unconstrained", "output"), hrank)
    assert found["mix.weight (output)"] == pytest.approx(
        mean_ranks([model.mix(BATCHES[1]).detach()])
    )


def test_registering_again_starts_afresh() -> None:
    model = Ranked()
    hrank = HRank()
    hrank.register(model)
    call(model, BATCHES[0])
    hrank.register(model)
    call(model, BATCHES[1])
    hrank.deregister(model)
    hrank.deregister(model)  # and nothing is left to take off
    assert not any(module._forward_hooks for module in model.modules())
    found = scores_of(segments_of(model), hrank)
    assert found == scores_of(segments_of(model), HRank(BATCHES[1]))


def test_hrank_through_a_wrapper() -> None:
    """The seed's paper script registers ``DataParallel(model)`` and masks ``model``."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.module(x)
            return out

    model = Ranked()
    wrapped, hrank = Wrapper(model), HRank()
    hrank.register(wrapped)
    call(wrapped, BATCHES[0])
    hrank.deregister(wrapped)
    assert scores_of(segments_of(model), hrank) == scores_of(segments_of(model), HRank(BATCHES[:1]))


def test_hrank_of_one_side() -> None:
    model = Ranked()
    both = scores_of(segments_of(model, "unconstrained", "both"), HRank(BATCHES))
    for side in ("input", "output"):
        for hrank in (HRank(BATCHES, side), HRank(BATCHES, side=side)):
            found = scores_of(segments_of(model, "unconstrained", "both"), hrank)
            for name, scores in found.items():
                assert scores == (both[name] if name.endswith(f"({side})") else None)
    everything = HRank(BATCHES, side="both")
    assert scores_of(segments_of(model, "unconstrained", "both"), everything) == both


def test_hrank_takes_the_seeds_arguments_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Ranked()
    for hrank in (HRank("input", "./out"), HRank(side="input", out=tmp_path / "out"), HRank()):
        hrank.register(model)
        call(model, BATCHES[0])
        hrank.deregister(model)
        found = scores_of(segments_of(model), hrank)
        assert found == scores_of(segments_of(model), HRank(BATCHES[:1]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("side", ["input", "output", "both"])
@pytest.mark.parametrize("together", [False, True])
def test_hrank_chooses_masks_per_layer_and_globally(side: Side, together: bool) -> None:
    model = Ranked()
    graph = traced(model)
    segments = find_segments(model, graph, side)
    names = [segment.name for segment in segments]
    expected = reference_ranks(model, BATCHES)
    masks = choose_masks(model, graph, 0.5, criterion=HRank(BATCHES), side=side, is_global=together)
    units = [
        tuple(Part(s.weight, s.axis, tuple(map(tuple, s.slices.tolist()))) for s in segment.shares)
        for segment in segments
    ]
    kept = masked(units, [expected[name] for name in names], 0.5, together)
    for (weight, axis), slices in kept.items():
        assert set(masks.kept[weight][axis]) == slices


def test_hrank_of_a_group_is_the_mean_over_its_layers() -> None:
    model = Small()
    with torch.no_grad():  # or all ranks were alike
        model.stem.weight[2] = 0
        model.side.weight[1] = 0
        assert model.side.bias is not None
        model.side.bias[1] = 0
        model.head.weight[:3] = 0
    batches = [images(3, seed=4)]
    single = scores_of(segments_of(model, "unconstrained", "both"), HRank(batches))
    stream, beside, last = segments_of(model, "constrained", "both")
    score_segments([stream, beside, last], HRank(batches))
    assert stream.scores is not None
    assert beside.scores is not None
    assert last.scores is not None
    head = single["head.weight (input)"] or []
    members = [
        single["body.weight (input)"],
        single["side.weight (input)"],
        head[:4],
        single["stem.weight (output)"],
        single["body.weight (output)"],
    ]
    for channel, score in enumerate(stream.scores.tolist()):
        ranks = [own[channel] for own in members if own is not None]
        assert len(ranks) == 5
        assert score == pytest.approx(statistics.fmean(ranks))
    outputs = single["side.weight (output)"] or []
    expected = [(a + b) / 2 for a, b in zip(head[4:], outputs, strict=True)]
    assert beside.scores.tolist() == pytest.approx(expected)
    assert last.scores.tolist() == single["head.weight (output)"]  # fc has no maps
    for segment in (stream, beside, last):
        assert segment.scores is not None
        assert len(set(segment.scores.tolist())) > 1
    assert single["fc.weight (input)"] is None


def test_hrank_of_volumes_is_the_mean_over_the_depth() -> None:
    first = nn.Conv3d(2, 3, 1).double()
    model = nn.Sequential(first, nn.Conv3d(3, 2, 1).double())
    volume = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64)
    volume[:, :, 0] = 1  # of rank 1
    graph = uo.trace(model, volume)
    found = scores_of(find_segments(model, graph), HRank([volume]))
    with torch.no_grad():
        maps = first(volume)
    slices = maps.transpose(1, 2).flatten(0, 1)
    assert found == {"1.weight (input)": pytest.approx(mean_ranks([slices]))}


def test_hrank_of_a_single_image_without_a_batch() -> None:
    model = Ranked()
    hrank = HRank(side="output")
    hrank.register(model.mix)
    model.mix(BATCHES[0][0])
    hrank.deregister(model.mix)
    found = scores_of(segments_of(model, "unconstrained", "output"), hrank)
    ranks = reference_ranks(model, [BATCHES[0][:1]])["mix.weight (output)"]
    assert found["mix.weight (output)"] == ranks


@pytest.mark.parametrize("method", ["unconstrained", "constrained"])
def test_layers_without_maps_are_left_alone(method: Method) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.image2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.signal, self.signal2 = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 3, 1)
            self.free = nn.Parameter(torch.randn(4, 3, 1))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.image2(self.image(x)).mean(dim=3)
            x = nn.functional.conv1d(self.signal2(self.signal(x)), self.free)
            out: Tensor = self.fc(x.mean(dim=2))
            return out

    model = Mixed().double()
    segments = segments_of(model, method, "both")
    found = scores_of(segments, HRank([images(2)]))
    for segment in segments:
        has = any(share.weight.startswith("image") for share in segment.shares)
        assert (found[segment.name] is not None) == has, segment.name
    assert any(scores is None for scores in found.values())


class Pair(nn.Module):
    """Two inputs, given by position or by name; a convolution called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)
        self.double()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.last(input=self.one(left) + self.two(right))
        return out


def test_hrank_with_inputs_in_all_forms() -> None:
    model = Pair()
    left, right = images(3, seed=5), images(3, seed=6)
    graph = uo.trace(model, (left, right))
    with torch.no_grad():
        expected = mean_ranks([model.one(left) + model.two(right)])
    forms: list[Any] = [
        [(left, right)],
        [[left, right]],
        [{"right": right, "left": left}],
        {"left": left, "right": right},
        iter([(left[:1], right[:1]), (left[1:], right[1:])]),
    ]
    for batches in forms:
        found = scores_of(find_segments(model, graph), HRank(batches))
        assert found["last.weight (input)"] == pytest.approx(expected)
    single = Ranked()
    assert scores_of(segments_of(single), HRank(BATCHES[1])) == scores_of(
        segments_of(single), HRank([BATCHES[1]])
    )


def test_hrank_does_not_hold_on_to_models() -> None:
    model = Ranked()
    hrank = HRank()
    hrank.register(model)
    call(model, BATCHES[0])
    hrank.deregister(model)
    batched = HRank(BATCHES)
    score_segments(segments_of(model), batched)
    gone: list[Callable[[], Any]] = [weakref.ref(t) for t in (model, model.wide, model.wide.weight)]
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]
    assert batched.batches is not None


def test_copies_of_models_and_of_hrank() -> None:
    model = Ranked()
    hrank = HRank()
    hrank.register(model)
    call(model, BATCHES[0])
    hrank.deregister(model)
    other = copy.deepcopy(model)
    with pytest.raises(uo.MaskError, match="copy of a model counts as another model"):
        score_segments(segments_of(other), hrank)
    for twin in (copy.deepcopy(hrank), pickle.loads(pickle.dumps(hrank))):
        with pytest.raises(uo.MaskError, match="seen no input maps"):
            score_segments(segments_of(model), twin)
        twin.register(other)
        call(other, BATCHES[0])
        twin.deregister(other)
        assert scores_of(segments_of(other), twin) == scores_of(segments_of(model), hrank)


def test_hrank_without_batches_or_maps() -> None:
    model = Ranked()
    with pytest.raises(uo.MaskError, match=r"input maps .* HRank\(batches\)"):
        score_segments(segments_of(model), HRank())
    with pytest.raises(uo.MaskError, match=r"output maps .* \(it looks at input maps"):
        score_segments(segments_of(model, "unconstrained", "output"), HRank(BATCHES, "input"))
    with pytest.raises(uo.MaskError, match="no batches"):
        score_segments(segments_of(model), HRank([]))
    used = iter(BATCHES)
    list(used)
    with pytest.raises(uo.MaskError, match="an iterator gives them once"):
        score_segments(segments_of(model), HRank(used))
    with pytest.raises(uo.MaskError, match=r"side must be .* not 'left'"):
        HRank(side="left")
    with pytest.raises(uo.TraceError, match="inputs are a int"):
        score_segments(segments_of(model), HRank([3]))  # type: ignore[list-item]
    assert HRank().register(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))) is False


def test_hrank_of_maps_that_are_not_finite() -> None:
    model = Ranked()
    with torch.no_grad():
        model.wide.weight[2] = torch.inf
    with pytest.raises(uo.MaskError, match="output of layer 'wide' is not finite"):
        score_segments(segments_of(model, "unconstrained", "output"), HRank(BATCHES))


def test_hrank_of_a_layer_that_has_shrunk_since() -> None:
    model = Ranked()
    hrank = HRank()
    hrank.register(model)
    call(model, BATCHES[0])
    hrank.deregister(model)
    model.mix.weight = nn.Parameter(model.mix.weight[:4].detach().clone())
    model.norm = nn.BatchNorm2d(4).double().eval()
    for layer in (model.wide, model.narrow):
        layer.weight = nn.Parameter(layer.weight[:, :4].detach().clone())
    with pytest.raises(uo.MaskError, match="'wide' with 5 input channels, but it has 4 now"):
        score_segments(segments_of(model), hrank)
