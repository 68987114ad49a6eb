"""Golden models: one small module per wiring pattern, with the group list it must give.

``MODELS[name]`` is a :class:`Golden` (a tuple: factory, example_inputs, groups, small). ``groups``
are signatures ``(kind, size, sizes of over)``, sorted, of all groups that are not fixed. ``small``
marks golden spaces of at most 40 float tensors and 200k parameters, cheap enough for tests that
square them. Lists come from hand counts argued beside each entry; a group is one S_n per hidden
layer unless two layers meet in a sum, a norm or a depthwise operation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Signature = tuple[str, int, tuple[int, ...]]


class Golden(NamedTuple):
    """A module factory, inputs it accepts, and the signatures of its groups (sorted)."""

    factory: Callable[[], nn.Module]
    example_inputs: tuple[Tensor, ...]
    groups: list[Signature]
    small: bool = True


def s(*sizes: int, over: tuple[int, ...] = ()) -> list[Signature]:
    """One S_n per size, all fibred over groups of the sizes ``over``."""
    return [("S", size, over) for size in sizes]


def image(channels: int, height: int, width: int) -> tuple[Tensor]:
    """A batch of two images with fixed values."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, channels, height, width, generator=generator),)


def vectors(*shape: int) -> tuple[Tensor]:
    """Normal values of one shape."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)),)


def tokens(vocab: int, length: int) -> tuple[Tensor]:
    """Two rows of token ids."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(0, vocab, (2, length), generator=generator),)


def mlp(bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16, bias=bias), nn.ReLU(), nn.Linear(16, 24, bias=bias), nn.ReLU(),
        nn.Linear(24, 10, bias=bias),
    )


class Siren(nn.Module):
    """sin(w0 · (Wx + b)) twice, then a linear layer."""

    def __init__(self, *widths: int, w0: float = 30.0) -> None:
        super().__init__()
        self.seq = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.seq[:-1]:
            x = torch.sin(self.w0 * layer(x))
        return self.seq[-1](x)


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84),
        nn.ReLU(), nn.Linear(84, 10),
    )


class Block(nn.Module):
    """Two 3x3 convolutions with BN; shortcut A pads channels with zeros, B convolves."""

    def __init__(self, c_in: int, c_out: int, option: str) -> None:
        super().__init__()
        self.stride = 1 if c_in == c_out else 2
        self.conv1 = nn.Conv2d(c_in, c_out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.pad = (c_out - c_in) // 2
        self.shortcut = nn.Sequential()
        if self.pad and option == "B":
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, 2, bias=False), nn.BatchNorm2d(c_out)
            )

    def skip(self, x: Tensor) -> Tensor:
        if self.pad and not len(self.shortcut):
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skip(x))


class ResNet(nn.Module):
    """A CIFAR ResNet of three stages with ``blocks`` blocks each."""

    def __init__(self, width: int, blocks: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        ins = [width] * blocks + [width] + [2 * width] * (blocks - 1)
        ins += [2 * width] + [4 * width] * (blocks - 1)
        outs = [width * 2 ** (i // blocks) for i in range(3 * blocks)]
        pairs = zip(ins, outs, strict=True)
        self.layers = nn.Sequential(*(Block(a, b, option) for a, b in pairs))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


def vgg11bn() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 0, 32, 0, 64, 64, 0, 64, 64):
        if width:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(64 * 2 * 3, 32), nn.ReLU(), nn.Linear(32, 10)]
    return nn.Sequential(*layers, *head)


class Recurrent(nn.Module):
    """A recurrent network and a linear head on every step."""

    def __init__(self, rnn: nn.RNNBase, out: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class PackedAttention(nn.Module):
    """qkv in one Linear, rows ordered (3, head, dim); the input is the residual-free stream."""

    def __init__(self, dim: int, heads: int, head_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim, self.causal = heads, head_dim, causal
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        packed = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_dim)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(out.transpose(1, 2).reshape(batch, length, -1))


class SeparateAttention(nn.Module):
    """q, k, v, o as Linear layers around SDPA, with a residual stream and a head."""

    def __init__(self, c_in: int, dim: int, heads: int, head_dim: int, out: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.embed = nn.Linear(c_in, dim)
        self.q, self.k, self.v = (nn.Linear(dim, heads * head_dim) for _ in range(3))
        self.o = nn.Linear(heads * head_dim, dim)
        self.head = nn.Linear(dim, out)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.o(out))


class CharLM(nn.Module):
    """A one-layer GPT over characters whose output matrix is the embedding."""

    def __init__(self, vocab: int, length: int, dim: int, heads: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, dim)
        self.wpe = nn.Embedding(length, dim)
        self.ln1, self.ln2, self.ln_f = (nn.LayerNorm(dim) for _ in range(3))
        self.attn = PackedAttention(dim, heads, dim // heads, causal=True)
        self.fc, self.out = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.attn(self.ln1(x))
        x = x + self.out(F.gelu(self.fc(self.ln2(x))))
        return self.lm_head(self.ln_f(x))


class Logits(nn.Module):
    """An encoder-decoder that keeps its encoder's states to itself: as outputs they are fixed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, target: Tensor) -> Tensor:
        return self.inner(input_ids=tokens, decoder_input_ids=target).logits


class Pooled(nn.Module):
    """Convolutional features, mean over space, a linear head."""

    def __init__(self, features: nn.Module, channels: int, out: int = 7) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def separable() -> nn.Module:
    return Pooled(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
    ), 12)


def grouped() -> nn.Module:
    return Pooled(nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.ReLU(),
    ), 8)


def groupnorm() -> nn.Module:
    return Pooled(nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(),
        nn.Conv2d(12, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(),
    ), 8)


def normed(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), norm(16), nn.GELU(), nn.Linear(16, 12), norm(12), nn.ReLU(),
        nn.Linear(12, 5),
    )


def prelu() -> nn.Module:
    return Pooled(nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 12, 3), nn.PReLU(),
    ), 12)


MODELS: dict[str, Golden] = {
    # One S_n per hidden layer; input and output axes are fixed.
    "mlp": Golden(mlp, vectors(2, 8), s(16, 24)),
    "mlp_nobias": Golden(lambda: mlp(bias=False), vectors(2, 8), s(16, 24)),
    "siren": Golden(lambda: Siren(2, 32, 32, 1), vectors(3, 2), s(32, 32)),
    # The 256 columns of the first Linear are (S16, 4x4 places).
    "lenet": Golden(lenet, image(1, 28, 28), s(6, 16, 120, 84)),
    # A: one inner group per block; the stream is S_w, which pads extend on both sides by fresh
    # blocks w/2 (stage 2) and w (stage 3): S_w, 2 x S_{w/2}, 2 x S_w.
    "resnet8a": Golden(lambda: ResNet(4, 1, "A"), image(3, 16, 24), s(4, 8, 16, 4, 2, 2, 4, 4)),
    "resnet20a": Golden(
        lambda: ResNet(16, 3, "A"), image(3, 16, 24),
        s(*[16] * 3, *[32] * 3, *[64] * 3, 16, 8, 8, 16, 16), small=False,
    ),
    # B: the shortcut convolution starts a new stream in each stage: inner groups + one per stage.
    "resnet8b": Golden(
        lambda: ResNet(4, 1, "B"), image(3, 16, 24), s(4, 4, 8, 8, 16, 16), small=False,
    ),
    "resnet20b": Golden(
        lambda: ResNet(16, 3, "B"), image(3, 16, 24),
        s(*[16] * 4, *[32] * 4, *[64] * 4), small=False,
    ),
    "vgg11bn": Golden(vgg11bn, image(3, 16, 24), s(16, 32, 64, 64, 64, 64, 32)),
    # Gates share the hidden permutation: rows of W_ih are (gates!, S12).
    "gru": Golden(
        lambda: Recurrent(nn.GRU(5, 12, batch_first=True), 3), vectors(2, 7, 5), s(12)),
    "lstm2": Golden(
        lambda: Recurrent(nn.LSTM(5, 12, 2, batch_first=True), 3), vectors(2, 7, 5), s(12, 12)),
    # The two directions are summands of the head's columns, each with its own group.
    "bilstm": Golden(
        lambda: Recurrent(nn.LSTM(5, 12, batch_first=True, bidirectional=True), 3),
        vectors(2, 7, 5), s(12, 12)),
    # Per layer: heads S4, q~k and v inside heads, MLP S32; the stream is the fixed input.
    "encoder": Golden(
        encoder, vectors(2, 5, 16), 2 * (s(4) + s(4, 4, over=(4,)) + s(32))),
    # Heads S3; inside each head q~k and v. Input and output fixed.
    "packed_attention": Golden(
        lambda: PackedAttention(12, 3, 4), vectors(2, 5, 12), s(3) + s(4, 4, over=(3,))),
    # The same, and a stream S12 between embed, o and head.
    "separate_attention": Golden(
        lambda: SeparateAttention(5, 12, 3, 4, 7), vectors(2, 6, 5),
        s(12, 3) + s(4, 4, over=(3,))),
    # Stream S8 (embeddings, norms), heads S2 with q~k and v, MLP S16; vocabulary fixed.
    "char_lm": Golden(
        lambda: CharLM(13, 6, 8, 2), tokens(13, 5), s(8, 2, 16) + s(4, 4, over=(2,))),
    # A depthwise layer keeps the channels of the layer before it: S8 once; then S12.
    "separable": Golden(separable, image(3, 10, 14), s(8, 12)),
    # 12 = (4 groups, 3 in each) feed 8 = (the same 4 groups, 2 in each).
    "grouped": Golden(grouped, image(3, 10, 14), s(4) + s(3, 2, over=(4,))),
    # Statistics per group: 12 = (S4, S3 inside), 8 = (S2, S4 inside), unrelated.
    "groupnorm": Golden(groupnorm, image(3, 10, 14), s(4, 2) + s(3, over=(4,)) + s(4, over=(2,))),
    "layernorm": Golden(lambda: normed(nn.LayerNorm), vectors(2, 6), s(16, 12)),
    "rmsnorm": Golden(lambda: normed(nn.RMSNorm), vectors(2, 6), s(16, 12)),
    # One slope per channel moves with it; a single shared slope moves nothing.
    "prelu": Golden(prelu, image(3, 10, 14), s(8, 12)),
}
MODELS = {name: golden._replace(groups=sorted(golden.groups)) for name, golden in MODELS.items()}
SMALL = sorted(name for name, golden in MODELS.items() if golden.small)


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """``MODELS[name]`` in eval mode with nothing degenerate: all values random and nonzero.

    Vectors are 1 + normal/10 for running variances and norm scales, normal/4 else; matrices and
    kernels are scaled by the square root of their fan-in. Fresh initialisation would leave zero
    biases and equal scales, on which a wrong permutation has no effect.
    """
    torch.manual_seed(seed)
    module = MODELS[name].factory().to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, value in module.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            _fill(key, value, generator)
    return module


@torch.no_grad()
def _fill(key: str, value: Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(value.shape, generator=generator).to(value.dtype)
    if value.ndim >= 2:
        value.copy_(noise / value[0].numel() ** 0.5)
    elif key.endswith("bias") or "running_mean" in key or "bias_" in key:
        value.copy_(noise / 4)
    else:
        value.copy_(1 + noise / 10)
