"""Masks: from a model's zeros, or chosen by a criterion; and models that obey them."""

from upscale_opt.masking.choosing import choose_masks, magnitude_masks
from upscale_opt.masking.manager import MaskingManager
from upscale_opt.masking.masks import apply_masks, masks_from_model, state_of
from upscale_opt.masking.segments import Method, Segment, Share, Side, find_segments

__all__ = [
    "MaskingManager",
    "Method",
    "Segment",
    "Share",
    "Side",
    "apply_masks",
    "choose_masks",
    "find_segments",
    "magnitude_masks",
    "masks_from_model",
    "state_of",
]
