"""Parameters and multiply-adds against numbers worked out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from upscale_opt.measuring.costs import Costs, count_costs

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def test_convolution() -> None:
    model = nn.Conv2d(3, 8, 3, padding=1)
    assert count_costs(model, torch.zeros(2, 3, 10, 12)) == Costs(
        parameters=8 * 3 * 9 + 8, multiply_adds=2 * 8 * 3 * 9 * 10 * 12
    )


def test_strided_grouped_convolution() -> None:
    model = nn.Conv2d(8, 16, 3, stride=2, groups=4, bias=False)
    assert count_costs(model, torch.zeros(1, 8, 9, 9)) == Costs(
        parameters=16 * 2 * 9, multiply_adds=16 * 2 * 9 * 4 * 4
    )


def test_transposed_convolution() -> None:
    model = nn.ConvTranspose2d(4, 6, 2, stride=2)
    assert count_costs(model, torch.zeros(1, 4, 5, 5)) == Costs(
        parameters=4 * 6 * 4 + 6, multiply_adds=4 * 6 * 4 * 5 * 5
    )


@pytest.mark.parametrize("shape", [(4, 16), (2, 5, 16)])
def test_linear(shape: tuple[int, ...]) -> None:
    inputs = torch.zeros(shape)
    assert count_costs(nn.Linear(16, 7), inputs) == Costs(
        parameters=16 * 7 + 7, multiply_adds=inputs.numel() * 7
    )


def test_attention_is_counted_in_evaluation_mode() -> None:
    """PyTorch would take a fused kernel here, whose work no counter sees."""
    size, length = 8, 5
    model = nn.MultiheadAttention(size, 2, batch_first=True).eval().requires_grad_(False)
    x = torch.zeros(1, length, size)
    projections, products = 4 * size * size * length, 2 * length * length * size
    assert count_costs(model, (x, x, x)).multiply_adds == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_resnet18() -> None:
    costs = count_costs(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    assert costs.parameters == 11_689_512
    assert costs.multiply_adds == pytest.approx(1.814e9, rel=1e-3)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y * scale


def test_shared_parameters_count_once_and_keyword_arguments() -> None:
    inputs = {"x": torch.zeros(1, 4), "scale": torch.ones(1)}
    assert count_costs(Shared(), inputs) == Costs(parameters=16, multiply_adds=32)


class Branching(nn.Module):
    """Looks at the data, which fake tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.dropout(self.norm(x), 0.5)
        y: Tensor = self.layer(x) if x.sum() > 1e6 else self.layer(self.layer(x))
        return y


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [(network(), (2, 3, 4, 4), 2 * (8 * 27 * 4 + 32 * 5)), (Branching(), (3, 4), 3 * 32)],
    ids=["fake", "real"],
)
def test_nothing_is_changed(
    model: nn.Module, shape: tuple[int, ...], expected: int, device: str
) -> None:
    model = copy.deepcopy(model).to(device).train()
    layers = (nn.BatchNorm2d, nn.Linear)
    next(module for module in model.modules() if isinstance(module, layers)).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state() if device == "cuda" else random
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    assert count_costs(model, inputs).multiply_adds == expected
    assert torch.equal(torch.get_rng_state(), random)
    if device == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), on_device)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    costs = count_costs(network().to(dtype), torch.zeros(1, 3, 4, 4, dtype=dtype))
    assert costs.multiply_adds == 8 * 27 * 4 + 32 * 5


def test_graph_module() -> None:
    model = network().eval()
    inputs = torch.zeros(1, 3, 4, 4)
    traced = fx.symbolic_trace(model)
    traced.register_buffer("kept", torch.ones(1), persistent=False)
    assert count_costs(traced, inputs) == count_costs(model, inputs)
