"""A masked model and its export, run side by side on copies."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from upscale_opt.errors import VerificationError
from upscale_opt.materializing.names import old_name
from upscale_opt.materializing.pruned_module import making_of
from upscale_opt.tracing.copying import copied
from upscale_opt.tracing.examples import Inputs, dtype_name
from upscale_opt.tracing.unchanged import reseed
from upscale_opt.verifying.deviation import EXACT, Apart, allowed, largest
from upscale_opt.verifying.exactly import autocast_watched, exactly
from upscale_opt.verifying.noise import Run, explained, noise_of
from upscale_opt.verifying.outputs import outputs_of
from upscale_opt.verifying.rounding import Lower
from upscale_opt.verifying.walking import pairs_of


class DoesNotRunError(Exception):
    """A model fails on the inputs.

    Attributes:
        masked: it is the masked one.
        reason: the error's class and message.
    """

    def __init__(self, masked: bool, dtype: torch.dtype, error: Exception) -> None:
        self.masked = masked
        self.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        which = "masked" if masked else "pruned"
        super().__init__(
            f"the {which} model does not run on these inputs in {dtype_name(dtype)}: {self.reason}"
        )


@dataclass(frozen=True)
class Outcome:
    """A comparison that found the models equal.

    Attributes:
        error: the largest deviation.
        numbers: how many numbers were compared.
        zero: all that the masked model returned were zeros.
        lower: where it computes in lower precision, if that explains the deviation.
    """

    error: float
    numbers: int
    zero: bool
    lower: Lower | None = None


@dataclass(frozen=True)
class Both:
    """The two models.

    Attributes:
        model: the masked one.
        pruned: its export.
    """

    model: nn.Module
    pruned: nn.Module

    def compare(self, inputs: Inputs, dtype: torch.dtype, *, exact: bool = False) -> Outcome:
        """Run both in ``dtype``, and compare all that they return, and change in buffers.

        Args:
            inputs: what they are called with.
            dtype: the precision.
            exact: with float64: leave out casts to lower precision.

        Raises:
            DoesNotRunError: if one of them fails.
            VerificationError: if they differ by more than rounding explains.
        """
        want = self._run(self.model, inputs, dtype, exact)
        got = self._run(self.pruned, inputs, dtype, exact)
        try:
            return self._compared(want, got, inputs, dtype, exact)
        except VerificationError as error:
            if "not finite, so" in str(error):
                raise
            raise VerificationError(f"{error}{self._why(inputs, dtype)}") from None

    def switches_autocast(self, inputs: Inputs, dtype: torch.dtype) -> bool:
        """Tell whether the masked model switches autocast on or off while it runs."""
        with autocast_watched() as watch:
            self._run(self.model, inputs, dtype)
        return watch.switched

    def _compared(
        self, want: _Ran, got: _Ran, inputs: Inputs, dtype: torch.dtype, exact: bool
    ) -> Outcome:
        pairs = pairs_of(want.outputs, got.outputs)
        pairs += pairs_of(*self._buffers(want, got), place="buffers after the call")
        apart = [Apart.of(pair) for pair in pairs]
        error, most, lower = largest(apart), allowed(dtype), None
        if not error <= most and not exact:
            most, lower = explained(self.model, want.outputs, _on(inputs, dtype), dtype)
        if not error <= most:
            where = next(one.place for one in apart if not one.error <= most)
            inside = "" if lower is None else f" (as the model {lower})"
            raise VerificationError(
                f"the pruned model deviates by {error:.2e} in {dtype_name(dtype)}, where "
                f"{most:.0e} is allowed{inside}: {where}"
            )
        if dtype == torch.float64 and lower is None and not exact:
            self._check_slices(apart, want.outputs, inputs)
        numbers = sum(pair.want.numel() for pair in pairs)
        return Outcome(error, numbers, all(one.zero for one in apart), lower)

    def _check_slices(self, apart: list[Apart], want: Any, inputs: Inputs) -> None:
        """Find deviations in what is small beside what is huge.

        Raises:
            VerificationError: if there are more than rounding leaves where large numbers cancel.
        """
        suspects = [one for one in apart if one.beyond(EXACT, None)]
        if not suspects:
            return
        run = _on(inputs, torch.float64)
        noise, _ = noise_of(self.model, want, run, torch.float64, every=True)
        for one in suspects:
            if one.beyond(EXACT, noise.get(one.place)):
                worst = max(float(errors.max()) for errors in one.sliced)
                raise VerificationError(
                    f"the pruned model deviates by {worst:.2e} in float64, where {EXACT:.0e} is "
                    f"allowed: some channels of {one.place} that are small beside others"
                )

    def _buffers(self, want: _Ran, got: _Ran) -> tuple[dict[str, Any], dict[str, Any]]:
        """The buffers that either model changed, with the channels that the pruned one has.

        Raises:
            VerificationError: if the pruned model lacks one.
        """
        making = making_of(self.pruned)
        solution = making.solution
        wanted, own = {}, {}
        places = {old_name(name, making.renamed): name for name in got.buffers}
        for name, tensor in want.buffers.items():
            found = got.buffers.get(places.get(name, name))
            changed = not torch.equal(tensor, want.before[name])
            if found is None:
                if changed:
                    raise VerificationError(f"the pruned model lacks the buffer {name!r}")
                continue
            if not changed and torch.equal(found, got.before[places[name]]):
                continue
            kept = solution.parameters.get(name, {}) if solution is not None else {}
            for axis, entries in kept.items():
                if max(entries, default=0) < tensor.shape[axis]:
                    index = torch.tensor(entries, dtype=torch.int64, device=tensor.device)
                    tensor = tensor.index_select(axis, index)
            if tensor.shape == found.shape:  # else it was pruned more than once
                wanted[name], own[name] = tensor, found
        return wanted, own

    def _run(
        self, model: nn.Module, inputs: Inputs, dtype: torch.dtype, exact: bool = False
    ) -> _Ran:
        runner = copied(model).to(dtype).eval()
        before = {name: buffer.clone() for name, buffer in runner.named_buffers()}
        try:
            with exactly() if exact else nullcontext():
                outputs = outputs_of(runner, inputs, dtype)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise
            raise DoesNotRunError(model is self.model, dtype, error) from error
        buffers = dict(runner.named_buffers())
        return _Ran(outputs, {n: before.get(n, b) for n, b in buffers.items()}, buffers)

    def _why(self, inputs: Inputs, dtype: torch.dtype) -> str:
        """Say what explains a deviation, or where to report it."""
        origin = making_of(self.pruned).origin
        training = [name for name, module in self.model.named_modules() if module.training]
        if training or (origin is not None and (origin.modes.training or origin.modes.others)):
            which = "the model" if self.model.training or not training else repr(training[0])
            return (
                f"; {which} is in training mode, was captured in it, and is compared in eval mode, "
                "where it may compute something else: call model.eval() before tracing and pruning"
            )
        if self._is_random(inputs, dtype):
            return (
                "; the masked model itself returns something else each time: it draws random "
                "numbers (a dropout that is always on, say), so its outputs cannot be compared"
            )
        return "; please report the model and its masks"

    def _is_random(self, inputs: Inputs, dtype: torch.dtype) -> bool:
        runs = []
        for seed in (1, 2):
            with torch.random.fork_rng():
                reseed(seed)
                runs.append(self._run(self.model, inputs, dtype).outputs)
        try:
            return not largest(Apart.of(pair) for pair in pairs_of(*runs)) <= EXACT
        except VerificationError:
            return True


def _on(inputs: Inputs, dtype: torch.dtype) -> Run:
    return lambda runner: outputs_of(runner, inputs, dtype)


@dataclass(frozen=True)
class _Ran:
    """The outputs of a model, and its buffers before and after."""

    outputs: Any
    before: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
