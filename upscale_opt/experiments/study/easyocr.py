"""Weights of EasyOCR's networks, which come with the extra ``study``."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from upscale_opt.errors import UpscaleError
from upscale_opt.experiments.study.data import need

Network = TypeVar("Network", bound=nn.Module)


def with_weights(model: Network, file: str) -> Network:
    """The model with the weights of a file, in eval mode.

    Args:
        model: its modules are called as in EasyOCR.
        file: its name, such as ``"english_g2.pth"``.

    Raises:
        UpscaleError: if the package of the weights is missing, or they do not fit.
    """
    folder = Path(need("easyocr_en_models").model_dir())
    try:
        weights = torch.load(folder / file, map_location="cpu", weights_only=True)
        model.load_state_dict(
            {name.removeprefix("module."): value for name, value in weights.items()}
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UpscaleError(f"cannot load the weights of {Path(file).stem}: {reason}") from None
    return model.eval()
