"""``timm/…``: small architectures of many families from timm, which is optional.

The names are written down here, so that listing them needs no timm. Of each family it is one of the
smallest members, on images smaller than those it was trained on.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from upscale_opt.errors import ArgumentError, needed
from upscale_opt.models.catalogue.entries import Entry, Group, picture

FAMILIES: dict[str, str] = {
    "residual": """
        resnet10t resnet18 resnet26d resnetblur50 resnetv2_18 resnetv2_50 resnext50_32x4d
        resnest14d seresnet18 legacy_seresnet18 skresnet18 ecaresnet26t ecaresnetlight
        gcresnext26ts res2net50_26w_4s regnetx_002 regnety_002 regnetz_005 regnetz_b16 gernet_s
        tresnet_m nf_resnet26 nf_regnet_b0 eca_nfnet_l0
    """,
    "dense and dual path": "densenet121 rdnet_tiny dpn48b dpn68",
    "cross-stage": "cspresnet50 cspdarknet53 cs3darknet_s cs3darknet_focus_s darknet17",
    "mobile": """
        mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium
        efficientnet_b0 efficientnet_lite0 efficientnet_es efficientnetv2_rw_t
        tf_efficientnetv2_b0 ghostnet_050 ghostnet_100 ghostnetv2_100 ghostnetv3_050
        repghostnet_050 mnasnet_small semnasnet_075 spnasnet_100 tinynet_e fbnetc_100 fbnetv3_b
        hardcorenas_a lcnet_050 mixnet_s rexnet_100 rexnetr_100
    """,
    "reparametrised": "repvgg_a0 mobileone_s0 repvit_m0_9 fastvit_t8",
    "aggregation": """
        dla34 dla46_c vovnet39a ese_vovnet19b_dw selecsls42b hgnet_tiny hgnetv2_b0
    """,
    "high resolution": "hrnet_w18_small",
    "inception": "inception_v4 inception_resnet_v2 legacy_xception xception41",
    "modern convolutions": """
        convnext_atto convnextv2_atto inception_next_atto convmixer_768_32 focalnet_tiny_srf
        poolformer_s12 poolformerv2_s12 convformer_s18 starnet_s1
    """,
    "hybrid": """
        coatnet_pico_rw_224 coatnet_nano_rw_224 maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256
        maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 mobilevit_xxs mobilevitv2_050 levit_128s
        efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 edgenext_xx_small
        caformer_s18 visformer_tiny vit_tiny_r_s16_p8_224 coat_tiny coat_lite_tiny nextvit_small
        tiny_vit_5m_224 swiftformer_xs shvit_s1 botnet26t_256 eca_botnext26ts_256 halonet26t
        haloregnetz_b lambda_resnet26t
    """,
    "attention": """
        vit_tiny_patch16_224 vit_small_patch32_224 vit_relpos_small_patch16_224
        deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
        beit_base_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 swin_tiny_patch4_window7_224
        swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 pvt_v2_b0 twins_pcpvt_small twins_svt_small
        xcit_nano_12_p16_224 crossvit_9_240 pit_ti_224 pit_ti_distilled_224 tnt_s_patch16_224
        volo_d1_224 convit_tiny gcvit_xxtiny davit_tiny hiera_tiny_224 nest_tiny mvitv2_tiny
    """,
    "mixers": "mixer_s32_224 gmixer_12_224 gmlp_ti16_224 resmlp_12_224 sequencer2d_s",
}
"""Family → names."""

_SIZE = 128

_SIZES = {
    "crossvit_9_240": 240,  # scales its images for one of the branches
    "efficientformer_l1": 224,  # its attention bias is for 7 x 7 maps
    "halonet26t": 256,  # blocks of 8 x 8 on its smallest maps
    "haloregnetz_b": 224,
    "mvitv2_tiny": 224,  # its relative positions
}
"""Height and width of the images, where it cannot be ``_SIZE``."""

_BUILT_FOR = {
    128: """
        coat_tiny coatnet_nano_rw_224 coatnet_pico_rw_224 efficientformerv2_s0 gcvit_xxtiny
        hiera_tiny_224 maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256
        maxxvitv2_nano_rw_256 twins_pcpvt_small twins_svt_small vit_tiny_r_s16_p8_224
        vit_small_patch32_224 mixer_s32_224 botnet26t_256 eca_botnext26ts_256
    """,
    112: """
        beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny convit_tiny deit3_small_patch16_224
        deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 efficientvit_m0
        eva02_tiny_patch14_224 gmixer_12_224 gmlp_ti16_224 levit_128s nest_tiny
        pit_ti_224 pit_ti_distilled_224 resmlp_12_224 sequencer2d_s swin_tiny_patch4_window7_224
        swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 swiftformer_xs tnt_s_patch16_224
        visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224 volo_d1_224
        xcit_nano_12_p16_224
    """,
}
"""Size → the networks that have to be told, as they are built, that images will be that small."""


def networks() -> Group:
    """Return the networks from timm."""
    told = {name: size for size, names in _BUILT_FOR.items() for name in names.split()}
    return {
        f"timm/{name}": Entry(
            partial(_build, name, told.get(name)),
            partial(picture, told.get(name) or _SIZES.get(name, _SIZE)),
        )
        for names in FAMILIES.values()
        for name in names.split()
    }


def _build(name: str, size: int | None) -> nn.Module:
    """Build the network; ``size`` is what it is told of its images.

    Raises:
        UpscaleError: timm is not installed.
        ArgumentError: It does not have this network.
    """
    library = needed("timm", f"timm/{name} needs", "timm")
    if not library.is_model(name):
        raise ArgumentError(
            f"timm {library.__version__} has no network called {name!r}; pip install -U timm"
        )
    options = {} if size is None else {"img_size": size}
    model: nn.Module = library.create_model(name, pretrained=False, **options)
    return model
