"""Calibration data on the command line: pictures, tensors in a file, or noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from upscale_opt.cli.own_model import first_line, tensors_in
from upscale_opt.errors import UpscaleError
from upscale_opt.tracing.examples import map_tensors

NOISE = "noise"
"""The name of data that are random numbers, for trying things out."""

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, in [0, 1]."""

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

_BATCH = 16


def read_data(
    source: str,
    inputs: Any,
    *,
    samples: int,
    mean: Sequence[float] = MEAN,
    deviation: Sequence[float] = DEVIATION,
    seed: int = 0,
) -> list[Any]:
    """Batches of calibration data, in the form of the example inputs.

    Args:
        source: a folder of pictures, which are resized, cropped in the middle and normalised; a
            file of tensors (``.safetensors``, ``.pt``) whose first axis counts samples; or
            ``"noise"``: random numbers, whole ones as large as those of the example.
        inputs: the example inputs.
        samples: how many to take, spread evenly over what is there.
        mean: of the normalisation of pictures, by channel.
        deviation: the same.
        seed: of noise.

    Raises:
        UpscaleError: if there is no such place, or it does not fit the inputs.
    """
    if source == NOISE:
        return _noise(inputs, samples, seed)
    path = Path(source)
    if path.is_dir():
        return _pictures(path, inputs, samples, mean, deviation)
    if not path.is_file():
        raise UpscaleError(
            f"--data {source}: there is no such folder or file; {NOISE!r} stands for random numbers"
        )
    return _tensors(path, inputs, samples)


def _noise(inputs: Any, samples: int, seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            high = int(tensor.max()) + 1 if tensor.numel() else 1
            numbers = torch.randint(max(high, 1), tensor.shape, generator=generator)
            return numbers.to(tensor.device, tensor.dtype)
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        return noise.to(tensor.device, tensor.dtype)

    batch = max(_batch_of(inputs), 1)
    return [map_tensors(inputs, drawn) for _ in range(-(-samples // batch))]


def _batch_of(inputs: Any) -> int:
    sizes: list[int] = []

    def look(tensor: Tensor) -> Tensor:
        sizes.extend(tensor.shape[:1])
        return tensor

    map_tensors(inputs, look)
    return sizes[0] if sizes else 1


def _pictures(
    folder: Path, inputs: Any, samples: int, mean: Sequence[float], deviation: Sequence[float]
) -> list[Any]:
    if not (isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] in (1, 3)):
        raise UpscaleError(
            "pictures are for models of one input of shape (N, 3, H, W) or (N, 1, H, W); give "
            "--data a safetensors file"
        )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if not files:
        raise UpscaleError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    step = max(len(files) / samples, 1.0)
    taken = [files[int(at * step)] for at in range(min(samples, len(files)))]
    channels, height, width = inputs.shape[1:]
    grey = channels == 1
    images = [_picture(file, grey, height, width) for file in taken]
    shift, scale = (
        torch.tensor([sum(v) / len(v)] if grey else list(v)).reshape(-1, 1, 1)
        for v in (mean, deviation)
    )
    stacked = ((torch.stack(images) - shift) / scale).to(inputs.device, inputs.dtype)
    return list(torch.split(stacked, _BATCH))


def _picture(file: Path, grey: bool, height: int, width: int) -> Tensor:
    """One picture, of shape (channels, height, width), from 0 to 1."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as opened:
            array = np.asarray(opened.convert("L" if grey else "RGB"), dtype=np.float32) / 255
    except OSError as error:
        raise UpscaleError(f"cannot read the picture {file}: {first_line(error)}") from None
    pixels = torch.tensor(array)
    pixels = pixels[None] if grey else pixels.permute(2, 0, 1)
    factor = max(height / pixels.shape[1], width / pixels.shape[2])
    size = [
        max(round(factor * pixels.shape[1]), height),
        max(round(factor * pixels.shape[2]), width),
    ]
    large = functional.interpolate(
        pixels[None], size=size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, top : top + height, left : left + width].clamp(0, 1)


def _tensors(path: Path, inputs: Any, samples: int) -> list[Any]:
    tensors = tensors_in(path)
    counts = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors.values()}
    if len(counts) != 1 or 0 in counts:
        raise UpscaleError(f"{path}: the first axis of its tensors must count the same samples")
    whole = _as_inputs(tensors, inputs, path)
    count = min(counts.pop(), samples)
    return [
        map_tensors(whole, lambda t, at=at: t[at : min(at + _BATCH, count)])
        for at in range(0, count, _BATCH)
    ]


def _as_inputs(tensors: dict[str, Tensor], inputs: Any, path: Path) -> Any:
    """The tensors in the form of the example inputs."""
    if isinstance(inputs, Tensor) and len(tensors) == 1:
        return next(iter(tensors.values())).to(inputs.device)
    if isinstance(inputs, dict) and set(tensors) == set(inputs):
        return tensors
    numbers = [str(number) for number in range(len(tensors))]
    positional = isinstance(inputs, (tuple, list)) and len(inputs) == len(numbers)
    if positional and set(tensors) == set(numbers):
        return tuple(tensors[number] for number in numbers)
    raise UpscaleError(
        f"{path} holds {', '.join(tensors)}, which is not what the model takes; name tensors as "
        "its keyword arguments, or 0, 1, … in the order of its positional ones"
    )
