"""Two small character GPTs for merging: LayerNorm with learned positions, and the Llama way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from metanet.zoo.data import load
from torch import Tensor, nn

import metanet
from metanet.tasks.merge import Runner, Samples, align, fold, learn
from metanet.tasks.merge.repair import mix, repair
from metanet.tasks.merge.scores import scored
from tests.bench.merge import midpoint

LETTERS = 128
LEARNED = 4000
"""Windows of the training text that turns are learned on."""
State = dict[str, Tensor]
Row = dict[str, tuple[float, float]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How large the networks are and how long they are trained."""

    width: int
    layers: int
    context: int
    batch: int
    steps: int
    heads: int = 4


SIZES = {"full": Size(128, 4, 128, 12, 1200), "small": Size(64, 3, 64, 16, 1500),
         "shallow": Size(128, 2, 64, 16, 900)}


def text(data: Path, part: str) -> Tensor:
    """Tiny-shakespeare as numbers below 128 (it is plain ASCII)."""
    found = load("tiny-shakespeare", data, part=part)
    return torch.from_numpy(found.x).flatten().long()


class Attention(nn.Module):
    """Causal attention; ``groups`` key-value heads, rotated by position if ``rotary``."""

    def __init__(self, size: Size, groups: int, bias: bool, rotary: bool) -> None:
        super().__init__()
        width = size.width
        self.heads, self.size = size.heads, width // size.heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k, self.v = (nn.Linear(width, groups * self.size, bias=bias) for _ in range(2))
        self.o = nn.Linear(width, width, bias=bias)
        self.groups, self.rotary = groups, rotary

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).view(n, t, self.groups, self.size).transpose(1, 2) for f in (self.k, self.v))
        if self.rotary:
            q, k = rotated(q), rotated(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                           enable_gqa=self.groups != self.heads)
        return self.o(y.transpose(1, 2).reshape(x.shape))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, halves paired."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype, device=x.device),
                        10000 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half))
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Block(nn.Module):
    """GPT-2's block, or Llama's."""

    def __init__(self, size: Size, llama: bool) -> None:
        super().__init__()
        norm, width = nn.RMSNorm if llama else nn.LayerNorm, size.width
        self.ln1, self.ln2 = norm(width), norm(width)
        self.attention = Attention(size, 2 if llama else size.heads, not llama, llama)
        wide = 21 * width // 8 if llama else 4 * width
        self.up = nn.Linear(width, wide, bias=not llama)
        self.gate = nn.Linear(width, wide, bias=False) if llama else None
        self.down = nn.Linear(wide, width, bias=not llama)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        y = self.ln2(x)
        hidden = F.gelu(self.up(y)) if self.gate is None else F.silu(self.gate(y)) * self.up(y)
        return x + self.down(hidden)


class GPT(nn.Module):
    """Characters ``[n, t]`` to logits ``[n, t, 128]``; the head of ``llama`` is its embedding."""

    def __init__(self, size: Size, llama: bool) -> None:
        super().__init__()
        width = size.width
        self.embed = nn.Embedding(LETTERS, width)
        self.places = None if llama else nn.Embedding(size.context, width)
        self.blocks = nn.ModuleList(Block(size, llama) for _ in range(size.layers))
        self.norm = nn.RMSNorm(width) if llama else nn.LayerNorm(width)
        self.head = nn.Linear(width, LETTERS, bias=False)
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


GPTS: dict[str, Callable[[Size], GPT]] = {"gpt2": lambda size: GPT(size, llama=False),
                                          "llama": lambda size: GPT(size, llama=True)}


def trained(kind: str, size: Size, letters: Tensor, seed: int) -> State:
    """Train one: AdamW 1e-3, warm-up and cosine."""
    torch.manual_seed(seed)
    net = GPTS[kind](size)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, size.steps, pct_start=0.1)
    for _ in range(size.steps):
        starts = torch.randint(len(letters) - size.context - 1, (size.batch,))
        x = torch.stack([letters[s:s + size.context + 1] for s in starts.tolist()])
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def kept(path: Path, make: Callable[[], State]) -> State:
    """A trained net, made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        metanet.checkpoint.write_safetensors(make(), path)
    return metanet.open(path).state_dict()


def windows(letters: Tensor, size: Size, count: int) -> Samples:
    """The first windows of a text, side by side; labels are the letters that come next."""
    n = size.context
    x = torch.stack([letters[i * n:(i + 1) * n + 1] for i in range(count)])
    return Samples(x[:, :-1], x[:, 1:])


def pair(kind: str, name: str, folder: Path, letters: Tensor) -> list[State]:
    """Two seeds."""
    size = SIZES[name]
    return [kept(folder / f"gpt_{kind}_{name}_{seed}_{size.steps}.safetensors",
                 lambda seed=seed: trained(kind, size, letters, seed)) for seed in (0, 1)]


def told_by(outputs: Tensor, test: Samples) -> tuple[float, float]:
    """Loss and accuracy."""
    found = scored(outputs, test.y)
    return found.loss, found.accuracy


def turned_rows(net: nn.Module, a: State, b: State, calib: Samples, told: Samples, test: Samples
                ) -> Row:
    """Midpoints of folded models: as they are, turned by weights, by activations, by learning."""
    made = fold(net, torch.zeros(2, 7, dtype=torch.long))
    runner = made.runner
    one, other = made.apply(a), made.apply(b)

    def score(moved: State) -> tuple[float, float]:
        return told_by(runner.outputs(mix(one, moved, 0.5), test.x), test)

    row = {"folded, naive": score(other)}
    by_weights = align(one, other, runner=runner, method="weights", restarts=1)
    row["rotation, weights alone"] = score(by_weights.apply(other))
    seen = align(one, other, runner=runner, calib=calib.x, restarts=1, repair="none")
    moved = seen.apply(other)
    row["rotation, with inputs"] = score(moved)
    fitted = repair(runner, one, moved, mix(one, moved, 0.5), calib.x, method="least-squares")
    row["rotation, with inputs, least-squares"] = told_by(fitted.outputs(runner, test.x), test)
    found = learn(runner, one, other, seen.element, told)
    moved = found.element.apply(other)
    row["rotation, learned"] = score(moved)
    return row


def gpt_table(data: Path, folder: Path, kind: str, name: str) -> dict:
    """Two seeds of a small character GPT, brought together in every way."""
    size, letters = SIZES[name], text(data, "train")
    states = pair(kind, name, folder, letters)
    test = windows(text(data, "test"), size, 25600 // size.context)
    calib = Samples(windows(letters, size, 100).x)
    net = GPTS[kind](size).eval()
    runner = Runner(net, example_inputs=torch.zeros(2, size.context, dtype=torch.long))
    start = time.process_time()
    row = midpoint(runner, *states, calib, test)
    row |= turned_rows(net, *states, calib, windows(letters, size, LEARNED), test)
    return {"seconds": time.process_time() - start, "scores": row}


def shares(row: Row) -> list[str]:
    """Barriers at the middle, in nats and as a share of the naive one."""
    ends = (row["parent A"][0] + row["parent B"][0]) / 2
    whole = row["naive"][0] - ends
    return ["| | loss | barrier at the middle, nats | share of naive |", "|---|---|---|---|"] + [
        f"| {name} | {loss:.3f} | {loss - ends:.3f} | {(loss - ends) / whole:.1%} |"
        for name, (loss, _) in row.items()] + [""]


def gpt_tables(data: Path, folder: Path, name: str, kinds: Sequence[str], say: Say) -> None:
    """One table per kind."""
    for kind in kinds:
        row = gpt_table(data, folder, kind, name)
        say("\n".join([f"### Character GPT, {kind}, {SIZES[name]}", "", *shares(row["scores"]),
                       f"{row['seconds']:.0f} CPU-s.", ""]))
