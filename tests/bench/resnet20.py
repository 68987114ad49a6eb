"""The ResNet-20 of the pairs; needs nothing but torch and the package's own blocks."""

from __future__ import annotations

from metanet.trace.archs.resnet import CifarResNet, Widths


def resnet20(width: int) -> CifarResNet:
    """ResNet-20 with BatchNorm and option-A shortcuts, ``width`` times as wide."""
    sizes = [16 * width, 32 * width, 64 * width]
    stages = []
    for i, size in enumerate(sizes):
        ins = sizes[max(i - 1, 0)]
        first = Widths(ins, size, size, 1 if i == 0 else 2, "")
        stages.append([first, *[Widths(size, size, size, 1, "")] * 2])
    return CifarResNet(3, stages, "linear", 10)
