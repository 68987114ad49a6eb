"""CIFAR ResNets (He et al. 2015, section 4.2) with the names of akamaster/pytorch_resnet_cifar10.

Three stages of n basic blocks. Shortcuts where a stage begins: option A subsamples and pads
channels with zeros on both sides; option B (``-b``) is a 1x1 convolution with BatchNorm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SpaceMismatch, TraceError
from metanet.trace.archs.chain import place
from metanet.trace.archs.header import Header, quoted
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.registry import Request, architecture
from metanet.trace.inputs import batch_of

_DEPTHS = (20, 32, 44, 56)


@dataclass(frozen=True)
class Widths:
    """Channels of one block, its stride, and the prefix of its shortcut ('' for option A)."""

    ins: int
    inner: int
    outs: int
    stride: int
    shortcut: str


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, w: Widths) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(w.ins, w.inner, 3, w.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(w.inner)
        self.conv2 = nn.Conv2d(w.inner, w.outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(w.outs)
        self._stride_, self._pad_, self._shortcut_ = w.stride, (w.outs - w.ins) // 2, w.shortcut
        if w.shortcut:
            conv = nn.Conv2d(w.ins, w.outs, 1, w.stride, bias=False)
            place(self, w.shortcut, nn.Sequential(conv, nn.BatchNorm2d(w.outs)))

    def skip(self, x: Float[Tensor, "N c_in h w"]) -> Float[Tensor, "N c_out h2 w2"]:
        """The shortcut."""
        if self._shortcut_:
            out: Tensor = self.get_submodule(self._shortcut_)(x)
            return out
        if self._stride_ == 1:
            return x
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self._pad_, self._pad_), "constant", 0.0)

    def forward(self, x: Float[Tensor, "N c_in h w"]) -> Float[Tensor, "N c_out h2 w2"]:
        """Apply the block."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skip(x))


class CifarResNet(nn.Module):
    """Images [N 3 h w] to logits [N k]; the head is called ``linear`` or ``fc`` as in the file."""

    def __init__(self, images: int, stages: list[list[Widths]], head: str, classes: int) -> None:
        super().__init__()
        stem, top = stages[0][0].ins, stages[-1][-1].outs
        self.conv1 = nn.Conv2d(images, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*map(BasicBlock, stage)) for stage in stages)
        self.add_module(head, nn.Linear(top, classes))
        self._head_ = head

    def forward(self, x: Float[Tensor, "N c h w"]) -> Float[Tensor, "N k"]:
        """Class scores (logits) of images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.get_submodule(self._head_)(x.mean((2, 3)))
        return out


def _check_depth(header: Header, name: str, blocks: int) -> None:
    for stage in (1, 2, 3):
        pattern = re.compile(rf"layer{stage}\.([0-9]{{1,4}})\.conv1\.weight")
        found = len([n for n in header.shapes if pattern.fullmatch(n)])
        if found != blocks:
            depth = 6 * found + 2
            hint = f"; try resnet{depth}-cifar" if depth in _DEPTHS else ""
            raise SpaceMismatch(
                f"{header.source} does not fit architecture {name!r}: expected {blocks} blocks in "
                f"layer{stage} (tensors layer{stage}.*.conv1.weight), found {found}; it has "
                f"{header.preview()}{hint}"
            )


def _block(header: Header, path: str, ins: int, stride: int, shortcut: str) -> Widths:
    inner = header.shape(f"{path}.conv1.weight", 4)[0]
    outs = header.shape(f"{path}.conv2.weight", 4)[0]
    here = shortcut if f"{path}.{shortcut}.0.weight" in header else ""
    if not here and stride == 1 and outs != ins:
        raise SpaceMismatch(f"tensor {quoted(path + '.conv2.weight')}: expected {ins} output "
                            f"channels, those of the stream, found {outs}")
    if not here and (outs < ins or (outs - ins) % 2):
        raise SpaceMismatch(
            f"tensor {quoted(path + '.conv2.weight')}: option A pads the {ins} channels of the "
            f"stream alike on both sides, which cannot give the {outs} found"
        )
    return Widths(ins, inner, outs, stride, here)


def _stages(header: Header, blocks: int, shortcut: str) -> list[list[Widths]]:
    stages: list[list[Widths]] = []
    ins = header.shape("conv1.weight", 4)[0]
    for s in (1, 2, 3):
        stage = []
        for b in range(blocks):
            block = _block(header, f"layer{s}.{b}", ins, 2 if s > 1 and b == 0 else 1, shortcut)
            ins = block.outs
            stage.append(block)
        stages.append(stage)
    return stages


def _check_option(request: Request, stages: list[list[Widths]], with_b: bool) -> None:
    has = any(block.shortcut for stage in stages for block in stage)
    if has != with_b:
        other = request.name.removesuffix("-b") if with_b else f"{request.name}-b"
        raise TraceError(
            f"the file has {'' if has else 'no '}shortcut convolutions, unlike architecture "
            f"{request.name!r}; try --arch {other}"
        )


@architecture(*[f"resnet{d}-cifar" for d in _DEPTHS], *[f"resnet{d}-cifar-b" for d in _DEPTHS])
def cifar_resnet(request: Request) -> tuple[nn.Module, tuple[Tensor]]:
    """A CIFAR ResNet of 6n + 2 layers, with all widths solved from the file."""
    header, with_b = request.file, request.name.endswith("-b")
    blocks = (int(re.sub(r"[^0-9]", "", request.name)) - 2) // 6
    _check_depth(header, request.name, blocks)
    shortcut = "downsample" if any(".downsample." in n for n in header.shapes) else "shortcut"
    stages = _stages(header, blocks, shortcut)
    _check_option(request, stages, with_b)
    head = "fc" if "fc.weight" in header else "linear"
    images, classes = header.shape("conv1.weight", 4)[1], header.shape(f"{head}.weight", 2)[0]
    with meta_parameters():
        module = CifarResNet(images, stages, head, classes)
    return module, (batch_of(images, 16, 24),)
