"""Records of what a benchmark finds out about a network, as JSON."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from upscale_opt.experiments.records import Store
from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.cost_model import Runtime


class Settings(Record):
    """The way networks are masked, exported and timed. Records of equal settings are comparable.

    Attributes:
        amount: the share of channels to mask.
        side: which channels of every layer.
        layers: which layers.
        seed: of the weights, the solver and the order within rounds.
        time_limit: seconds for the solver, per export.
        batches: the batch sizes.
        formats: memory formats.
        runtime: that the exports run in.
        device: ``"cpu"``, ``"cuda"``, …
        dtype: of weights and inputs while they are timed.
        threads: that are computed with on a CPU.
        compile: whether the variants are timed compiled, too.
        cuda_graphs: whether they are timed as CUDA graphs, too.
        rounds: how many; ``None``: as many as the time allows.
        seconds: the time for each batch size, memory format and mode.
        variants: what is timed.
        cost_models: digests of the cost models given; none: those that the package has.
        own: a digest of the arguments, weights and inputs of a model of one's own; empty for
            networks of the catalogue.
        max_extra_macs: only in old records, and never other than ``None``.
    """

    amount: float = 0.5
    side: Literal["input", "output", "both"] = "input"
    layers: Literal["all", "conv"] = "conv"
    seed: int = 0
    time_limit: float = 60.0
    batches: tuple[int, ...] = (1,)
    formats: tuple[Literal["contiguous", "channels-last"], ...] = ("contiguous",)
    runtime: Runtime = "eager"
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    threads: int = 1
    compile: bool = False
    cuda_graphs: bool = False
    rounds: int | None = None
    seconds: float = 20.0
    variants: tuple[str, ...]
    cost_models: tuple[str, ...] = ()
    own: str = ""
    max_extra_macs: float | None = None


class Machine(Record):
    """The machine that ran it.

    Attributes:
        device: the GPU's name, or the CPU's.
        cpu: the CPU's name.
        torch: PyTorch's version.
        threads: that PyTorch computed with on the CPU.
    """

    device: str = ""
    cpu: str = ""
    torch: str = ""
    threads: int = 0


class Export(Record):
    """One variant of a network, apart from its time.

    Attributes:
        variant: its name; see :data:`upscale_opt.experiments.bench.names.VARIANTS`.
        batch: the batch size that it was made for; ``None`` if for all.
        format: the same of the memory format.
        problem: why there is none; empty if there is one.
        made_of: for the floor, the variant whose layers these are.
        status: ``"optimal"`` if the solver proved it.
        parameters: the numbers in its parameters.
        multiply_adds: of one forward pass at batch 1.
        copied_channels: that its plan copies; ``None`` where there is no plan.
        plan: how its reads are served, in words; empty where there is no plan.
        deviation: from the masked network, relative to the largest output: in float64 for ours, in
            float32 for UPSCALE's; ``None`` if it is not meant to equal it, or does not run there.
        moved: bytes moved in one forward pass at batch 1, by memory format.
        seconds: that it took to make and verify.
    """

    variant: str
    batch: int | None = None
    format: str | None = None
    problem: str = ""
    made_of: str = ""
    status: str = ""
    parameters: int = 0
    multiply_adds: int = 0
    copied_channels: int | None = None
    plan: str = ""
    deviation: float | None = None
    moved: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0


class Ratio(Record):
    """A comparison of two variants' times.

    Attributes:
        median: of the ratios of all rounds.
        low: where its 95 % confidence interval begins.
        high: where it ends.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}–{self.high:.3f})"


class Time(Record):
    """The time that a variant takes.

    Attributes:
        variant: its name.
        problem: why it was not timed; empty if it was.
        milliseconds: of one forward pass, the median over all rounds.
        ratios: its time over other variants', by the other's name.
        graph_breaks: how often ``torch.compile`` gave up and began again, where it was asked.
        computing: the share of its time in nodes that do not merely move data, by the profile of
            the program that ran it; ``None`` in PyTorch.
    """

    variant: str
    problem: str = ""
    milliseconds: float | None = None
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    graph_breaks: int | None = None
    computing: float | None = None


class Cell(Record):
    """Variants timed in turn.

    Attributes:
        batch: the batch size.
        format: the memory format.
        mode: how they were run; see :data:`upscale_opt.experiments.bench.names.MODES`.
        rounds: how often each was.
        times: one per variant.
    """

    batch: int
    format: str
    mode: str = "eager"
    rounds: int
    times: tuple[Time, ...]

    @property
    def key(self) -> tuple[int, str, str]:
        """The cell of a benchmark that it is: batch size, memory format and mode."""
        return self.batch, self.format, self.mode

    def time_of(self, variant: str) -> Time | None:
        """The variant's time; ``None`` if nobody asked for it."""
        return next((time for time in self.times if time.variant == variant), None)

    def ratio(self, variant: str, base: str) -> Ratio | None:
        """One variant's time over another's; ``None`` if one of them was not timed."""
        time = self.time_of(variant)
        return None if time is None else time.ratios.get(base)


class BenchRecord(Document):
    """A network in the benchmark.

    Attributes:
        name: its name in the catalogue.
        settings: how it was masked, exported and timed.
        machine: what ran it.
        exports: its variants.
        cells: their times.
        problem: why there are none, or not all.
        seconds: for all of it.
    """

    what: ClassVar[str] = "benchmark record"

    name: str
    settings: Settings
    machine: Machine = Machine()
    exports: tuple[Export, ...] = ()
    cells: tuple[Cell, ...] = ()
    problem: str = ""
    seconds: float = 0.0

    def export(self, variant: str, cell: Cell) -> Export | None:
        """The variant as it was timed in ``cell``; ``None`` if nobody asked for it."""
        for export in self.exports:
            if (
                export.variant == variant
                and export.batch in (None, cell.batch)
                and export.format in (None, cell.format)
            ):
                return export
        return None


def done_before(store: Store[BenchRecord], name: str, settings: Settings) -> BenchRecord | None:
    """The network's record, if there is one of the same settings that lacks nothing."""
    record = store.find(name)
    if record is None or record.problem:
        return None
    return record if (record.name, record.settings) == (name, settings) else None
