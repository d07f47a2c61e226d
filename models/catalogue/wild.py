"""``wild/…``: small members of the networks that people prune, from five packages, all optional.

The names are written down here, so that listing them needs none of the packages, and imports none.
Nothing is downloaded: every network is built from its own description, or a small configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from upscale_opt.errors import needed
from upscale_opt.models.catalogue.entries import Entry, ExampleInputs, Group, noise, picture

DETECTORS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n"),
            "yolo12n",
        ),
        "DetectionModel",
    ),
    "yolov8n-seg": "SegmentationModel",
    "yolov8n-pose": "PoseModel",
    "yolov8n-cls": "ClassificationModel",
    "rtdetr-resnet50": "RTDETRDetectionModel",
}
"""The networks of ultralytics, and their classes."""

SEGMENTATION = (
    *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus"),
    *("PAN", "UPerNet", "Segformer", "DPT"),
)
"""The architectures of segmentation-models-pytorch."""

_TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_TEXT, "intermediate_size": 48}
_IMAGE = {"image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2}
_IMAGE = {**_IMAGE, "num_attention_heads": 4, "intermediate_size": 48}
_GROUPED: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "use_cache": False}
_DINO = {**_IMAGE, "image_size": 96, "mlp_ratio": 2}  # positions for more patches, as of 518
_DINO.pop("intermediate_size")
_STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]}

TRANSFORMERS: Mapping[str, tuple[str, str, str, Mapping[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", "text", _TEXT),
    "distilbert": (
        *("DistilBertModel", "DistilBertConfig", "text"),
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "gpt2": (
        *("GPT2LMHeadModel", "GPT2Config", "text"),
        {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", "text", _GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", "text", _GROUPED),
    "t5": (
        *("T5EncoderModel", "T5Config", "text"),
        {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "vit": ("ViTModel", "ViTConfig", "image", _IMAGE),
    "deit": ("DeiTModel", "DeiTConfig", "image", _IMAGE),
    "dinov2": ("Dinov2Model", "Dinov2Config", "image", _DINO),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", "image", _IMAGE),
    "swin": (
        *("SwinModel", "SwinConfig", "image"),
        {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
        | {"window_size": 4},
    ),
    "resnet": ("ResNetModel", "ResNetConfig", "image", {**_STAGES, "layer_type": "basic"}),
    "convnext": (
        *("ConvNextModel", "ConvNextConfig", "image"),
        {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2},
    ),
    "mobilenetv2": (
        *("MobileNetV2Model", "MobileNetV2Config", "image"),
        {"depth_multiplier": 0.35},
    ),
    "mobilevit": (
        *("MobileViTModel", "MobileViTConfig", "large image"),
        {"hidden_sizes": [16, 24, 32]} | {"neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 48]},
    ),
    "segformer": (
        *("SegformerForSemanticSegmentation", "SegformerConfig", "image"),
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32},
    ),
    "detr": (
        *("DetrForObjectDetection", "DetrConfig", "image"),
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 5}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        | {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "backbone": None}
        | {"use_timm_backbone": False, "use_pretrained_backbone": False}
        | {"backbone_config": ("ResNetConfig", {**_STAGES, "out_features": ["stage2"]})},
    ),
    "wav2vec2": (
        *("Wav2Vec2Model", "Wav2Vec2Config", "sound"),
        {**_TEXT, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
        | {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16}
        | {"num_conv_pos_embedding_groups": 4},
    ),
    "whisper": (
        *("models.whisper.modeling_whisper.WhisperEncoder", "WhisperConfig", "spectrum"),
        {"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4}
        | {"encoder_ffn_dim": 48, "num_mel_bins": 16, "max_source_positions": 50}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    ),
    "depthanything": (
        *("DepthAnythingForDepthEstimation", "DepthAnythingConfig", "patches"),
        {"reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 16, 24, 32]}
        | {"fusion_hidden_size": 16, "head_hidden_size": 8}
        | {
            "backbone_config": (
                "Dinov2Config",
                {**_DINO, "num_hidden_layers": 4, "image_size": 84, "patch_size": 14}
                | {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False},
            )
        },
    ),
}
"""Name → the model of transformers, its configuration, what it reads, and small settings."""

_BLOCKS = {"layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8}
_HEADED = {**_BLOCKS, "sample_size": 16, "attention_head_dim": 8}

DIFFUSERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "unet2d": (
        *("UNet2DModel", "denoising"),
        {**_HEADED, "in_channels": 4, "out_channels": 4}
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
        | {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    ),
    "unet2dcondition": (
        *("UNet2DConditionModel", "conditioned"),
        {**_HEADED, "cross_attention_dim": 24}
        | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
        | {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    ),
    "autoencoderkl": (
        *("AutoencoderKL", "picture"),
        {**_BLOCKS, "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 2}
        | {"up_block_types": ("UpDecoderBlock2D",) * 2},
    ),
    "dit": (
        *("DiTTransformer2DModel", "labelled"),
        {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 2}
        | {"out_channels": 4, "norm_num_groups": 8, "sample_size": 8, "num_embeds_ada_norm": 10},
    ),
}
"""Name → the model of diffusers, what it reads, and small settings."""

_PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_STEPS = {"channels": (8, 16, 32), "strides": (2, 2)}
_TOKENS = {"img_size": (64, 64), "spatial_dims": 2, "hidden_size": 48, "mlp_dim": 64}
_TOKENS = {**_TOKENS, "num_heads": 4, "in_channels": 1}

MONAI: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "unet": ("UNet", {**_PLANE, **_STEPS, "num_res_units": 2}),
    "basicunet": ("BasicUNet", {**_PLANE, "features": (8, 8, 16, 32, 32, 8)}),
    "segresnet": (
        "SegResNet",
        {**_PLANE, "init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
    ),
    "dynunet": (
        "DynUNet",
        {**_PLANE, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "filters": [8, 16, 32]}
        | {"upsample_kernel_size": [2, 2]},
    ),
    "vnet": ("VNet", {**_PLANE, "dropout_dim": 2}),
    "attentionunet": ("AttentionUnet", {**_PLANE, **_STEPS}),
    "unetr": ("UNETR", {**_TOKENS, "out_channels": 2, "feature_size": 8}),
    "swinunetr": ("SwinUNETR", {**_PLANE, "feature_size": 12}),
    "densenet121": ("DenseNet121", _PLANE),
    "seresnet50": ("SEResNet50", {"spatial_dims": 2, "in_channels": 1, "num_classes": 2}),
    "efficientnet": (
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 2}
        | {"in_channels": 1, "num_classes": 2},
    ),
}
"""Name → the network of monai, and small settings."""


def networks() -> Group:
    """Return the networks, by the package that they come from."""
    images = partial(picture, 128)
    grey = partial(noise, 1, 64, 64)
    found: dict[str, Entry] = {}
    for name in DETECTORS:
        found[f"wild/{name}"] = Entry(partial(_detector, name), partial(picture, 320))
    for name in SEGMENTATION:
        found[f"wild/smp-{name}"] = Entry(partial(_segmentation, name), images)
    for name, (_, _, reads, _) in TRANSFORMERS.items():
        found[f"wild/{name}"] = Entry(partial(_transformer, name), _READS[reads])
    for name, (_, reads, _) in DIFFUSERS.items():
        found[f"wild/diffusers-{name}"] = Entry(partial(_diffuser, name), _READS[reads])
    for name in MONAI:
        found[f"wild/monai-{name}"] = Entry(partial(_monai, name), lambda batch: grey(batch=batch))
    return found


def _package(module: str) -> Any:
    """Import one of the packages.

    Raises:
        UpscaleError: it is not installed.
    """
    for name in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "1")
    return needed(module, "networks of wild/ need", "wild")


def _detector(name: str) -> nn.Module:
    tasks = _package("ultralytics.nn.tasks")
    model: nn.Module = getattr(tasks, DETECTORS[name])(f"{name}.yaml", verbose=False)
    return model


def _segmentation(name: str) -> nn.Module:
    library = _package("segmentation_models_pytorch")
    options: dict[str, Any] = {"encoder_name": "resnet18", "encoder_weights": None}
    if name == "DPT":
        options |= {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True}
    model: nn.Module = getattr(library, name)(**options)
    return model


def _transformer(name: str) -> nn.Module:
    library = _package("transformers")
    place, config, _, settings = TRANSFORMERS[name]
    for part in ("backbone_config",):
        if part in settings:
            inner, own = settings[part]
            settings = {**settings, part: getattr(library, inner)(**own)}
    module, _, kind = place.rpartition(".")
    home = _package(f"transformers.{module}") if module else library
    model: nn.Module = getattr(home, kind)(getattr(library, config)(**settings))
    return model


def _diffuser(name: str) -> nn.Module:
    kind, _, settings = DIFFUSERS[name]
    model: nn.Module = getattr(_package("diffusers"), kind)(**settings)
    return model


def _monai(name: str) -> nn.Module:
    kind, settings = MONAI[name]
    model: nn.Module = getattr(_package("monai.networks.nets"), kind)(**settings)
    return model


def _text(batch: int) -> ExampleInputs:
    numbers = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, 90, (batch, 12), generator=numbers)}


def _steps(batch: int) -> torch.Tensor:
    return torch.arange(1, batch + 1)


def _conditioned(batch: int) -> ExampleInputs:
    text = noise(7, 24, batch=batch, seed=1)
    sample = noise(4, 16, 16, batch=batch)
    return {"sample": sample, "timestep": _steps(batch), "encoder_hidden_states": text}


def _labelled(batch: int) -> ExampleInputs:
    sample = noise(4, 8, 8, batch=batch)
    return {"hidden_states": sample, "timestep": _steps(batch), "class_labels": _steps(batch)}


_READS: dict[str, Callable[[int], ExampleInputs]] = {
    "text": _text,
    "image": lambda batch: {"pixel_values": picture(64, batch)},
    "large image": lambda batch: {"pixel_values": picture(256, batch)},
    "patches": lambda batch: {"pixel_values": picture(56, batch)},
    "sound": lambda batch: {"input_values": noise(800, batch=batch)},
    "spectrum": lambda batch: {"input_features": noise(16, 100, batch=batch)},
    "picture": partial(picture, 32),
    "denoising": lambda batch: {
        "sample": noise(4, 16, 16, batch=batch),
        "timestep": _steps(batch),
    },
    "conditioned": _conditioned,
    "labelled": _labelled,
}
"""The inputs of networks, by name."""
