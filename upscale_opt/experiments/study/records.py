"""Rows that the study measures; and where finished rows are kept."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal

from upscale_opt.experiments.records import Store
from upscale_opt.ir.base import Document, Record

Method = Literal["unconstrained", "constrained"]
Side = Literal["input", "output", "both"]


class Unpruned(Record):
    """A network as it was before pruning.

    Attributes:
        data: the data set.
        net: the network.
        seed: of its training.
        images: how many it was tested on.
        accuracy: the share of them that it got right; ``None`` where it is not known what is right.
        parameters: how many it has.
        multiply_adds: of one forward pass on one image.
    """

    data: str
    net: str
    seed: int
    images: int
    accuracy: float | None
    parameters: int
    multiply_adds: int


class Row(Record):
    """One pruned network, without fine-tuning.

    Attributes:
        data: the data set.
        net: the network.
        seed: of its training.
        criterion: what ranked the channels.
        method: whether every layer decided for itself.
        side: which channels of layers were dropped.
        is_global: whether all layers' channels were ranked together.
        amount: the share of channels to drop.
        dropped: the share of all layers' channels on that side that are zero.
        accuracy: the share of test images that the export got right, as in :class:`Unpruned`.
        agreement: the share for which it says what the unpruned network says.
        logit_error: the distance of its logits from the unpruned network's over the norm of
            those, the mean over the images.
        parameters: of the export.
        multiply_adds: of one forward pass of the export on one image.
        copied_channels: what it gathers in one.
        status: ``"optimal"`` if fewer are proven to be impossible.
        deviation: of the export from the masked network, in float64, relative.
        latency: its time over the unpruned network's; ``None`` if not measured.
    """

    data: str
    net: str
    seed: int
    criterion: str
    method: Method
    side: Side
    is_global: bool
    amount: float
    dropped: float
    accuracy: float | None
    agreement: float
    logit_error: float
    parameters: int
    multiply_adds: int
    copied_channels: int
    status: str
    deviation: float
    latency: float | None = None


class Results(Document):
    """All that one run of the study measured.

    Attributes:
        unpruned: the networks.
        rows: their pruned versions.
    """

    what: ClassVar[str] = "study"

    unpruned: tuple[Unpruned, ...]
    rows: tuple[Row, ...]


class _Rows(Document):
    what: ClassVar[str] = "rows"

    rows: tuple[Row, ...]


class Finished:
    """Finished rows of one network and criterion, in a file that is always whole.

    Rows that other code of this package measured are not seen.

    Args:
        folder: where they are kept.
        name: of what they have in common.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._store = Store(folder, _Rows)
        self._name = f"{name}-{code_key()}"
        found = self._store.find(self._name)
        kept = () if found is None else found.rows
        self.rows: dict[tuple[str, float], Row] = {(row.method, row.amount): row for row in kept}

    @property
    def path(self) -> Path:
        """The file."""
        return self._store.file(self._name)

    def put(self, row: Row) -> None:
        """Keep a row, instead of what was measured before of the same."""
        self.rows[row.method, row.amount] = row
        self._store.put(self._name, _Rows(rows=tuple(self.rows.values())))


@cache
def code_key() -> str:
    """Eight digits that differ where the code differs that results depend on."""
    found = hashlib.sha256()
    for package in ("upscale_opt", "upscale_opt.solver", "upscale_opt.models"):
        (folder, *_) = import_module(package).__path__
        for path in sorted(Path(folder).rglob("*.py")):
            place = path.relative_to(folder)
            if place.parts[0] != "cli" and place.as_posix() not in _WITHOUT_EFFECT:
                found.update(place.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:8]


_WITHOUT_EFFECT = {
    "experiments/pictures.py",
    *(f"experiments/study/{name}.py" for name in ("findings", "names", "plots", "report")),
}
