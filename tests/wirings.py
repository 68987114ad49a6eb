"""More small networks, one per way of wiring: rotary and grouped attention, fused projections,
caches, casts, side outputs. Each entry of WIRINGS is (factory, inputs, expected groups), the
groups as signatures of ``models.py``; the comment beside it argues the list.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from models import Golden, s, tokens, vectors
from torch import Tensor, nn


class RMS(nn.Module):
    """RMSNorm that computes in float32 whatever comes in, as Llama's does."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        kind, x = x.dtype, x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(kind)


def rope(x: Tensor, dims: int) -> Tensor:
    """Half-split rotary embedding of the first ``dims`` entries of each head."""
    length, half = x.shape[-2], dims // 2
    rate = 1.0 / (100.0 ** (torch.arange(0, dims, 2).float() / dims))
    angle = torch.outer(torch.arange(length).float(), rate)
    cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
    turned, kept = x[..., :dims], x[..., dims:]
    rotated = torch.cat((-turned[..., half:], turned[..., :half]), -1)
    return torch.cat((turned * cos + rotated * sin, kept), -1)


def repeat_kv(x: Tensor, n: int) -> Tensor:
    batch, heads, length, dim = x.shape
    return x[:, :, None].expand(batch, heads, n, length, dim).reshape(batch, -1, length, dim)


class Llama(nn.Module):
    """One block: q/kv heads, rotary q and k, optional q and k norms, gated MLP, tied head."""

    def __init__(self, turned: int = 8, norms: bool = False, native: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.norms = nn.ModuleList(RMS(24) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(24, n * 8, bias=False) for n in (6, 2, 2))
        self.o = nn.Linear(48, 24, bias=False)
        self.q_norm, self.k_norm = (RMS(8), RMS(8)) if norms else (nn.Identity(), nn.Identity())
        self.gate, self.up = (nn.Linear(24, 40, bias=False) for _ in range(2))
        self.down = nn.Linear(40, 24, bias=False)
        self.turned, self.native = turned, native

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        h = self.norms[0](x)
        q, k, v = (p(h).view(*ids.shape, -1, 8).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = rope(self.q_norm(q), self.turned), rope(self.k_norm(k), self.turned)
        if self.native:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = repeat_kv(k, 3), repeat_kv(v, 3)
            scores = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
            out = scores @ v
        x = x + self.o(out.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.norms[2](x) @ self.embed.weight.t()


class Phi(nn.Module):
    """Fused qkv and fused gate and up, taken apart by slices and by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.qkv, self.o = nn.Linear(12, 3 * 12, bias=False), nn.Linear(12, 12, bias=False)
        self.gate_up, self.down = nn.Linear(12, 40), nn.Linear(20, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        packed = self.qkv(x)
        q, k, v = (packed[..., i * 12 : (i + 1) * 12] for i in range(3))
        q, k, v = (t.reshape(*x.shape[:2], 3, 4).permute(0, 2, 1, 3) for t in (q, k, v))
        weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
        x = x + self.o(torch.einsum("bhqk,bhkd->bqhd", weights, v).flatten(2))
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.head(x + self.down(F.gelu(gate) * up))


class SharedBias(nn.Module):
    """One bias per head is used by both layers: their heads move together (as in T5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.bias = nn.Embedding(9, 3)
        self.qkv = nn.ModuleList(nn.Linear(12, 36) for _ in range(2))
        self.o = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        bias = self.bias(place[None] - place[:, None] + 4).permute(2, 0, 1)
        x = self.embed(x)
        for qkv, o in zip(self.qkv, self.o, strict=True):
            q, k, v = qkv(x).view(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
            x = x + o(((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.head(x)


class Alibi(nn.Module):
    """A different slope for each head pins the heads; inside them all stays free."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.register_buffer("slopes", torch.tensor([0.5, 0.25, 0.125])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (p(x).view(*x.shape[:2], 3, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        place = torch.arange(x.shape[1])
        scores = q @ k.mT - self.slopes * (place[:, None] - place).abs()
        return self.head(x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class Standardised(nn.Module):
    """Convolutions whose kernels are standardised on the way, and a weight-normed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        x = F.conv2d(x, w, self.conv.bias).relu().amax((2, 3))
        return self.head(self.fc(x).tanh())


class Final(nn.Module):
    """Uses the last states of all layers of an LSTM, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 6, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.rnn(x)
        return self.head(h.transpose(0, 1).reshape(x.shape[0], -1))


class Learned(nn.Module):
    """A GRU whose first state is a parameter, and a cell that is rolled out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, 6))
        self.rnn, self.cell = nn.GRU(5, 6, batch_first=True), nn.LSTMCell(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x, self.start.expand(1, x.shape[0], 6).contiguous())
        h = c = torch.zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            h, c = self.cell(out[:, t], (h, c))
        return self.head(h)


class Written(nn.Module):
    """Writes two layers into slices of one zero tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 8), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        room = torch.zeros(x.shape[0], 14)
        room[:, :6] = self.a(x).relu()
        room[:, 6:] = self.b(x).tanh()
        return self.head(room)


class Written2(Written):
    """The same room is then added to a third layer, which must not look constant."""

    def __init__(self) -> None:
        super().__init__()
        del self.b
        self.c = nn.Linear(4, 14)

    def forward(self, x: Tensor) -> Tensor:
        room = torch.zeros(x.shape[0], 14)
        room[:, :6].add_(self.a(x))
        return self.head((room + self.c(x)).relu())


class Patches(nn.Module):
    """A small ViT: patches, class token, positions, packed attention, head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(
            torch.zeros(1, 7, 12))
        self.norm, self.qkv, self.o = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.place
        q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 3, 4).permute(
            2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.o(out.transpose(1, 2).flatten(2)))[:, 0])


class Dense(nn.Module):
    """Concatenates what it has with what it makes, twice; the first norm sees a sum of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.norms = nn.ModuleList((nn.BatchNorm2d(6), nn.BatchNorm2d(10)))
        self.convs = nn.ModuleList((nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 5, 1)))
        self.head = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat((x, conv(norm(x).relu())), 1)
        return self.head(x.mean((2, 3)))


class Upward(nn.Module):
    """Transposed convolutions, one of them grouped, and pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.up, self.grouped = nn.ConvTranspose2d(8, 12, 2, 2), nn.ConvTranspose2d(
            12, 8, 2, groups=4)
        self.shuffle, self.out = nn.PixelShuffle(2), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.shuffle(self.grouped(self.up(self.a(x).relu()).relu())).relu())


class MultiQuery(nn.Module):
    """Falcon's attention: one projection holds all query heads, then one key and one value head."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(5, 12), nn.Linear(12, (heads + 2) * 4)
        self.o, self.head, self.heads = nn.Linear(heads * 4, 12), nn.Linear(12, 2), heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        fused = self.qkv(x).view(*x.shape[:2], self.heads + 2, 4)
        q, k, v = fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = (t.expand(-1, self.heads, -1, -1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.o(out))


class Experts(nn.Module):
    """A router picks two of four experts for each token, whose weights are read by index."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(5, 8), nn.Linear(8, 4)
        self.up, self.down = (nn.Parameter(torch.randn(4, *n)) for n in ((12, 8), (8, 6)))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        rows, numbers = x.repeat_interleave(2, dim=0), chosen.reshape(-1)
        gate, up = torch.bmm(self.up[numbers], rows.unsqueeze(-1)).squeeze(-1).chunk(2, dim=-1)
        out = torch.bmm(self.down[numbers], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        out = out * weights.reshape(-1, 1)
        return self.head(x + out.view(x.shape[0], 2, -1).sum(1))


class Scattered(Experts):
    """The same weights, each expert run on all tokens, weighted by what was scattered."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        scores = self.router(x).sigmoid()
        values, chosen = scores.topk(2, dim=-1)
        weights = torch.zeros_like(scores).scatter(1, chosen, values)
        gate, up = torch.einsum("nc,eoc->neo", x, self.up).chunk(2, dim=-1)
        out = torch.einsum("neo,eco->nec", gate.relu() * up, self.down)
        return self.head(x + (out * weights[..., None]).sum(1))


def _images() -> tuple[Tensor]:
    return (torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)),)


WIRINGS: dict[str, Golden] = {
    # Stream S24, kv heads S2, 3 query heads in each, v~o inside; q and k are pinned by rotation.
    "llama": Golden(Llama, tokens(11, 5), s(24, 2, 40) + s(3, 8, over=(2,))),
    "llama_gqa": Golden(lambda: Llama(native=True), tokens(11, 5),
                        s(24, 2, 40) + s(3, 8, over=(2,))),
    # A quarter is rotated: the other six entries of q and k move together.
    "neox": Golden(lambda: Llama(turned=2), tokens(11, 5), s(24, 2, 40) + s(3, 6, 8, over=(2,))),
    # The norm's one weight is shared by all heads: what it lets move, moves alike in every head.
    "qk_norm": Golden(lambda: Llama(turned=2, norms=True), tokens(11, 5),
                      s(24, 2, 40, 6) + s(3, 8, over=(2,))),
    "phi": Golden(Phi, vectors(2, 6, 5), s(12, 3, 20) + s(4, 4, over=(3,))),
    # Heads of both layers together; q~k and v inside, per layer.
    "shared_bias": Golden(SharedBias, vectors(2, 4, 5), s(12, 3) + s(4, 4, 4, 4, over=(3,))),
    # The heads are a fixed base.
    "alibi": Golden(Alibi, vectors(2, 4, 5), s(12) + s(4, 4, over=(3,))),
    "standardised": Golden(Standardised, _images(), s(8, 6)),
    # Each layer's last state is a block of the head's columns.
    "final": Golden(Final, vectors(2, 4, 5), s(6, 6)),
    "learned": Golden(Learned, vectors(2, 4, 5), s(6, 8)),
    "written": Golden(Written, vectors(3, 4), s(6, 8)),
    # The first six of c move with a, the other eight by themselves.
    "written2": Golden(Written2, vectors(3, 4), s(6, 8)),
    "patches": Golden(Patches, _images(), s(12, 3) + s(4, 4, over=(3,))),
    # The key and the value have one head for all, so inside the heads one permutation serves all.
    "multi_query": Golden(MultiQuery, vectors(2, 6, 5), s(12, 3, 4, 4)),
    # Experts may be renamed with the router's outputs; inside, each expert has its own neurons.
    "experts": Golden(Experts, vectors(7, 5), s(8, 4) + s(6, over=(4,))),
    "scattered": Golden(Scattered, vectors(7, 5), s(8, 4) + s(6, over=(4,))),
    "dense": Golden(Dense, _images(), s(6, 4, 5)),
    # 12 = (4, 3), 8 = (4 groups, 2): pixel shuffle needs (2, 4) channels, so 4 groups = 2 x 2 and
    # the minor 2 of the groups, like the 2 inside a group, is pinned to places.
    "upward": Golden(Upward, _images(), s(8, 2) + s(3, over=(2, 2))),
}
WIRINGS = {k: golden._replace(groups=sorted(golden.groups)) for k, golden in WIRINGS.items()}
