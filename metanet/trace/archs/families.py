"""The families of timm, one small model for each: used to measure coverage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import TraceError
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.vision import prepare_torchvision
from metanet.trace.inputs import batch_of, refusal

_SIDES = (128, 192)
"""Smaller images leave one token, on which attention does not depend."""
_SMALLEST = dict(pair.split("=") for pair in """
    beit=beit_base_patch16_224 byoanet=halonet_h1 byobnet=test_byobnet cait=cait_xxs24_224
    coat=coat_tiny convit=convit_tiny convmixer=convmixer_768_32 convnext=test_convnext
    cpubone=cpubone_nano crossvit=crossvit_tiny_240 csatv2=csatv2 cspnet=cs3darknet_focus_s
    cspnext=cspnext_tiny davit=davit_tiny deepseek_vit=deepseek_vit_412m deit=deit_tiny_patch16_224
    densenet=densenet121 dla=dla46x_c dpn=dpn48b edgenext=edgenext_xx_small
    efficientformer=efficientformer_l1 efficientformer_v2=efficientformerv2_s0
    efficientnet=mobilenetv2_035 efficientvim=efficientvim_m1 efficientvit_mit=efficientvit_b0
    efficientvit_msra=efficientvit_m0 eva=eva02_tiny_patch14_224 fasternet=fasternet_t0
    fastvit=fastvit_t8 focalnet=focalnet_tiny_srf gcvit=gcvit_xxtiny gemma4_vit=gemma4_vit_167m
    ghostnet=ghostnet_050 hardcorenas=hardcorenas_b hgnet=hgnetv2_b0 hiera=hiera_tiny_224
    hieradet_sam2=sam2_hiera_tiny hrnet=hrnet_w18_small iformer=iformer_t
    inception_next=inception_next_atto inception_resnet_v2=inception_resnet_v2
    inception_v3=inception_v3 inception_v4=inception_v4 lcnetv2=lcnetv2_small levit=levit_128s
    lowformer=lowformer_b0 mambaout=test_mambaout maxxvit=test_coatnet metaformer=poolformer_s12
    mlp_mixer=gmlp_ti16_224 mobilenetv3=mobilenetv3_small_050 mobilenetv5=mobilenetv5_base
    mobilevit=mobilevit_xxs mvitv2=mvitv2_tiny naflexvit=naflexvit_base_patch16_parfac_gap
    nasnet=nasnetalarge nest=nest_tiny nextvit=nextvit_small nfnet=test_nfnet pit=pit_ti_224
    pnasnet=pnasnet5large pvt_v2=pvt_v2_b0 qwen3_vit=qwen3_vit_88m rdnet=rdnet_tiny
    regnet=regnetx_002 repghost=repghostnet_050 repvit=repvit_m1 res2net=res2next50
    resnest=resnest14d resnet=test_resnet resnetv2=resnetv2_18 rexnet=rexnet_100
    selecsls=selecsls42 senet=legacy_seresnet18 sequencer=sequencer2d_s shvit=shvit_s1
    sknet=skresnet18 starnet=starnet_s050 swiftformer=swiftformer_xs
    swin_transformer=swin_tiny_patch4_window7_224 swin_transformer_v2=swinv2_tiny_window8_256
    swin_transformer_v2_cr=swinv2_cr_tiny_384 tiny_vit=tiny_vit_5m_224 tnt=tnt_s_legacy_patch16_224
    tresnet=tresnet_m twins=twins_svt_small vgg=vgg11 visformer=visformer_tiny
    vision_transformer=test_vit vision_transformer_hybrid=vit_tiny_r_s16_p8_224
    vision_transformer_relpos=test_vit_relpos vision_transformer_sam=samvit_base_patch16_224
    vitamin=vitamin_small_224 volo=volo_d1_224 vovnet=ese_vovnet19b_slim_dw xception=xception
    xception_aligned=xception41p xcit=xcit_nano_12_p8_224
""".split())  # noqa: SIM905
"""Family and its smallest model in timm 1.0.31, so that not all have to be built each time."""


_REDUCED: dict[str, dict[str, int]] = {
    "nasnet": {"num_features": 672, "stem_size": 16}, "gemma4_vit": {"depth": 2},
    "deepseek_vit": {"depth": 2, "embed_dim": 256, "num_heads": 4},
}
"""Constructor arguments for families whose smallest model is too large to be verified."""
_SIDES_OF = {"nasnet": (64,), "pnasnet": (64,), "convmixer": (56,), "deepseek_vit": (168, 210)}


def timm_families() -> list[str]:
    """Names of timm's model files that register models."""
    prepare_torchvision()
    from timm.models import _registry

    return sorted(_registry._module_to_models)


def smallest(family: str) -> str:
    """The model of a family with the fewest parameters, found by building all on meta.

    Families of very many models are sampled: those with the shortest names, which are the plain
    variants.
    """
    import timm
    from timm.models import _registry

    known = _SMALLEST.get(family)
    if known in _registry._module_to_models[family]:
        return str(known)
    counts: dict[str, int] = {}
    for name in sorted(_registry._module_to_models[family], key=lambda n: (len(n), n))[:16]:
        try:
            with torch.device("meta"):
                module = timm.create_model(name, pretrained=False)
        except Exception:  # noqa: S112 - a variant that cannot be built on meta is not the smallest
            continue
        counts[name] = sum(p.numel() for p in module.parameters())
    if not counts:
        raise TraceError(f"no model of timm's family {family!r} can be built")
    return min(counts, key=lambda name: (counts[name], name))


def timm_models(family: str) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """(variant and image size, module, inputs) of a family, smallest images first.

    Raises:
        TraceError: at the end, where no size is accepted.
    """
    prepare_torchvision()
    name, errors = smallest(family), []
    fewer = _REDUCED.get(family, {})
    plain = _created(name, **fewer)
    default = (getattr(plain, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    shown = "".join(f", {key}={value}" for key, value in fewer.items())
    for side in (*_SIDES_OF.get(family, _SIDES), default[-1]):
        for module in _sized(name, plain, side, fewer):
            image = (batch_of(default[0], side, side),)
            error = refusal(module, image)
            if error is None:
                yield f"{name}{shown} ({side})", module, image
            else:
                errors.append(f"{side}: {error}")
    if errors:
        raise TraceError(f"{name} accepts no image: {errors[-1]}")


def _sized(
    name: str, plain: nn.Module, side: int, fewer: dict[str, int]
) -> Iterator[nn.Module]:
    """The model made for a size, where it is made for one, then the plain one."""
    try:
        yield _created(name, img_size=side, **fewer)
    except Exception:
        yield plain


def _created(name: str, **changes: Any) -> nn.Module:
    import timm

    def make() -> nn.Module:
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **changes)
        return module.eval()

    try:
        with meta_parameters():
            module = make()
    except RuntimeError:
        return make()  # the constructor reads its parameters
    if any(buffer.is_meta for buffer in module.buffers()):
        return make()  # buffers were computed from parameters
    return module
