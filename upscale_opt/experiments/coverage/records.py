"""Records of what the sweep finds out about a network, as JSON."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from upscale_opt.ir.base import Document, Record
from upscale_opt.verifying.elsewhere import Status, What

SIDES: tuple[Literal["input", "output", "both"], ...] = ("input", "output", "both")

EXACT = 1e-10
"""The deviation that counts as lossless in float64."""

ROUGH = 1e-4
"""And in float32, in which giants are compared, and what does not run in float64."""

GIANT = 300_000_000
"""Networks of more parameters are compared in float32."""


class Reason(Record):
    """A reason why operations are opaque.

    Attributes:
        text: the reason, without names of operations and parameters.
        operations: how many have it.
    """

    text: str
    operations: int


class OtherInputs(Record):
    """An export beside the masked model, on inputs unlike those traced.

    Attributes:
        what: what is different about them.
        status: ``"refused"`` if the export says by name that it does not take them, ``"failed"`` if
            it fails otherwise; ``"partly"`` if it refuses some, and is equal on others;
            ``"not taken"`` if the masked model takes none that were tried.
        reason: why it is none of ``"equal"`` and ``"not taken"``.
    """

    what: What
    status: Status
    reason: str = ""


class SideRecord(Record):
    """A network with masks on one side, exported.

    Attributes:
        side: which slices of every weight are masked.
        status: ``"lossless"``, ``"lossy"``, or ``"failed"`` where there is no export;
            ``"own noise"`` where the masked model's own rounding explains more than is allowed.
        noise: where the masked model rounds, for ``"own noise"``.
        problem: what went wrong, if it did: the step, the error, and where it came from.
        deviation: of the export's outputs, relative to the largest value of an output.
        dtype: the precision in which they were compared.
        allowed: the deviation allowed there.
        capture: ``"fx"`` or ``"export"``; ``"parts"`` if only submodules could be traced.
        masked: weights that the masks set to zero.
        left: how many of these are still in the export.
        parameters: numbers in the export's parameters.
        copied: channels that the export copies.
        opaque: why operations are opaque, the most frequent reason first.
        elsewhere: how it does on another batch, and on other sizes.
        trace, solve, materialize: seconds.
    """

    side: Literal["input", "output", "both"]
    status: Literal["lossless", "own noise", "lossy", "failed"] = "failed"
    noise: str = ""
    problem: str = ""
    deviation: float | None = None
    dtype: str = ""
    allowed: float = EXACT
    capture: str = ""
    masked: int = 0
    left: int = 0
    parameters: int = 0
    copied: int = 0
    opaque: tuple[Reason, ...] = ()
    elsewhere: tuple[OtherInputs, ...] = ()
    trace: float = 0.0
    solve: float = 0.0
    materialize: float = 0.0


class NetworkRecord(Document):
    """A network in the sweep.

    Attributes:
        name: its name in the catalogue.
        group: its group there.
        amount: the share of slices masked.
        seed: of its weights.
        parameters: numbers in the parameters that it uses in evaluation mode.
        sides: one record per side; none if the network could not be built and run.
        problem: why there are none.
        peak_bytes: the most memory that the process took, if known.
        seconds: for all of it.
        versions: of the packages it comes from.
    """

    what: ClassVar[str] = "coverage record"

    name: str
    group: str
    amount: float
    seed: int = 0
    parameters: int = 0
    sides: tuple[SideRecord, ...] = ()
    problem: str = ""
    peak_bytes: int | None = None
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def lossless(self) -> bool:
        """Tell whether all sides are lossless or own noise, on whatever their exports take."""
        return bool(self.sides) and all(
            side.status in ("lossless", "own noise")
            and not any(other.status in ("differs", "failed") for other in side.elsewhere)
            for side in self.sides
        )

    @property
    def noisy(self) -> bool:
        """Tell whether that is so up to the model's own noise."""
        return self.lossless and any(side.status == "own noise" for side in self.sides)

    @property
    def understood(self) -> bool:
        """Tell whether no operation is opaque, on no side."""
        return self.lossless and not any(
            side.opaque or side.capture == "parts" for side in self.sides
        )
