"""What tracing cannot look into is exported conservatively, or refused: never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_lossless, call, cast, deviation, size
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import upscale_opt as uo
from upscale_opt.ir.graph import maskable_axes, slices_of
from upscale_opt.tracing.examples import Inputs

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


class Around(nn.Module):
    """Something in the middle, between layers that can be pruned."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.middle = nn.Identity() if middle is None else middle
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(self.middle(x)))
        y: Tensor = self.last(x)
        return y


class Does(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def exported(
    model: nn.Module, inputs: Inputs = IMAGES, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """The model with random masks on both sides, and its export."""
    generator = torch.Generator().manual_seed(seed)
    graph = uo.trace(model, inputs)
    kept = {
        name: {
            axis: tuple(torch.nonzero(torch.rand(slices, generator=generator) < 0.6)[:, 0].tolist())
            for axis in axes
            for slices in [slices_of(graph, name, axis)]
        }
        for name, axes in maskable_axes(graph).items()
    }
    uo.apply_masks(model, graph, uo.Masks(kept=kept))
    return model, uo.materialize(model, uo.solve(graph, uo.Masks.from_model(model, graph)))


def assert_exports(
    make: Callable[[], nn.Module], inputs: Inputs = IMAGES, *, smaller: bool = True
) -> None:
    """For two masks: smaller, and right at the first call and at later ones."""
    for seed in range(2):
        torch.manual_seed(seed)
        masked, pruned = exported(make().double().eval(), inputs, seed)
        for again in range(3):
            torch.manual_seed(again)
            want = call(masked, inputs)
            torch.manual_seed(again)
            assert deviation(want, call(pruned, inputs)) < 1e-10
        assert not smaller or size(pruned) < size(masked)


def assert_exports_or_refuses(make: Callable[[], nn.Module], inputs: Inputs, reason: str) -> None:
    """Right, or refused in words that hold ``reason``."""
    refusal = refused(make, inputs)
    if refusal is None:
        assert_exports(make, inputs, smaller=False)
    else:
        assert reason in refusal


def refused(make: Callable[[], nn.Module], inputs: Inputs = IMAGES) -> str | None:
    """Why there is no export, if there is none."""
    try:
        exported(make().double().eval(), inputs)
    except uo.UpscaleError as error:
        return str(error)
    return None


def reasons(model: nn.Module, inputs: Inputs = IMAGES) -> list[str]:
    graph = uo.trace(model.double(), inputs)
    return [op.reason for op in graph.operations if op.kind == "opaque"]


# Hooks.


def _changes(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.flip(1) * 2 + output


def _changes_by_keyword(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
    return output.flip(1) * 2 + output


def _prepares(module: nn.Module, args: Any) -> tuple[Tensor]:
    return (args[0].flip(1) + args[0],)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(_changes),
    "forward with keywords": lambda m: m.register_forward_hook(
        _changes_by_keyword, with_kwargs=True
    ),
    "before": lambda m: m.register_forward_pre_hook(_prepares),
    "observer": lambda m: m.register_forward_hook(lambda module, args, output: None),
    "backward": lambda m: m.register_full_backward_hook(lambda module, gi, go: None),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda module, go: None),
}
PLACES = ["", "first", "norm", "middle", "second", "last"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_leaves_and_on_the_model(place: str, hook: str) -> None:
    def make() -> nn.Module:
        model = Around()
        HOOKS[hook](model.get_submodule(place))
        return model

    assert_exports(make, smaller=place not in ("second", "last") or "backward" in hook)


@pytest.mark.parametrize("place", ["", "first"])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_a_model_that_only_export_captures(place: str, hook: str) -> None:
    class Checked(Around):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] == 3
            return super().forward(x)

    def make() -> nn.Module:
        model = Checked()
        HOOKS[hook](model.get_submodule(place))
        return model

    assert uo.trace(make().double(), IMAGES).capture == "export"
    assert_exports(make)


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_containers(hook: str) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(Around(), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        HOOKS[hook](model[0])
        return model

    assert_exports(make)
    hidden = "the module has hooks" in reasons(make())
    assert hidden is ("backward" not in hook)


def test_hooks_for_all_modules() -> None:
    def triple(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 3 if isinstance(module, nn.Conv2d) else None

    handle = nn.modules.module.register_module_forward_hook(triple)
    try:
        assert_exports(Around)
    finally:
        handle.remove()


# Functions with a gradient of their own.


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(1) * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Accumulate(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(1)


class Step(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0.3).to(x.dtype)


class Two(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2, x.roll(1, 1)  # type: ignore[return-value]


class InPlace(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)


class ByNumpy(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy()[:, ::-1].copy())


class BehindTheBack(Flip):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        y.data[:, 0] = x.data.sum(1)
        return y


@pytest.mark.parametrize("function", [Flip, Accumulate, Step, InPlace])
def test_autograd_functions(function: Any) -> None:
    assert_exports(lambda: Around(Does(function.apply)))


def test_autograd_functions_with_two_results() -> None:
    assert_exports(lambda: Around(Does(lambda x: sum(Two.apply(x)))))


# Everything else that is exported.


class Weighted(nn.Module):
    """A layer inside the function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer, x)


def _masked(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0.2] = x.sum()
    return y


def _written(x: Tensor) -> Tensor:
    x = x * 1
    x[:, 0] = x[:, 1] * 2
    x[:, 2:4] += 1
    return x


def _rows(x: Tensor) -> Tensor:
    for row in x:
        x = x + row
    return x


def _checked(x: Tensor) -> Tensor:
    if x.shape[1] != 8 or x.dim() != 4:
        raise ValueError
    assert x.shape[0] > 1
    return x.flip(1)


def _numbered(x: Tensor) -> Tensor:
    numbers = torch.arange(x.shape[1], dtype=x.dtype)
    return x * numbers[:, None, None] / x.shape[1] + x.numel() + len(x[0]) + x[0].nelement()


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.flip(1) * 2


def _without_autocast(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y: Tensor = layer(x)
    return y + x


def _gathered(x: Tensor) -> Tensor:
    return x.gather(1, torch.arange(7, -1, -1)[None, :, None, None].expand_as(x))


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "where": lambda x: torch.where(x > 0.2, x, x.flip(1)),
    "masked assignment": _masked,
    "slice assignment": _written,
    "loop over a batch": _rows,
    "checks of shapes": _checked,
    "channel numbers and sizes": _numbered,
    "no_grad": _without_gradient,
    "vmap over the batch": lambda x: torch.vmap(lambda t: t.flip(0) + t)(x),
    "einsum": lambda x: torch.einsum("bchw,bchw->bch", x, x)[..., None] + x,
    "fft over pixels": lambda x: torch.fft.ifft2(torch.fft.fft2(x) * 2).real,
    "fft over channels": lambda x: torch.fft.fft(x, dim=1).abs(),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x.flip(1))).sum(-1),
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(8, 1)[0],
    "gather": _gathered,
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 1]), x[:, 2:4]),
    "tril": lambda x: x.permute(0, 2, 3, 1).tril().permute(0, 3, 1, 2),
    "random": lambda x: x + torch.rand(x.shape, dtype=x.dtype),
    "random like": lambda x: x + torch.rand_like(x),
    "normalize over channels": lambda x: nn.functional.normalize(x, dim=1),
    "normalize over rows": lambda x: nn.functional.normalize(x, dim=2),
    "compiled": torch.compile(lambda x: x.flip(1) + x, backend="eager"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert_exports(lambda: Around(Does(FUNCTIONS[name])))


LAYERED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=False),
    "reentrant checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=True),
    "autocast switched off": _without_autocast,
    "functional call": lambda layer, x: torch.func.functional_call(
        layer, dict(layer.named_parameters()), (x,)
    ),
}


@pytest.mark.parametrize("name", LAYERED)
def test_functions_with_layers(name: str) -> None:
    assert_exports(lambda: Around(Weighted(LAYERED[name])))


class Constant(nn.Module):
    """A plain tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.single = torch.randn(1, 8, 1, 1, dtype=torch.float64)
        self.listed = [torch.randn(8, 1, 1, dtype=torch.float64) for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.single + self.listed[0] * self.listed[1]


class Cache(nn.Module):
    """Makes something at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Tensor | None = None
        self.by_size: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.made is None:
            self.made = torch.arange(8, dtype=torch.float64)[:, None, None]
        if 8 not in self.by_size:
            self.by_size[8] = torch.arange(8, dtype=torch.float64)[:, None, None]
        return x * self.made + self.by_size[8]


class Updating(nn.Module):
    """Modifies its buffers in place."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Tensor
        self.means: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("means", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.means.copy_(x.mean((0, 2, 3)))
        return x * self.count + self.means[:, None, None]


class Observed(nn.Module):
    """Stores what it computes, and never reads it."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x * 2


def _parametrized(function: Callable[..., nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: function(nn.Conv2d(8, 8, 1), **options)


class Sequence(nn.Module):
    """A module of sequences, over the rows of pixels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x.mean(3).permute(2, 0, 1))
        found = found[0] if isinstance(found, tuple) else found
        y: Tensor = x + found.permute(1, 2, 0).unsqueeze(3)
        return y


MODULES: dict[str, Callable[[], nn.Module]] = {
    "constants": Constant,
    "cache": Cache,
    "buffers updated in place": Updating,
    "observed": Observed,
    "weight norm": _parametrized(parametrizations.weight_norm),
    "spectral norm": _parametrized(parametrizations.spectral_norm),
    "old spectral norm": _parametrized(nn.utils.spectral_norm),
    "orthogonal": _parametrized(parametrizations.orthogonal),
    "stubs": lambda: nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.ReLU(), torch.ao.quantization.DeQuantStub()
    ),
    "observer": lambda: torch.ao.quantization.MinMaxObserver(dtype=torch.quint8),
    "fake quantisation": lambda: nn.Sequential(nn.Hardtanh(), nn.Conv2d(8, 8, 1)),
    "rnn": lambda: Sequence(nn.RNN(8, 8)),
    "lstm": lambda: Sequence(nn.LSTM(8, 8)),
    "gru": lambda: Sequence(nn.GRU(8, 8, num_layers=2)),
    "bidirectional gru": lambda: Sequence(nn.GRU(8, 4, bidirectional=True)),
    "transformer layer": lambda: Sequence(nn.TransformerEncoderLayer(8, 2, 16, 0.0)),
    "attention": lambda: Sequence(Attends()),
    "local response norm": lambda: nn.LocalResponseNorm(3),
    "pixel shuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
    "compiled in place": lambda: _compiled(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())),
}


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, x, x)[0]
        return y


def _compiled(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    assert_exports(lambda: Around(MODULES[name]()))


def test_what_torch_itself_cannot_copy_is_refused() -> None:
    refusal = refused(lambda: Around(_parametrized(nn.utils.weight_norm)()))
    assert refusal is not None
    assert "cannot be copied" in refusal


def test_compiled_submodules() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x).flip(1) + x
            return y

    def make() -> nn.Module:
        model = Around()
        model.middle = torch.compile(Part(), backend="eager")  # type: ignore[assignment]
        return model

    assert_exports(make)


def test_a_compiled_model() -> None:
    model = torch.compile(Around().double().eval(), backend="eager")
    graph = uo.trace(model, IMAGES)  # type: ignore[arg-type]
    assert graph.operations


# Inputs and outputs of all kinds.


class Outputs(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        return self.function(torch.relu(self.left(x)), self.right(x))


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda a, b: {"a": a, "deep": {"b": [b, a]}},
    "list": lambda a, b: [a, (b,)],
    "with constants": lambda a, b: (a, None, 3, "text", b),
    "the same twice": lambda a, b: (a, a, b),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name: str) -> None:
    masked, pruned = exported(Outputs(OUTPUTS[name]).double().eval())
    want, got = call(masked, IMAGES), call(pruned, IMAGES)
    tensors = [[v for v in _leaves(out) if isinstance(v, Tensor)] for out in (want, got)]
    assert deviation(*tensors) < 1e-10
    plain = [[v for v in _leaves(out) if not isinstance(v, Tensor)] for out in (want, got)]
    assert plain[0] == plain[1]
    assert type(want) is type(got)


def _leaves(tree: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(tree)


class Inputful(nn.Module):
    """Takes arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.other = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(
        self,
        x: Tensor,
        side: Tensor | None = None,
        *more: Tensor,
        flip: bool = False,
        parts: dict[str, Tensor] | None = None,
        **named: Tensor,
    ) -> Tensor:
        x = torch.relu(self.stem(x))
        if side is not None:
            x = x + self.other(side)
        for extra in more:
            x = x * self.other(extra)
        if flip:
            x = x.flip(1)
        if parts is not None:
            x = x + self.other(parts["a"])
        if "late" in named:
            x = x + self.other(named["late"])
        y: Tensor = self.last(x)
        return y


INPUTS: dict[str, Inputs] = {
    "one": IMAGES,
    "optional": (IMAGES, IMAGES * 2),
    "none": (IMAGES, None),
    "by keyword": {"x": IMAGES, "side": IMAGES * 3},
    "a flag": {"x": IMAGES, "flip": True},
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str) -> None:
    class Fewer(Inputful):
        def forward(  # type: ignore[override]
            self, x: Tensor, side: Tensor | None = None, flip: bool = False
        ) -> Tensor:
            return super().forward(x, side, flip=flip)

    assert_exports(Fewer, INPUTS[name])


VARIADIC: dict[str, Inputs] = {
    "dict": {"x": IMAGES, "parts": {"a": IMAGES}},
    "more": (IMAGES, IMAGES, IMAGES * 2),
    "named": {"x": IMAGES, "late": IMAGES},
}


@pytest.mark.parametrize("name", VARIADIC)
def test_variadic_inputs_are_right_or_refused(name: str) -> None:
    assert_exports_or_refuses(Inputful, VARIADIC[name], "Inputful")


def test_embedding_bags_and_integers() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(11, 8)
            self.hidden = nn.Linear(8, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, words: Tensor) -> Tensor:
            y: Tensor = self.last(torch.relu(self.hidden(self.bag(words))))
            return y

    assert_exports(Bag, torch.arange(10).reshape(2, 5))


# Refused, with the reason.


def _loop(x: Tensor) -> Tensor:
    for _ in range(int(x.abs().max()) + 1):
        x = x.roll(1, 1)
    return x


def _behind_the_back(x: Tensor) -> Tensor:
    y = x * 1
    y.data[:, 0] = 5.0
    return y


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "branch": (lambda x: x.flip(1) if x.sum() > 0 else x * 2, "control flow|data-dependent"),
    "loop": (_loop, "data-dependent"),
    "item": (lambda x: x * x.sum().item(), "DataDependentOutput"),
    "tolist": (lambda x: x * x[0, 0, 0].tolist()[0], "DataDependentOutput"),
    "nonzero": (lambda x: x * x.nonzero().shape[0], "nonzero"),
    "boolean index": (lambda x: x + x[x > 0].sum(), "nonzero"),
    "data": (_behind_the_back, "torch.fx: .*torch.export: "),
    "cond": (
        lambda x: torch.cond(x.sum() > 0, lambda v: v.flip(1), lambda v: v * 2, (x,)),
        "torch.export: ",
    ),
    "numpy": (ByNumpy.apply, "numpy"),
    "data in an autograd function": (BehindTheBack.apply, "torch.export: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_data_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(uo.TraceError, match=rf"(?s)Around cannot be traced: .*({message})"):
        uo.trace(Around(Does(function)).double().eval(), IMAGES)


def test_lazy_modules_must_be_run_first() -> None:
    model = Around(nn.LazyConv2d(8, 1)).double().eval()
    with pytest.raises(uo.TraceError, match="Around"):
        uo.trace(model, IMAGES)
    call(model, IMAGES)
    masked, pruned = exported(model)
    assert_lossless(masked, pruned, IMAGES)


def test_sparse_and_complex_inputs_are_refused_or_right() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.to_dense() if x.is_sparse else x
            x = x.abs() if x.is_complex() else x
            y: Tensor = self.last(torch.relu(self.first(x)))
            return y

    dense = torch.randn(4, 6, dtype=torch.float64)
    for inputs in (dense.to_sparse(), torch.complex(dense, dense)):
        assert_exports_or_refuses(Linear, inputs, "Linear")


# TorchScript.


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).flip(1) + x
        return y


def _traced(module: nn.Module, example: Tensor) -> Any:
    traced: Any = torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
    return traced


@pytest.mark.parametrize("trace", [False, True])
def test_torchscript_models_are_refused(trace: bool) -> None:
    model = Around().double().eval()
    script: Any = _traced(model, IMAGES) if trace else torch.jit.script(model)
    with pytest.raises(uo.TraceError, match="trace the Python model that it was made from"):
        uo.trace(script, IMAGES)


@pytest.mark.parametrize("trace", [False, True])
def test_torchscript_submodules_are_refused_or_right(trace: bool) -> None:
    def make() -> nn.Module:
        part = Scripted().double().eval()
        example = torch.randn(2, 8, 6, 6, dtype=torch.float64)
        return Around(_traced(part, example) if trace else torch.jit.script(part))

    assert_exports_or_refuses(make, IMAGES, "Around")


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.flip(1) * 2 + x


def test_torchscript_functions() -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = scripted(x)
            return y

    assert_exports(lambda: Around(Calls()))


# State between calls: right at every call, or refused.


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


class PlainState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale + 1
        return x * self.scale


class Momentum(nn.Module):
    """Assigns to its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.means: Tensor
        self.register_buffer("means", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.means = self.means * 0.9 + x.mean((0, 2, 3))
        return x + self.means[:, None, None]


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.last is None else x + self.last
        self.last = x * 1
        return y


class History(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.stack(self.seen).sum(0)


@pytest.mark.parametrize("middle", [Counting, PlainState, Momentum, Memory, History])
def test_state_between_calls_is_kept_or_refused(middle: type[nn.Module]) -> None:
    assert_exports_or_refuses(lambda: Around(middle()), IMAGES, "Around")


# What looks at memory, or changes how the model computes.


MEMORY: dict[str, Callable[[Tensor], Any]] = {
    "as_strided": lambda x: x.as_strided((2, 8, 6, 6), (288, 36, 6, 1)) + x.flip(1),
    "as_strided of a view": lambda x: torch.cat(
        [x.chunk(2, 1)[0].as_strided((2, 4, 6, 6), (288, 36, 6, 1)), x.chunk(2, 1)[1]], 1
    ),
    "storage_offset": lambda x: x * float(x[:, 2:].storage_offset()),
    "stride": lambda x: x * x.stride(1),
    "is_contiguous": lambda x: x * 2 if x.is_contiguous() else x,
    "view as another dtype": lambda x: x.view(torch.int64).double() * 1e-18,
}


@pytest.mark.parametrize("name", MEMORY)
def test_what_looks_at_memory_is_right_or_refused(name: str) -> None:
    assert_exports_or_refuses(lambda: Around(Does(MEMORY[name])), IMAGES, "Around")


def test_autocast_inside_is_kept_or_refused() -> None:
    def cast_inside(layer: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = layer(x)
        return y

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), Weighted(cast_inside)).eval()

    refusal = refused(make)
    if refusal is None:
        inputs = cast(IMAGES, torch.float32)
        masked, pruned = exported(make(), inputs)
        assert call(masked, inputs).dtype == call(pruned, inputs).dtype
    else:
        assert "autocast" in refusal
