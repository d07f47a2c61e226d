"""Costs of kernels on one device: nanoseconds from the bytes they move and their multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from upscale_opt.errors import SolverError
from upscale_opt.ir.base import Document, Record

KINDS = (
    "conv1x1",
    "conv",
    "depthwise",
    "grouped",
    "transposed",
    "linear",
    "matmul",
    "norm",
    "elementwise",
    "pool",
    "reduce",
    "softmax",
    "gather",
    "copy",
    "view_copy",
    "strided1x1",
    "other",
)
"""The kinds of kernels that every cost model of this package prices."""

BLOCKED_KINDS = ("plain1x1", "plain", "plain_depthwise", "slice", "reorder_in", "reorder_out")
"""Kinds that a runtime with channels in blocks has, besides: convolutions outside of that layout,
slices of channels, and the ways into it and out of it. ``"conv1x1"`` and the like are those in it;
``"copy"`` is a concatenation."""

_IN_LAYOUT = ("conv1x1", "conv", "depthwise")
"""Kinds that compute in a blocked layout, where a runtime has one."""

Runtime = Literal["eager", "compiled", "onnxruntime", "openvino"]
"""The programs that execute exports: PyTorch as it is, PyTorch compiled, and others."""

_IN_BLOCKS = ("compiled", "onnxruntime", "openvino")
"""Those that have kernels for channels in blocks, and where a view of channels is copied."""


def whole_blocks(width: int, block: int) -> int:
    """A width in whole blocks.

    >>> whole_blocks(12, 16), whole_blocks(32, 16), whole_blocks(5, 1)
    (16, 32, 5)
    """
    return -(-width // block) * block


@dataclass(frozen=True)
class Blocks:
    """A way to count channels: in whole blocks, and more of them where the last is not full.

    Attributes:
        size: channels in a block.
        uneven: the factor for numbers of channels that are no multiple of it.
        both: channels that are read are counted so, too; else those that are written alone.
    """

    size: int = 1
    uneven: float = 1.0
    both: bool = True

    def counted(self, channels: int) -> float:
        """The channels that are paid for."""
        found = whole_blocks(channels, self.size)
        return found if found == channels else found * self.uneven

    def more(self, sides: Sequence[int]) -> float:
        """The factor for multiply-adds of kernels of so many channels read, and written."""
        counted = sides if self.both else sides[-1:]
        return math.prod(self.counted(width) / width for width in counted if width > FEW)

    @property
    def of_read(self) -> Blocks:
        """The way for channels that are read."""
        return self if self.both else EACH

    @property
    def of_written(self) -> Blocks:
        """The way for channels that are written."""
        return replace(self, both=True)


FEW = 4
"""Colours: a side of so few channels is not counted in blocks."""

EACH = Blocks()
"""Every channel counts for itself."""


class KernelCost(Record):
    """The cost of kernels of one kind: a sum, linear in what they do.

    Attributes:
        launch: nanoseconds that every call costs, whatever its size.
        ns_per_byte: nanoseconds per byte read or written.
        ns_per_mac: nanoseconds per multiply-add.
        cache: bytes beyond this many cost more; 0 if there is no such limit.
        ns_per_far_byte: how much more.
        block: multiply-adds are paid for channels in whole blocks of so many: 17 are as slow as 32.
        uneven: times that much, where the channels are no multiple of it.
        both: so are channels that are read; else those that are written alone.
    """

    launch: float = Field(ge=0)
    ns_per_byte: float = Field(ge=0)
    ns_per_mac: float = Field(default=0.0, ge=0)
    cache: int = Field(default=0, ge=0)
    ns_per_far_byte: float = Field(default=0.0, ge=0)
    block: int = Field(default=1, ge=1, le=1024)
    uneven: float = Field(default=1.0, ge=1, le=1024)
    both: bool = True

    @property
    def blocks(self) -> Blocks:
        """The way in which it counts channels."""
        return Blocks(self.block, self.uneven, self.both) if self.block > 1 else EACH

    def nanoseconds(self, bytes: float, macs: float, sides: Sequence[int] = ()) -> float:
        """The cost of one kernel that moves ``bytes`` and computes ``macs`` multiply-adds.

        They are proportional to each of the numbers of channels ``sides``, of which the last are
        written, counted in blocks.
        """
        far = max(0.0, bytes - self.cache) if self.cache else 0.0
        near = bytes * self.ns_per_byte + far * self.ns_per_far_byte
        return self.launch + near + macs * self.blocks.more(sides) * self.ns_per_mac


class Check(Record):
    """A prediction held against the clock.

    Attributes:
        network: what was run.
        predicted: nanoseconds by the cost model.
        measured: nanoseconds by the clock.
    """

    network: str
    predicted: float
    measured: float


class CostModel(Document):
    """Prices of kernels on one device, in one dtype and memory format.

    Attributes:
        device: ``"cpu"``, ``"cuda"``, …
        device_name: which one, as the system calls it.
        dtype: of the activations and weights, such as ``"float32"``.
        threads: that are computed with on a CPU.
        memory_format: of the activations.
        runtime: that executes the export. In ``"eager"`` PyTorch a view of channels is free; in
            ``"onnxruntime"`` it is a slice, which copies, and comes out of the blocked layout and
            goes back into it; ``"compiled"`` by ``torch.compile`` it is copied, too, and layers
            are faster that read and write whole blocks. In ``"openvino"`` a slice copies, but stays
            in the layout that channels lie in, which a gather does not.
        block: channels that the runtime stores together: widths count as multiples of it. In
            ``"openvino"``, those that layers write alone.
        align: a convolution that reads no multiple of so many channels falls out of that layout.
        torch_version: that ran the kernels.
        kernels: the prices, by kind; see :data:`KINDS`.
        error: the median relative deviation of the timings that a kind's price was fitted to.
        checks: predictions held against the clock.
    """

    what: ClassVar[str] = "cost model"

    device: str
    device_name: str
    dtype: str = "float32"
    threads: int = Field(default=1, ge=1)
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    runtime: Runtime = "eager"
    block: int = Field(default=1, ge=1, le=1024)
    align: int = Field(default=1, ge=1, le=1024)
    torch_version: str = ""
    kernels: dict[str, KernelCost]
    error: dict[str, float] = Field(default_factory=dict)
    checks: tuple[Check, ...] = ()

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.block % self.align:
            raise ValueError(f"a block of {self.block} channels is no multiple of {self.align}")
        if self.in_blocks:
            missing = [kind for kind in BLOCKED_KINDS if kind not in self.kernels]
            if missing:
                raise ValueError(f"for {self.runtime}, prices are missing: {', '.join(missing)}")
        return self

    @property
    def in_blocks(self) -> bool:
        """The runtime has kernels for channels in blocks, and copies what a view of channels is."""
        return self.runtime in _IN_BLOCKS

    @property
    def slices_inside(self) -> bool:
        """A slice of channels stays in the runtime's layout; a gather leaves it and goes back."""
        return self.runtime == "openvino"

    @property
    def read_block(self) -> int:
        """The multiples in which layers count channels that they read; they write by ``block``."""
        return 1 if self.slices_inside else self.block

    def __repr__(self) -> str:
        where = self.device if self.runtime == "eager" else f"{self.runtime} on {self.device}"
        return (
            f"CostModel({where}: {self.device_name}, {self.dtype}, "
            f"{self.memory_format}, {len(self.kernels)} kinds of kernels)"
        )

    def blocks(self, kind: str) -> Blocks:
        """The way in which kernels of a kind count channels."""
        cost = self.kernels[kind]
        if self.in_blocks and not self.slices_inside and kind in _IN_LAYOUT:
            return Blocks(max(self.block, cost.block), cost.uneven)
        return cost.blocks

    def nanoseconds(
        self, kind: str, *, bytes: float = 0, macs: float = 0, sides: Sequence[int] = ()
    ) -> float:
        """The cost of one kernel.

        Args:
            kind: one of :attr:`kernels`.
            bytes: that it reads and writes: operands, weights and result.
            macs: its multiply-adds.
            sides: numbers of channels, read and written, that these are proportional to, to be
                counted in blocks.

        Raises:
            SolverError: if the kind is unknown or a size negative.
        """
        cost = self.kernels.get(kind)
        if cost is None:
            raise SolverError(
                f"the cost model of {self.device_name} knows no kind of kernel {kind!r}; "
                f"it knows {', '.join(self.kernels)}"
            )
        if bytes < 0 or macs < 0:
            raise SolverError(
                f"a {kind} kernel of {bytes:g} bytes and {macs:g} multiply-adds: "
                "sizes cannot be negative"
            )
        return cost.nanoseconds(bytes, macs, sides)
