"""A network of the shape of Llama, small enough to read: for looking at, not for running."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes; the defaults are those of Llama-3.2-1B (2 of its 16 layers, head untied)."""

    vocabulary: int = 128_256
    width: int = 2048
    layers: int = 2
    heads: int = 32
    kv_heads: int = 8
    head: int = 64
    hidden: int = 8192


class RMSNorm(nn.Module):
    """x / rms(x) times a learned weight (Zhang and Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise the last axis."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x: Float[Tensor, "n h t d"], base: float = 500_000.0) -> Float[Tensor, "n h t d"]:
    """Rotary position embedding, half-split (Su et al. 2021)."""
    length, half = x.shape[2], x.shape[3] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = torch.arange(length, device=x.device, dtype=x.dtype).unsqueeze(1) * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Causal attention whose query heads share keys and values in groups (GQA)."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self._shape_ = s
        self.q_proj = nn.Linear(s.width, s.heads * s.head, bias=False)
        self.k_proj = nn.Linear(s.width, s.kv_heads * s.head, bias=False)
        self.v_proj = nn.Linear(s.width, s.kv_heads * s.head, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head, s.width, bias=False)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Attend to the past."""
        s, (n, t, _) = self._shape_, x.shape
        q = rotate(self.q_proj(x).view(n, t, s.heads, s.head).transpose(1, 2))
        k = rotate(self.k_proj(x).view(n, t, s.kv_heads, s.head).transpose(1, 2))
        v = self.v_proj(x).view(n, t, s.kv_heads, s.head).transpose(1, 2)
        k, v = (z.repeat_interleave(s.heads // s.kv_heads, dim=1) for z in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(n, t, s.heads * s.head))
        return out


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.width, s.hidden, bias=False)
        self.up_proj = nn.Linear(s.width, s.hidden, bias=False)
        self.down_proj = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Apply the block."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and SwiGLU, each behind a norm and around the residual stream."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(s.width)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RMSNorm(s.width)
        self.mlp = SwiGLU(s)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Apply the layer."""
        x = x + self.self_attn(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """Tokens to logits, with the parameter names of the original."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = RMSNorm(s.width)
        self.lm_head = nn.Linear(s.width, s.vocabulary, bias=False)

    def forward(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t v"]:
        """Logits of the next token."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.lm_head(self.norm(x))
        return out


def llama_on_meta(shape: Shape | None = None) -> Llama:
    """The network without weights: parameters on the meta device."""
    with torch.device("meta"):
        return Llama(shape or Shape()).eval()
