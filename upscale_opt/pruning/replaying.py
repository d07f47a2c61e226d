"""Compare submodules with their exports, on what the model gives them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from upscale_opt.errors import VerificationError
from upscale_opt.materializing.pruned_module import PrunedModule, replace
from upscale_opt.materializing.used import kind_of
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs, dtype_name, map_tensors
from upscale_opt.verifying.deviation import allowed, deviation
from upscale_opt.verifying.noise import explained
from upscale_opt.verifying.outputs import outputs_of


def replay(
    model: nn.Module, exports: Mapping[str, PrunedModule], inputs: Inputs
) -> tuple[dict[str, float], float | None]:
    """Run ``model`` on copies in float64, and compare at every call of a submodule.

    Args:
        model: the masked model. It is not changed.
        exports: by name, what some of its submodules shall become.
        inputs: what the model is called with.

    Returns:
        By name, the largest deviation of a submodule's outputs, given the same arguments; and that
        of the whole model's outputs, or ``None`` if they differ in shape. If the model does not
        run in float64, both are as at its own precision.

    Raises:
        VerificationError: if a submodule deviates by more than rounding, or its export fails; or if
            the rest of the model looks into a submodule, and computes something else of what it
            finds there.
    """
    own = kind_of(model)[0]
    try:
        return _replay(model, exports, inputs, torch.float64)
    except (RuntimeError, TypeError):
        if own == torch.float64:
            raise
        return _replay(model, exports, inputs, own)


def _replay(
    model: nn.Module, exports: Mapping[str, PrunedModule], inputs: Inputs, dtype: torch.dtype
) -> tuple[dict[str, float], float | None]:
    twins = {name: copied(export).to(dtype).eval() for name, export in exports.items()}
    masked = copied(model).to(dtype).eval()
    calls = _Calls(masked, twins, dtype)
    with calls.compared():
        want = outputs_of(masked, inputs, dtype)
    answered = copied(model).to(dtype).eval()
    with _answered(answered, {name: copied(twin) for name, twin in twins.items()}):
        same = outputs_of(answered, inputs, dtype)
    whole = copied(model).to(dtype).eval()
    for name, twin in twins.items():
        replace(whole.get_submodule(name), twin)
    got = _whole(model, whole, same, inputs, dtype)
    try:
        return calls.worst, deviation(want, got)
    except VerificationError:
        return calls.worst, None


def _whole(
    model: nn.Module, pruned: nn.Module, same: Any, inputs: Inputs, dtype: torch.dtype
) -> Any:
    """Return what the whole model returns with its exports in place.

    Args:
        model: the model.
        pruned: the model with exports in place.
        same: what the masked model returns if its submodules answer what the exports do. So sorting
            and cutting off make no difference; only what the model sees besides the answers does.
        inputs: what it is called with.
        dtype: the precision.

    Raises:
        VerificationError: if it fails, or returns something else.
    """
    reads = (
        "what the model reads inside of the pruned submodules, such as weights or sizes, is not as "
        "before; name other submodules, or those inside of them"
    )
    try:
        got = outputs_of(pruned, inputs, dtype)
    except Exception as error:
        raise VerificationError(
            f"the {type(model).__name__} fails once its submodules are pruned, with a "
            f"{type(error).__name__}: {error}; {reads}"
        ) from error
    try:
        far = deviation(same, got)
    except VerificationError as problem:
        raise VerificationError(f"{problem}; {reads}") from None
    if not far <= allowed(dtype):
        raise VerificationError(
            f"the whole {type(model).__name__} deviates by {far:.2e} in {dtype_name(dtype)}, "
            f"though its pruned submodules do not: {reads}"
        )
    return got


@contextmanager
def _answered(model: nn.Module, twins: Mapping[str, nn.Module]) -> Iterator[None]:
    """While this is open, submodules answer what their twins do, but are as they were."""
    handles: list[tuple[nn.Module, Any]] = []
    for name, twin in twins.items():
        module = model.get_submodule(name)
        handles.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = twin.forward
    try:
        yield
    finally:
        for module, own in handles:
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


class _Calls:
    """Calls of submodules, answered by them and by their twins.

    Attributes:
        worst: by name, the largest deviation.
    """

    def __init__(
        self, model: nn.Module, twins: Mapping[str, nn.Module], dtype: torch.dtype
    ) -> None:
        self.model, self.twins, self.dtype = model, twins, dtype
        self.worst: dict[str, float] = {}
        self._given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._answers: dict[str, Any] = {}

    @contextmanager
    def compared(self) -> Iterator[None]:
        """While this is open, calls of submodules are also answered by their twins, and compared.

        Raises:
            VerificationError: if an answer deviates.
        """
        handles = []
        for name in self.twins:
            module = self.model.get_submodule(name)
            before, after = partial(self._before, name), partial(self._after, name)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        # Clones, because a submodule may change its arguments.
        self._given[name] = map_tensors((args, kwargs), torch.clone)
        own_args, own_kwargs = map_tensors((args, kwargs), torch.clone)
        try:
            self._answers[name] = self.twins[name](*own_args, **own_kwargs)
        except Exception as error:
            raise VerificationError(
                f"the pruned {name} fails on what the model gives it: {error}"
            ) from error

    def _after(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        try:
            error = deviation(output, self._answers.pop(name))
        except VerificationError as problem:
            raise VerificationError(f"{name}: {problem}") from None
        most = allowed(self.dtype)
        given, kwargs = self._given.pop(name)
        if not error <= most:

            def run(runner: nn.Module) -> Any:
                return runner(*given, **kwargs)

            most, _ = explained(_without_hooks(module), output, run, self.dtype)
        if not error <= most:
            raise VerificationError(
                f"the pruned {name or type(self.model).__name__} deviates by {error:.2e} in "
                f"{dtype_name(self.dtype)}, where {most:.0e} is allowed; please report the model "
                "and its masks"
            )
        self.worst[name] = max(self.worst.get(name, 0.0), error)


def _without_hooks(module: nn.Module) -> nn.Module:
    """A copy that is not compared."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        return copied(module)
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks
