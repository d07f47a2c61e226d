"""HRank: the ranks of feature maps over real batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from upscale_opt.errors import MaskError
from upscale_opt.importance.batches import as_batches
from upscale_opt.importance.criterion import Importance, by_model
from upscale_opt.ir.graph import slices_of
from upscale_opt.tracing.examples import Inputs, as_call
from upscale_opt.tracing.unchanged import undisturbed

if TYPE_CHECKING:
    from upscale_opt.masking.segments import Segment

_Side = Literal["input", "output"]

_HOW = (
    "; give it inputs, HRank(batches), or call register(model), run the model, and call "
    "deregister(model). A copy of a model counts as another model"
)


class HRank(Importance):
    """The mean rank of a channel's feature maps, over all images of all batches.

    Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, *HRank: Filter Pruning Using High-Rank Feature Map*,
    CVPR 2020. The input maps of a layer score its input channels, and the output maps (the
    convolution's, before batch norm and activation) its output channels. The rank is that of
    :func:`torch.linalg.matrix_rank` of height x width; of volumes, the mean over the depth.

    There are two ways to use it. With batches, the model is run when masks are chosen, in eval
    mode, and is left as it was:

        >>> import torch
        >>> from upscale_opt import MaskingManager
        >>> from upscale_opt.models import catalogue
        >>> model = catalogue.build("topology/residual_stage")
        >>> batches = [torch.randn(2, 3, 16, 16) for _ in range(3)]
        >>> manager = MaskingManager(model).importance(HRank(batches)).mask(amount=0.25)

    Or, as in ``apple-upscale``, you run the model yourself, in the mode it has:

        >>> hrank = HRank()
        >>> hrank.register(model)
        True
        >>> for batch in batches:
        ...     _ = model(batch)
        >>> hrank.deregister(model)
        >>> manager = MaskingManager(model).importance(hrank).mask(amount=0.25)

    Ranks are kept for the modules that ran, for as long as those live; a copy of the model has to
    be registered itself, and a copy of the criterion has its settings but no ranks. Layers without
    feature maps (linear ones, one-dimensional convolutions, weights used by a function instead of
    a convolution module) have no score and are left alone. Where several layers share a segment,
    the mean over them counts.

    Args:
        batches: inputs of the model: tensors, tuples of positional arguments or dicts of keyword
            arguments. With a loader of images and labels: ``((images,) for images, _ in loader)``.
            An iterator can be used only once.
        side: record input maps or output maps only; both by default.
        out: accepted for the sake of ``apple-upscale``, and ignored: no files are written.

    Raises:
        MaskError: if ``side`` is not one of those.
    """

    def __init__(
        self,
        batches: Iterable[Inputs] | str | None = None,
        side: str | None = None,
        out: object = None,
    ) -> None:
        if isinstance(batches, str):  # HRank("output"), as the original has it
            batches, side = None, batches
        sides: dict[str | None, tuple[_Side, ...]] = {
            "input": ("input",),
            "output": ("output",),
            "both": ("input", "output"),
            None: ("input", "output"),
        }
        if side not in sides:
            raise MaskError(f"side must be 'input', 'output' or 'both', not {side!r}")
        self.batches = None if batches is None else as_batches(batches)
        self.side = side
        self.needs_feature_map_statistics = batches is None
        self._sides = sides[side]
        self._ranks: WeakKeyDictionary[nn.Module, dict[_Side, _Mean]] = WeakKeyDictionary()
        self._handles: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()

    def register(self, model: nn.Module) -> bool:
        """Have the model's convolutions record ranks from now on, starting afresh.

        Returns:
            Whether there are any convolutions that can.
        """
        self.deregister(model)
        found = False
        for name, module in model.named_modules():
            if _has_maps(module):
                found = True
                self._ranks[module] = {side: _Mean() for side in self._sides}
                self._handles[module] = _record(module, name, self._ranks[module])
        return found

    def deregister(self, model: nn.Module) -> None:
        """Record no more; what was recorded counts."""
        for module in model.modules():
            handle = self._handles.pop(module, None)
            if handle is not None:
                handle.remove()

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Run the model on the batches, if there are any, and record the ranks that are needed.

        Raises:
            MaskError: if there are no batches, or no ranks for any of the segments.
        """
        if self.batches is not None:
            for own in by_model(segments):
                self._run(own[0].model, own, self.batches)
        if segments and not any(self._found(segment) for segment in segments):
            sides = sorted({share.side for segment in segments for share in segment.shares})
            raise MaskError(
                f"HRank has seen no {' or '.join(sides)} maps of the layers to prune"
                + (f" (it looks at {self.side} maps)" if self.side else "")
                + ("" if self.batches is not None else _HOW)
            )

    def score(self, segment: Segment) -> Tensor | None:
        """The mean ranks, a float64 tensor of shape (channels,).

        Raises:
            MaskError: if a layer has another number of channels than when it was run.
        """
        found = self._found(segment)
        return torch.stack(found).mean(dim=0) if found else None

    def _found(self, segment: Segment) -> list[Tensor]:
        """The mean ranks by each layer of the segment that has any."""
        found: list[Tensor] = []
        for share, layer in zip(segment.shares, segment.layers, strict=True):
            mean = self._ranks.get(layer, {}).get(share.side)
            if mean is None or mean.images == 0:
                continue
            ranks = mean.value()
            size = slices_of(segment.graph, share.weight, share.axis)
            if len(ranks) != size:
                raise MaskError(
                    f"HRank has seen layer {share.module!r} with {len(ranks)} {share.side} "
                    f"channels, but it has {size} now; register and run the model again"
                )
            found.append(ranks[share.slices].mean(dim=1))
        return found

    def _run(
        self, model: nn.Module, segments: Sequence[Segment], batches: Iterable[Inputs]
    ) -> None:
        needed: dict[nn.Module, tuple[str, dict[_Side, _Mean]]] = {}
        for segment in segments:
            for share, layer in zip(segment.shares, segment.layers, strict=True):
                if share.side in self._sides and _has_maps(layer):
                    needed.setdefault(layer, (share.module, {}))[1][share.side] = _Mean()
        ran = False
        with undisturbed(model), torch.no_grad():
            for layer, (name, means) in needed.items():
                _record(layer, name, means)
            for batch in batches:
                ran = True
                args, kwargs = as_call(batch)
                model(*args, **kwargs)
        if not ran:
            raise MaskError(
                "HRank was given no batches; give a list of inputs (an iterator gives them once)"
            )
        self._ranks.update({layer: means for layer, (_, means) in needed.items()})

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ranks": None, "_handles": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._ranks = WeakKeyDictionary()
        self._handles = WeakKeyDictionary()


def _has_maps(module: nn.Module) -> bool:
    """Tell whether the module is a convolution that can be pruned, of images or volumes."""
    return isinstance(module, _ConvNd) and module.groups == 1 and len(module.kernel_size) >= 2


class _Mean:
    """A running mean over images.

    Attributes:
        images: how many.
    """

    def __init__(self) -> None:
        self.images = 0
        self._total: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Count ``values`` of shape (images, channels)."""
        total = values.sum(dim=0)  # stays on its device: nothing waits for a GPU here
        self._total = total if self._total is None else self._total + total
        self.images += len(values)

    def value(self) -> Tensor:
        """The mean, of shape (channels,), on the CPU; there must have been images."""
        assert self._total is not None
        return self._total.cpu() / self.images


def _record(module: nn.Module, name: str, means: Mapping[_Side, _Mean]) -> RemovableHandle:
    """Have a convolution record the ranks of its feature maps."""
    spatial = len(module.kernel_size) if isinstance(module, _ConvNd) else 0

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for side, mean in means.items():
            maps = output if side == "output" else args[0] if args else kwargs["input"]
            mean.add(_ranks(maps.detach(), spatial, f"the {side} of layer {name!r}"))

    # The stubs know hooks that return something only.
    typed: Callable[..., Any] = hook
    return module.register_forward_hook(typed, with_kwargs=True)


def _ranks(maps: Tensor, spatial: int, what: str) -> Tensor:
    """The rank of every feature map, a float64 tensor of shape (images, channels).

    Raises:
        MaskError: if a map holds something that is not a finite number.
    """
    if maps.ndim == spatial + 1:
        maps = maps[None]  # a convolution takes a single image, too
    if maps.dtype not in (torch.float32, torch.float64):
        maps = maps.float()
    if not bool(maps.isfinite().all()):
        raise MaskError(f"{what} is not finite, so it has no rank; check the inputs and weights")
    ranks: Tensor = torch.linalg.matrix_rank(maps).double()
    return ranks if spatial == 2 else ranks.mean(dim=2)
