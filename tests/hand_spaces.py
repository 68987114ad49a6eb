"""Small hand-written spaces, one per difficulty, and random tensors that fit a space."""

from __future__ import annotations

import torch
from torch import Tensor

from metanet.symmetry import WeightSpace

_TEXTS = {
    "mlp": """
        group a = S(4)
        group b = S(5)
        fc1.weight: a 3!
        fc1.bias: a
        fc2.weight: b a
        fc2.bias: b
        fc3.weight: 2! b
        fc3.bias: 2!""",
    # Every index slot of a group is at least as large as the number of slots it fills.
    "recurrence": """
        group h = S(4)
        w_ih: (3! h) 2!
        w_hh: (3! h) h
        b: (3! h)
        head: 2! h""",
    "attention": """
        group m = S(5)
        group h = S(3)
        group d = S(2) / h
        group v = S(4) / h
        embed: m 3!
        in_proj: (h d/h + h d/h + h v/h) m
        in_bias: (h d/h + h d/h + h v/h)
        out_proj: m (h v/h)
        norm: m""",
    "fixed_heads": """
        group m = S(5)
        group h = fixed(3) "alibi"
        group d = S(4) / h
        q: (h d/h) m
        k: (h d/h) m
        slopes: h
        out: m (h d/h)""",
    "nested": """
        group g = S(2)
        group e = S(3) / g
        group f = S(4) / (g e)
        w: (g e/g f/(g e)) 3!
        b: (g e/g f/(g e))
        c: (g e/g)""",
    "conv": """
        group a = S(4)
        group b = S(5)
        conv1.weight: a 2! 3! 3!
        conv2.weight: b a 3! 3!
        bn.weight: b
        bn.running_var: b
        depthwise: b 1! 3! 3!
        fc.weight: 6! (b 4!)""",
    "streams": """
        group l = S(2)
        group s = S(4)
        group r = S(2)
        group i = S(3)
        inner: i (l + s + r)
        outer: (l + s + r) i
        stem: s 3!
        norm: (l + s + r)""",
    "tied": """
        group m = S(6)
        group f = S(4)
        wte: 9! m
        up: f m
        down: m f
        lm_head = wte""",
    "large_fixed": """
        group a = S(4)
        w: a 70!
        b: a
        stem: a 3! 5! 5!
        head: 80!""",
    "scalars": """
        group a = S(4)
        w: a
        temperature:
        head: 2! a""",
    "signed": """
        group a = signed(4)
        group b = positive(3)
        w1: a 2!
        b1: a
        w2: b a
        w3: 1! b^-1""",
    "triple": """
        group a = S(3)
        group b = S(2)
        t: a a b
        u: a
        v: a b""",
}
SPACES = {name: WeightSpace.parse("space v1\n" + text) for name, text in _TEXTS.items()}


def random_state(space: WeightSpace, seed: int = 0, dtype: torch.dtype = torch.float32
                 ) -> dict[str, Tensor]:
    """Normal values for every tensor; aliases share their owner's."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(spec.shape, generator=generator, dtype=torch.float64).to(dtype)
             for name, spec in space.tensors.items()}
    state.update({alias: state[owner] for alias, owner in space.aliases.items()})
    return state
