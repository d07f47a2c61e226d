"""The kernels that move channels: the same numbers as PyTorch's own, in the same memory format."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from upscale_opt.runtime.gather import compact, gather

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def form_of(x: Tensor) -> torch.memory_format:
    """The memory format of a dense tensor; contiguous if it has several."""
    last = LAST.get(x.dim())
    if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


@st.composite
def tensors(draw: st.DrawFn, least: int = 0) -> Tensor:
    """Tensors of rank 2 to 5, in any format, dense, or views with gaps or in another order."""
    rank = draw(st.integers(2, 5))
    shape = [draw(st.integers(least, 4)) for _ in range(rank)]
    shape[1] = draw(st.integers(max(least, 1), 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(shape, generator=generator)
    if rank in LAST and draw(st.booleans(), label="channels last"):
        x = x.contiguous(memory_format=LAST[rank])
    how = draw(st.sampled_from(["dense", "narrow", "step", "transposed", "expanded", "rows"]))
    if how == "narrow" and x.shape[1] > 2:
        x = x.narrow(1, 1, x.shape[1] - 2)
    elif how == "step":
        x = x[:, ::2]
    elif how == "transposed":
        x = x.transpose(0, -1)
    elif how == "expanded" and x.shape[0]:
        x = x[:1].expand(3, *x.shape[1:])
    elif how == "rows":
        x = x[..., ::2]
    return x


@settings(max_examples=150, deadline=None)
@given(tensors(), st.data())
def test_gather_is_index_select(x: Tensor, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, x.dim() - 1))
    size = x.shape[dim]
    entries = st.lists(st.integers(0, size - 1), max_size=7) if size else st.just([])
    indices = torch.tensor(data.draw(entries), dtype=torch.int64)
    assert torch.equal(gather(x, dim, indices), x.index_select(dim, indices))


@settings(max_examples=100, deadline=None)
@given(tensors())
def test_compact_is_the_identity(x: Tensor) -> None:
    y = compact(x)
    assert torch.equal(x, y)
    assert y.is_contiguous() or y.is_contiguous(memory_format=LAST[y.dim()])
    if x.is_contiguous():
        assert y is x


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_the_format_is_kept(rank: int, last: bool, part: bool) -> None:
    x = torch.randn(2, 8, *range(3, rank + 1))
    if last and rank in LAST:
        x = x.contiguous(memory_format=LAST[rank])
    want = form_of(x)
    if part:
        x = x.narrow(1, 2, 5)
    assert form_of(compact(x)) == want
    chosen = gather(x, 1, torch.tensor([4, 0, 3]))
    assert form_of(chosen) == want
    assert chosen.is_contiguous(memory_format=want)


@pytest.mark.parametrize("last", [False, True])
def test_what_is_dense_is_not_copied(last: bool) -> None:
    x = torch.randn(2, 8, 3, 4)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    assert compact(x).data_ptr() == x.data_ptr()
    view = x.narrow(1, 1, 4)
    assert compact(view).data_ptr() != view.data_ptr()


@pytest.mark.parametrize(
    "shape",
    [(0, 4, 3, 3), (2, 4, 0, 3), (2, 0, 3, 3), (0, 4, 2, 2, 2), (2, 1, 1, 1), (1, 4, 1, 1)],
)
def test_nothing_to_move(shape: Sequence[int]) -> None:
    for form in (torch.contiguous_format, LAST[len(shape)]):
        x = torch.zeros(tuple(shape)).contiguous(memory_format=form)
        assert torch.equal(compact(x), x)
        for indices in ([], [0, 0] if shape[1] else []):
            where = torch.tensor(indices, dtype=torch.int64)
            assert torch.equal(gather(x, 1, where), x.index_select(1, where))


@pytest.mark.parametrize("last", [False, True])
def test_gradients(last: bool) -> None:
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    where = torch.tensor([3, 3, 0])
    assert torch.autograd.gradcheck(lambda t: gather(t, 1, where), x)
    assert torch.autograd.gradcheck(lambda t: compact(t.narrow(1, 1, 3)), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = (torch.arange(2 * 5 * 3 * 3).reshape(2, 5, 3, 3) % 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    where = torch.tensor([4, 1])
    assert torch.equal(gather(x, 1, where), x.index_select(1, where))
    assert compact(x.narrow(1, 1, 3)).dtype == dtype


@pytest.mark.parametrize("last", [False, True])
def test_compiled(last: bool) -> None:
    def moved(x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        return gather(x, 1, where), compact(x.narrow(1, 1, 4))

    x = torch.randn(2, 6, 3, 2)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    where = torch.tensor([5, 0])
    compiled = torch.compile(moved, backend="eager", fullgraph=True)
    for want, got in zip(moved(x, where), compiled(x, where), strict=True):
        assert torch.equal(want, got)
    dense = torch.compile(compact, backend="eager", fullgraph=True)(x)
    assert dense.stride() == x.stride()


def test_compact_is_traced_through() -> None:
    graph = fx.symbolic_trace(lambda x: compact(x) + 1)
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(graph(x), x + 1)
