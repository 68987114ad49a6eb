"""Two small character GPTs for merging: LayerNorm with learned positions, and the Llama way."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from metanet.zoo.data import load
from torch import Tensor, nn

CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 128, 128, 4, 4, 24
LETTERS = 128
State = dict[str, Tensor]


def text(data: Path, part: str) -> Tensor:
    """Tiny-shakespeare as numbers below 128 (it is plain ASCII)."""
    found = load("tiny-shakespeare", data, part=part)
    return torch.from_numpy(found.x).flatten().long()


class Attention(nn.Module):
    """Causal attention; ``groups`` key-value heads, rotated by position if ``rotary``."""

    def __init__(self, groups: int, bias: bool, rotary: bool) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.q = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.k, self.v = (nn.Linear(WIDTH, groups * self.size, bias=bias) for _ in range(2))
        self.o = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.groups, self.rotary = groups, rotary

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, HEADS, self.size).transpose(1, 2)
        k, v = (f(x).view(n, t, self.groups, self.size).transpose(1, 2) for f in (self.k, self.v))
        if self.rotary:
            q, k = rotated(q), rotated(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                           enable_gqa=self.groups != HEADS)
        return self.o(y.transpose(1, 2).reshape(n, t, WIDTH))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, halves paired."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype, device=x.device),
                        10000 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half))
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Block(nn.Module):
    """GPT-2's block, or Llama's."""

    def __init__(self, llama: bool) -> None:
        super().__init__()
        norm = nn.RMSNorm if llama else nn.LayerNorm
        self.ln1, self.ln2 = norm(WIDTH), norm(WIDTH)
        self.attention = Attention(2 if llama else HEADS, not llama, llama)
        wide = 336 if llama else 4 * WIDTH
        self.up = nn.Linear(WIDTH, wide, bias=not llama)
        self.gate = nn.Linear(WIDTH, wide, bias=False) if llama else None
        self.down = nn.Linear(wide, WIDTH, bias=not llama)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        y = self.ln2(x)
        hidden = F.gelu(self.up(y)) if self.gate is None else F.silu(self.gate(y)) * self.up(y)
        return x + self.down(hidden)


class GPT(nn.Module):
    """Characters ``[n, t]`` to logits ``[n, t, 128]``; the head of ``llama`` is its embedding."""

    def __init__(self, llama: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, WIDTH)
        self.places = None if llama else nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block(llama) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH) if llama else nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, LETTERS, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0, 0.02)
        if llama:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.places is not None:
            h = h + self.places(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


GPTS = {"gpt2": lambda: GPT(llama=False), "llama": lambda: GPT(llama=True)}


def gpt_pair(kind: str, letters: Tensor, steps: int, seed: int) -> State:
    """Train one: AdamW 1e-3, warm-up and cosine."""
    torch.manual_seed(seed)
    net = GPTS[kind]()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for _ in range(steps):
        starts = torch.randint(len(letters) - CONTEXT - 1, (BATCH,))
        x = torch.stack([letters[s:s + CONTEXT + 1] for s in starts.tolist()])
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
