"""UNFLinear against brute force: orbits, dimensions, explicit matrices, equivariance."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hand_spaces import SPACES
from torch import Tensor

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import DWSLinear, UNFLinear, assert_equivariant, basis
from metanet.nn.basis import MAX_SLOTS
from metanet.nn.checks import random_batch, randomised
from metanet.nn.engine import forward, mix
from metanet.symmetry import GroupElement, WeightSpace

# Spaces with few numbers, every n at least the number of index slots it fills, no large fixed axis.
TINY = {name: WeightSpace.parse("space v1\n" + text) for name, text in {
    "mlp": "group a = S(2)\ngroup b = S(2)\nw1: a 2!\nb1: a\nw2: b a\nb2: b",
    "pair": "group a = S(4)\nw: a a\nb: a",
    "triple": "group a = S(4)\ngroup b = S(2)\nt: a a b\nu: b",
    "heads": "group h = S(2)\ngroup d = S(2) / h\nq: (h d/h)\no: 2! (h d/h)\nm: h",
    "two_fibres": "group h = S(2)\ngroup d = S(2) / h\ngroup v = S(2) / h\nq: (h d/h)\n"
                  "v: (h v/h)\nx: (h d/h + h v/h)",
    "square_heads": "group h = S(4)\ngroup d = S(4) / h\nq: (h d/h) (h d/h)",
    "nested": "group g = S(2)\ngroup e = S(2) / g\ngroup f = S(2) / (g e)\nw: (g e/g f/(g e))\n"
              "c: g",
    "gates": "group h = S(4)\nw: (2! h) h\nb: (2! h)",
    "sum": "group a = S(2)\ngroup b = S(3)\nw: (a + b)\nv: (b + a) 2!\nz:",
}.items()}
# (terms × folded indices, complete), counted by hand for two of them.
PAIR_COUNT = 15 + 2 * 5 + 2  # (a,a)->(a,a), both ways to (a), (a)->(a)


def generators(space: WeightSpace) -> list[GroupElement]:
    """A transposition and a cycle of each group, in the first fibre; bases move the fibres."""
    found = []
    for group in space.groups:
        shape = (*(space.group(b).size for b in group.over), group.size)
        for order in (np.r_[1, 0, 2:group.size], np.roll(np.arange(group.size), 1)):
            table = np.broadcast_to(np.arange(group.size), shape).copy()
            table.reshape(-1, group.size)[0] = order[:group.size]
            found.append(GroupElement(space, {group.label: table}))
    return found


def flat(batch: WeightBatch) -> Tensor:
    return torch.cat([b.reshape(len(batch), -1) for b in batch.blocks.values()], -1)


def one_hot(space: WeightSpace) -> WeightBatch:
    """All unit vectors of the space as members of one batch."""
    sizes = [prod(b.shape) for name in space.tensors for b in space.blocks(name)]
    parts = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, -1)
    layout = [b for name in space.tensors for b in space.blocks(name)]
    return WeightBatch(space, {b.name: part.reshape(-1, *b.shape, 1)
                               for b, part in zip(layout, parts, strict=True)})


def representation(space: WeightSpace, element: GroupElement) -> Tensor:
    """The matrix of an element on flat vectors."""
    return flat(one_hot(space).apply(element)).T.contiguous()


def count_orbits(space: WeightSpace) -> int:
    """Orbits of the group on pairs of scalars, by union-find over generators."""
    moves = [representation(space, g).argmax(0).numpy() for g in generators(space)]
    n = space.n_parameters
    label = np.arange(n * n).reshape(n, n)
    while True:
        before = label.copy()
        for move in moves:  # the smaller label of the two ends wins
            label = np.minimum(label, label[np.ix_(move, move)])
            inverse = np.argsort(move)
            label = np.minimum(label, label[np.ix_(inverse, inverse)])
        if (label == before).all():
            return len(np.unique(label))


def n_weights(layer: UNFLinear) -> int:
    return sum(weight.numel() for weight in layer.weights)


def matrices(layer: UNFLinear) -> Tensor:
    """Flat matrices of all basis terms ``[terms, n * n]``: one weight set to 1 at a time."""
    inputs = one_hot(layer.space)
    rows = []
    with torch.no_grad():
        for weight in layer.weights:
            for index in range(weight.numel()):
                for other in layer.weights:
                    other.zero_()
                weight.view(-1)[index] = 1
                rows.append(flat(layer(inputs)).T.reshape(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", TINY)
def test_terms_are_orbits_and_span_everything(name: str) -> None:
    space = TINY[name]
    layer = UNFLinear(space, 1, 1, bias=False).double()
    assert layer.complete
    orbits = count_orbits(space)
    found = matrices(layer)
    assert n_weights(layer) == orbits == DWSLinear(space, 1, 1).dimension
    # The dimension of all equivariant maps, whatever the sizes: the nullspace of the constraints.
    n = space.n_parameters
    if n <= 24:
        eye = torch.eye(n, dtype=torch.float64)
        rows = [torch.kron(g, eye) - torch.kron(eye, g.T.contiguous())
                for g in (representation(space, e) for e in generators(space))]
        constraint = sum(row.T @ row for row in rows)
        dimension = int((torch.linalg.eigvalsh(constraint) < 1e-9).sum())
        assert dimension == orbits
        residual = torch.stack([(row @ found.T).abs().max() for row in rows]).max()
        assert residual < 1e-12
    rank = int(torch.linalg.matrix_rank(found @ found.T, hermitian=True, atol=1e-9, rtol=0))
    assert rank == orbits, (rank, orbits, n_weights(layer))


def test_counts_by_hand() -> None:
    assert UNFLinear(TINY["pair"], 1, 1).n_terms == PAIR_COUNT
    # 62 for a three-layer MLP with all axes free (published), 4 for a matrix, 15 for a square.
    free = "group i = S(3)\ngroup a = S(3)\ngroup b = S(3)\ngroup o = S(3)\nw1: a i\nb1: a\n"
    free += "w2: b a\nb2: b\nw3: o b\nb3: o"
    assert basis(WeightSpace.parse("space v1\n" + free)).n_terms == 62
    cube = WeightSpace.parse("space v1\ngroup a = S(6)\nt: a a a")
    assert basis(cube).n_terms == 203
    gru = WeightSpace.parse("space v1\ngroup i = S(9)\ngroup h = S(9)\nih: (3! h) i\n"
                            "hh: (3! h) h\nb1: (3! h)\nb2: (3! h)")
    assert basis(gru).n_terms == 65


def bell_of_fibres(space: WeightSpace) -> int:
    """Terms counted from scratch: all partitions of all slots of each pair of blocks, filtered."""
    layer = basis(space)
    total = 0
    for a, b in product(layer.grids.values(), repeat=2):
        slots = [*((s.label, s.bases) for s in a.slots),
                 *((s.label, tuple(x + len(a.slots) for x in s.bases)) for s in b.slots)]
        total += sum(1 for p in partitions(len(slots)) if valid(p, slots))
    return total


def partitions(n: int) -> list[tuple[int, ...]]:
    """Restricted growth strings."""
    found: list[tuple[int, ...]] = [()]
    for _ in range(n):
        found = [(*p, i) for p in found for i in range(max(p, default=-1) + 2)]
    return found


def valid(p: tuple[int, ...], slots: list[tuple[str, tuple[int, ...]]]) -> bool:
    return all(slots[i][0] == slots[j][0] and [p[x] for x in slots[i][1]] == [
        p[x] for x in slots[j][1]] for i in range(len(p)) for j in range(i) if p[i] == p[j])


@pytest.mark.parametrize("name", sorted({**SPACES, **TINY}))
def test_terms_are_the_valid_partitions(name: str) -> None:
    space = {**SPACES, **TINY}[name]
    assert basis(space).n_terms == bell_of_fibres(space)
    terms = list(UNFLinear(space, 1, 1).terms())
    assert len({(t.out, t.inp, *_canonical(t.out_classes, t.in_classes)) for t in terms}) \
        == len(terms) == basis(space).n_terms


def _canonical(out: tuple[int, ...], inp: tuple[int, ...]) -> tuple[int, ...]:
    names: dict[int, int] = {}
    return tuple(names.setdefault(i, len(names)) for i in (*out, *inp))


def reference(layer: UNFLinear, batch: WeightBatch) -> dict[str, Tensor]:
    """Slow and obvious: for every term, a 0/1 array over all index pairs, divided by its count."""
    seen = layer.basis.grids
    out = {name: torch.zeros(len(batch), *grid.sizes, grid.width * layer.c_out,
                             dtype=torch.float64) for name, grid in seen.items()}
    for term in layer.terms():
        a, b = seen[term.out], seen[term.inp]
        indices = np.indices((*a.sizes, *b.sizes))
        classes = (*term.out_classes, *term.in_classes)
        mask = np.ones(indices.shape[1:])
        for i in range(len(classes)):
            for j in range(i):
                if classes[i] == classes[j]:
                    mask = mask * (indices[i] == indices[j])
        alone = {c: b.sizes[k] for k, c in enumerate(term.in_classes)
                 if c not in term.out_classes}
        mask = torch.as_tensor(mask / prod(alone.values())).reshape(prod(a.sizes), -1)
        value = b.fold(batch.blocks[term.inp]).reshape(len(batch), prod(b.sizes), -1)
        mixed = torch.einsum("oi,nic,cd->nod", mask, value, term.weight.detach())
        out[term.out] += mixed.reshape(out[term.out].shape)
    return {name: grid.unfold(out[name]) for name, grid in seen.items()}


@pytest.mark.parametrize("name", sorted({**SPACES, **TINY}))
def test_equals_the_slow_reference(name: str) -> None:
    space = {**SPACES, **TINY}[name]
    layer = randomised(UNFLinear(space, 2, 3, bias=False), 3)
    batch = random_batch(space, 2, 1)
    got, want = layer(batch), reference(layer, batch)
    assert list(got.blocks) == list(want)
    for block, value in want.items():
        torch.testing.assert_close(got.blocks[block], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frozen", ["auto", "fold", "batch"])
@pytest.mark.parametrize("name", SPACES)
def test_equivariant(name: str, frozen: str) -> None:
    layer = UNFLinear(SPACES[name], 2, 3, frozen=frozen)
    for seed in range(2):
        assert assert_equivariant(layer, seed=seed) <= 1e-10


@pytest.mark.parametrize(("name", "complete"), [
    ("mlp", True), ("attention", True), ("large_fixed", False), ("fixed_heads", False)])
def test_completeness_is_told(name: str, complete: bool) -> None:
    layer = UNFLinear(SPACES[name], 1, 2)
    assert layer.complete is complete
    words = repr(layer)
    assert str(layer.n_terms) in words and "1 -> 2" in words
    assert ("not complete" in words) is not complete
    if name == "large_fixed":
        assert UNFLinear(SPACES[name], 1, 1, frozen="fold").complete


def test_large_fixed_axes_are_seen_by_position() -> None:
    space = SPACES["large_fixed"]
    layer = randomised(UNFLinear(space, 1, 1))
    zero = random_batch(space, 1).map(torch.zeros_like)
    out = layer(zero).blocks["w"][0, :, :, 0]
    assert torch.equal(out[0], out[1]) and len(out[0].detach().unique()) == 70


def test_init_keeps_the_variance() -> None:
    space = SPACES["mlp"]
    layer = UNFLinear(space, 64, 64)
    batch = random_batch(space, 64, n=64).to(torch.float32)
    for value in layer(batch).blocks.values():
        assert 0.1 < float(value.detach().var()) < 2
    constant = batch.map(lambda b: b.flatten(1, -2)[:, :1].expand(
        -1, b[0, ..., 0].numel(), -1).reshape(b.shape))
    for value in layer(constant).blocks.values():
        assert 0.3 < float(value.detach().var()) < 3


def test_trains_and_bias_is_equivariant_to_diagonals() -> None:
    space = TINY["pair"]
    layer = randomised(UNFLinear(space, 1, 1))
    value = layer(random_batch(space, 1).map(torch.zeros_like)).blocks["w"][0, ..., 0]
    assert len(value.detach().unique()) == 2 and len(value.detach().diagonal().unique()) == 1


def test_refusals() -> None:
    space = SPACES["mlp"]
    with pytest.raises(SymmetryError, match="mixing"):
        UNFLinear(space, 1, 1, mixing="all")
    with pytest.raises(SymmetryError, match="frozen"):
        UNFLinear(space, 1, 1, frozen="never")
    with pytest.raises(SpaceMismatch, match="channels"):
        UNFLinear(space, 2, 1)(random_batch(space, 1))
    with pytest.raises(SpaceMismatch, match="another space"):
        UNFLinear(space, 1, 1)(random_batch(SPACES["conv"], 1))
    axes = " ".join("a" * (MAX_SLOTS + 1))
    with pytest.raises(SymmetryError, match="at most 6"):
        basis(WeightSpace.parse(f"space v1\ngroup a = S(2)\nt: {axes}"))


@pytest.mark.parametrize("name", ["mlp", "attention", "conv"])
def test_lowrank_equals_the_slow_reference(name: str) -> None:
    layer = randomised(UNFLinear(SPACES[name], 2, 3, bias=False, mixing="lowrank", rank=2), 3)
    assert len(layer.first) > 0
    batch = random_batch(SPACES[name], 2, 1)
    for block, value in reference(layer, batch).items():
        torch.testing.assert_close(layer(batch).blocks[block], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("name", ["attention", "triple", "large_fixed", "nested", "scalars"])
def test_gradients_are_those_of_the_plain_operations(name: str, reduce: str) -> None:
    """The written-out backward pass against autograd through the forward operations."""
    space = SPACES[name]
    layer = randomised(UNFLinear(space, 2, 3, reduce=reduce))
    batch = random_batch(space, 2).map(lambda b: b.requires_grad_())
    leaves = [*batch.blocks.values(), *layer.parameters()]
    with torch.enable_grad():
        values = [g.fold(batch.blocks[n]) for n, g in layer.basis.grids.items()]
        weights = layer._matrices()
        fused = mix(layer.plan, values, weights, layer.bias, layer._positions(), reduce)
        plain = forward(layer.plan, values, weights, layer.bias, layer._positions(), reduce)[0]
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    got, want = (torch.autograd.grad(sum((x ** 3).sum() for x in found), leaves)
                 for found in (fused, plain))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_equal_maxima_share_the_gradient() -> None:
    space = WeightSpace.parse("space v1\ngroup a = S(4)\ngroup b = S(3)\nw: a b\nc: a")
    layer = randomised(DWSLinear(space, 1, 1, reduce="max"))
    tied = random_batch(space, 1).map(lambda b: torch.zeros_like(b).requires_grad_())
    total = torch.stack([v.sum() for v in layer(tied).blocks.values()]).sum()
    for gradient in torch.autograd.grad(total, list(tied.blocks.values())):
        assert float(gradient.std()) < 1e-12 < float(gradient.abs().min())


def test_a_deep_transformer_needs_lowrank() -> None:
    """Twelve blocks: the exact matrices grow with the square of the depth, these do not."""
    def size(depth: int, mixing: str) -> int:
        lines = ["group d = S(4)"]
        lines += [f"group {g}{i} = S(3)" for i in range(depth) for g in ("h", "f")]
        lines += [line for i in range(depth) for line in (
            f"group q{i} = S(2) / h{i}", f"n{i}: d", f"wq{i}: (h{i} q{i}/h{i}) d",
            f"wo{i}: d (h{i} q{i}/h{i})", f"up{i}: f{i} d", f"down{i}: d f{i}")]
        space = WeightSpace.parse("space v1\n" + "\n".join(lines))
        layer = UNFLinear(space, 8, 8, mixing=mixing)
        if mixing == "lowrank" and depth == 12:
            batch = random_batch(space, 8, n=1).to(torch.float32)
            assert all(torch.isfinite(b).all() for b in layer(batch).blocks.values())
        return sum(p.numel() for p in layer.parameters())

    assert size(12, "lowrank") < 3 * size(6, "lowrank")
    assert size(12, "exact") > 5 * size(12, "lowrank")
