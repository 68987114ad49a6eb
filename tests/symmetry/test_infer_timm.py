"""Group lists of models of timm, argued by hand; full-size ones are traced without weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from symmetry_tools import Signature, proved, signatures

from metanet.symmetry.infer import infer_program, record
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.vision import prepare_torchvision

pytestmark = [pytest.mark.slow, pytest.mark.timm]


def groups(*counted: tuple[int, int] | tuple[int, int, tuple[int, ...]]
           ) -> Counter[Signature]:
    """(how many, size) or (how many, size, sizes of the bases) as counted signatures."""
    return Counter({("S", one[1], one[2] if len(one) > 2 else ()): one[0] for one in counted})


# A stream per stage, which skip connections make one group, and a hidden layer per block.
_CONVNEXT = groups((1, 8), (1, 16), (1, 24), (2, 32), (1, 64), (2, 96), (1, 128))
SMALL: dict[str, tuple[str, dict[str, Any], Counter[Signature]]] = {
    "convnext": ("convnext_tiny", {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}, _CONVNEXT),
    "convnextv2": ("convnextv2_tiny", {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},
                   _CONVNEXT),
    # Two blocks per stage: heads (a bias table of its own each), q-k and v digits, an MLP.
    "swin": ("swin_tiny_patch4_window7_224", {
        "img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)},
        groups((2, 2), (2, 4), (4, 6, (2,)), (4, 6, (4,)), (1, 12), (1, 24), (2, 48), (2, 96))),
    # What is concatenated stays a block of its own: four layers of growth 4, their bottlenecks
    # of 16, the stem of 8 and the transition.
    "densenet": ("densenet121", {"growth_rate": 4, "block_config": (2, 2)},
                 groups((4, 4), (2, 8), (4, 16))),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_variants(name: str) -> None:
    prepare_torchvision()
    import timm

    base, options, expected = SMALL[name]
    module = timm.create_model(base, **options).eval()
    space, found = proved(module, (torch.randn(2, 3, 64, 64),))
    assert Counter(signatures(space)) == expected
    assert found.ok, found.report()


WHOLE: dict[str, tuple[int, Counter[Signature]]] = {
    # Per stage the stream and the inner layer of each of two blocks.
    "resnet18": (224, groups((3, 64), (3, 128), (3, 256), (3, 512))),
    # Tokens are mixed by hidden layers of 256, channels (one stream of 512) by such of 2048.
    "mixer_s32_224": (224, groups((1, 512), (8, 256), (8, 2048))),
    # Grouped convolutions of 8 channels: S8 in each group before and after, and the groups.
    "regnetx_002": (224, groups(
        (1, 24), (1, 32), (1, 56), (1, 152), (1, 368), (1, 3), (1, 7), (4, 19), (7, 46),
        (2, 8, (3,)), (2, 8, (7,)), (8, 8, (19,)), (14, 8, (46,)))),
    # Streams, expansions (that depthwise convolutions pass) and squeezes.
    "mobilenetv3_small_050": (224, groups(
        (2, 8), (3, 16), (3, 24), (4, 40), (1, 48), (1, 56), (1, 64), (4, 72), (3, 144), (3, 288),
        (1, 1024))),
    "efficientnet_lite0": (224, groups(
        (1, 16), (1, 24), (1, 32), (1, 40), (1, 80), (1, 96), (1, 112), (2, 144), (1, 192),
        (2, 240), (1, 320), (3, 480), (3, 672), (4, 1152), (1, 1280))),
    # 12 blocks of 4 heads with q-k and v digits and an MLP, two such for the class token, three
    # layers of the stem and the stream.
    "xcit_nano_12_p16_224": (224, groups(
        (14, 4), (28, 32, (4,)), (14, 512), (1, 16), (1, 32), (1, 64), (1, 128))),
    # 24 blocks and two for the class token: talking heads make logits and weights groups of their
    # own in the 24.
    "cait_xxs24_224": (224, groups((74, 4), (52, 48, (4,)), (26, 768), (1, 192))),
}
TOTALS = {"ghostnet_050": (224, 31), "focalnet_tiny_srf": (224, 40), "nfnet_l0": (224, 68),
          "edgenext_xx_small": (256, 28), "mobilevit_xxs": (256, 61), "res2net50_26w_4s": (224, 93),
          "crossvit_tiny_240": (240, 80), "pit_ti_224": (224, 51), "levit_128s": (224, 50)}
"""Counts that a prototype found and proved by itself."""


def whole(name: str, side: int) -> list[Signature]:
    """Groups of a model of which no weight is made."""
    prepare_torchvision()
    import timm

    with meta_parameters():
        module = timm.create_model(name)
    return signatures(infer_program(record(module.eval(), (torch.randn(2, 3, side, side),))))


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name: str) -> None:
    side, expected = WHOLE[name]
    assert Counter(whole(name, side)) == expected


@pytest.mark.parametrize("name", TOTALS)
def test_totals_of_whole_models(name: str) -> None:
    side, total = TOTALS[name]
    assert len(whole(name, side)) == total
