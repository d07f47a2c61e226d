"""The comparison on another batch, and on inputs of other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from upscale_opt.errors import ArgumentError, VerificationError
from upscale_opt.tracing.examples import Inputs
from upscale_opt.verifying.both import Both, DoesNotRunError
from upscale_opt.verifying.other_inputs import another_batch, longer_lists, of_other_sizes, shapes

What = Literal["another batch", "other sizes"]
Status = Literal["equal", "partly", "differs", "refused", "failed", "not taken"]


@dataclass(frozen=True)
class Elsewhere:
    """A comparison of a masked model and its export on inputs like the given ones.

    Attributes:
        what: what is different about these.
        status: ``"refused"`` if the export says by name that it does not take them, ``"failed"`` if
            it fails otherwise; ``"partly"`` if it is equal there, but refuses others;
            ``"not taken"`` if the masked model takes none that were tried.
        shapes: of the inputs, such as ``"4 x 3 x 224 x 224"``.
        reason: what differs, or the error; behind the shapes that are refused, where others are
            equal.
    """

    what: What
    status: Status
    shapes: str = ""
    reason: str = ""


def elsewhere(both: Both, inputs: Inputs, dtype: torch.dtype) -> list[Elsewhere]:
    """Compare on another batch, and on other sizes, where there are such inputs."""
    batches = [made for made in (another_batch(inputs), longer_lists(inputs)) if made is not None]
    found = [
        _first_taken(both, batches, dtype, "another batch"),
        _first_taken(both, of_other_sizes(inputs), dtype, "other sizes"),
    ]
    return [one for one in found if one is not None]


def _first_taken(
    both: Both, candidates: Sequence[Inputs], dtype: torch.dtype, what: What
) -> Elsewhere | None:
    """Compare on the first of some inputs on which both run, or the masked model at least."""
    refused: Elsewhere | None = None
    for given in candidates:
        size = str(shapes(given))
        try:
            both.compare(given, dtype)
        except DoesNotRunError as failure:
            if failure.masked:
                continue
            by_name = isinstance(failure.__cause__, ArgumentError)
            if not by_name:
                return Elsewhere(what, "failed", size, failure.reason)
            refused = refused or Elsewhere(what, "refused", size, failure.reason)
            continue
        except VerificationError as error:
            if "not finite" in str(error) and "masked" in str(error):
                continue
            return Elsewhere(what, "differs", size, str(error))
        if refused is not None:
            return Elsewhere(what, "partly", size, f"{refused.shapes}: {refused.reason}")
        return Elsewhere(what, "equal", size)
    return refused or (Elsewhere(what, "not taken") if candidates else None)
