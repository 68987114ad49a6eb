"""Optimizers that are networks over weights: universal neural functionals and graph metanetworks.

A net reads, per weight, its value, gradient, six momenta and eleven functions of the step, and
gives one number per weight, which is added to momentum or to Adam's direction (arXiv 2402.05232,
2312.04501 and 2403.12143). Such a net belongs to one space.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import MetanetError
from metanet.graph import WeightBatch
from metanet.nn import ChannelLinear, Embed, GMNLayer, Pointwise, Stack, Unembed, UNFLinear, latent
from metanet.symmetry import WeightSpace
from metanet.symmetry.axis import occurrences
from metanet.tasks.optimize.layout import Layout
from metanet.tasks.optimize.rule import TINY, State, corrections
from metanet.tasks.optimize.spec import BASE, Net, Spec

SPANS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
_OUT_MOMENTUM, _STEP_MOMENTUM, _OUT_ADAM = 1e-4, 0.1, 0.1


def restrict(space: WeightSpace, names: tuple[str, ...]) -> WeightSpace:
    """The space of some of the tensors: those that are trained (a running mean is not).

    Raises:
        MetanetError: for a parameter that the space does not know.
    """
    known = {*space.tensors, *space.aliases}
    strange = [name for name in names if name not in known]
    if strange:
        raise MetanetError(f"the space does not know the parameter {strange[0]!r}, so a net over "
                           "weights cannot train it; take net='default'")
    wanted = {space.owner(name) for name in names}
    tensors = {name: spec for name, spec in space.tensors.items() if name in wanted}
    used = {occ.label for spec in tensors.values() for axis in spec.axes
            for occ in occurrences(axis)}
    groups = {group.label: group for group in (*space.fixed, *space.normal_groups)}
    for label in sorted(used):
        used |= set(groups[label].over)
    return WeightSpace([g for label, g in groups.items() if label in used], tensors,
                       meta=space.meta)


class WeightRule(nn.Module):
    """A net over the weights of one space: ``[N, *factors, c_in]`` → ``[N, *factors, 1]``.

    Args:
        spec: of kind ``unf``, ``gmn`` or ``mlp``.
        space: of the trained parameters.

    At the start the output is zero.
    """

    coupled = True

    def __init__(self, spec: Spec, space: WeightSpace) -> None:
        super().__init__()
        self.spec, self.space, h = spec, space, spec.hidden
        self.c_in, self.c_out = 2 + len(spec.decays) + len(SPANS), 1
        layers: list[nn.Module] = []
        if spec.kind != "gmn":
            layer = UNFLinear if spec.kind == "unf" else ChannelLinear
            widths = [self.c_in, *[h] * (spec.depth - 1), 1]
            for i, (a, b) in enumerate(pairwise(widths)):
                layers += [layer(space, a, b)]
                layers += [Pointwise(space, b, torch.relu)] if i < spec.depth - 1 else []
        else:
            inner = latent(space)
            layers = [Embed(space, self.c_in, h),
                      *(GMNLayer(inner, h, frozen="batch") for _ in range(spec.depth)),
                      Unembed(space, h, 1)]
        self.net = Stack(*layers)
        for parameter in layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → ``[N, *factors, 1]``."""
        found: WeightBatch = self.net(batch)
        return found


def flat_weights(module: nn.Module) -> Tensor:
    """All weights of a net as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def fresh_structured(kind: str, space: WeightSpace, hidden: int = 32, depth: int = 3,
                     base: str = "adam", seed: int = 0) -> Net:
    """An untrained net over the weights of a space: plain momentum or Adam."""
    spec = Spec(kind, hidden, depth, base, space.digest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = WeightRule(spec, space)
    return Net(spec, flat_weights(module), {"trained": False})


class Structured:
    """One such net on one network.

    Args:
        spec: of kind ``unf``, ``gmn`` or ``mlp``.
        layout: of the parameters.
        space: of the network.

    Raises:
        MetanetError: if the net belongs to another space.
    """

    def __init__(self, spec: Spec, layout: Layout, space: WeightSpace) -> None:
        self.spec, self.layout = spec, layout
        self.space = restrict(space, layout.names)
        if spec.space and spec.space != self.space.digest:
            raise MetanetError(f"the {spec.kind} net was made for another network (space "
                               f"{spec.space[:12]}, here {self.space.digest[:12]}); such nets do "
                               "not transfer: train one for this network, or take net='default'")
        self.module = WeightRule(spec, self.space)

    def direction(self, theta: Float[Tensor, "Q m"], p: Float[Tensor, "R n"],
                  g: Float[Tensor, "R n"], state: State) -> tuple[Tensor, Tensor]:
        """Direction and what it is a residual on, ``[R, n]`` each; Q is 1 or R."""
        rows = torch.cat([p[:, None], g[:, None], state.momenta], 1)
        rms = (self.layout.mean(rows * rows) + TINY).sqrt()
        out = self._run(theta, rows * self.layout.spread(1 / rms), state.steps)
        momentum = state.momenta[:, 0]
        if self.spec.base == "momentum":
            base = _STEP_MOMENTUM * momentum
            return base + _OUT_MOMENTUM * out, base
        fix = corrections(self.spec, state.steps)[:, 0]
        base = momentum * (state.square + TINY).rsqrt() * self.layout.spread(fix)
        return base + _OUT_ADAM * out, base

    def _run(self, theta: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        self.module.to(rows.device)
        shapes = {name: value.shape for name, value in self.module.named_parameters()}
        found = []
        per = len(rows) if len(theta) == 1 else 1
        for weights, part, at in zip(theta, rows.split(per), steps.split(per), strict=True):
            pieces = weights.split([shape.numel() for shape in shapes.values()])
            named = {k: v.view(s) for (k, s), v in zip(shapes.items(), pieces, strict=True)}
            batch = self._batch(part, at)
            out = torch.func.functional_call(self.module, named, (batch,))
            found.append(self._flat(out))
        return torch.cat(found)

    def _batch(self, rows: Float[Tensor, "R c n"], steps: Float[Tensor, "R T"]) -> WeightBatch:
        spans = torch.tensor(SPANS, dtype=rows.dtype, device=rows.device)
        views = self.layout.views(rows)
        blocks = {}
        for i, name in enumerate(self.layout.names):
            time = torch.tanh(steps[:, i:i + 1] / spans - 1)
            for block in self.space.blocks(name):
                value = block.view(views[i], 2).movedim(1, -1)
                shape = (len(rows), *(1,) * (value.ndim - 2), len(SPANS))
                blocks[block.name] = torch.cat(
                    [value, time.view(shape).expand(*value.shape[:-1], -1)], -1)
        order = [b.name for name in self.space.tensors for b in self.space.blocks(name)]
        return WeightBatch(self.space, {name: blocks[name] for name in order})

    def _flat(self, batch: WeightBatch) -> Float[Tensor, "R n"]:
        parts = []
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            first = next(iter(batch.blocks.values()))
            whole = first.new_zeros(len(first), *shape)
            for block in self.space.blocks(name):
                block.view(whole, 1).copy_(batch.blocks[block.name][..., 0])
            parts.append(whole)
        return self.layout.pack(parts, 1)

    def update(self, theta: Tensor, p: Tensor, g: Tensor, state: State) -> Float[Tensor, "R n"]:
        """What is to be subtracted at ``lr=1``: on Adam, of the length of Adam's step."""
        raw, base = self.direction(theta, p, g, state)
        if self.spec.base == "momentum":
            return raw
        ratio = ((self.layout.mean(base * base) + TINY)
                 / (self.layout.mean(raw * raw) + TINY)).sqrt()
        return BASE * raw * self.layout.spread(ratio)
