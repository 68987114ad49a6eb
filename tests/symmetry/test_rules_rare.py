"""Rules for operations that few networks use: linear algebra, masks, losses, odd products."""

from __future__ import annotations

from collections.abc import Callable

import models
import pytest
import torch
import torch.nn.functional as F
from symmetry_tools import proved, signatures
from torch import Tensor, nn

s = models.s


class Body(nn.Module):
    """Linear(5, 12), a function of its output, Linear to 3: features are the last axis."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 12) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(5, 12), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, False, True, True], [False, True, False, True]])
EYE = torch.eye(4) + 0.1 * torch.arange(16.0).reshape(4, 4).tril(-1)


def square(x: Tensor) -> Tensor:
    """[2, 12, 12], regular, with rows and columns both the features."""
    return torch.diag_embed(2 + x[:, 0] ** 2) + torch.eye(12) + x.transpose(1, 2) @ x


def assigned(x: Tensor) -> Tensor:
    """The rows added up by which feature is the largest, as hard assignments to groups do."""
    soft = x.softmax(-1)
    index = soft.max(-1, keepdim=True)[1]
    hard = torch.zeros_like(x).scatter_(-1, index, 1.0)
    return (hard - soft.detach() + soft) * x


def numbered(x: Tensor) -> Tensor:
    return x * (x.max(-1, keepdim=True)[1] + 1)


def filled(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0.25
    return y


def rows_written(x: Tensor) -> Tensor:
    y = torch.zeros(2, 4, 12)
    y[MASK] = x.relu()[MASK]
    return y


def row_written(x: Tensor) -> Tensor:
    y = x.clone()
    y[MASK] = x[0, 0].tanh()
    return y


def part_written(x: Tensor) -> Tensor:
    y = x.clone()
    y[MASK] = torch.arange(12.0)
    return y


def rows_scattered(x: Tensor) -> Tensor:
    mask = MASK.unsqueeze(-1).expand_as(x)
    return x.masked_scatter(mask, x.tanh().flatten(0, 1))


# function, width after it, groups and why
BODIES: dict[str, tuple[Callable[[Tensor], Tensor], int, list]] = {
    # a system over the places: the features are columns of right hand sides
    "triangular": (lambda x: torch.linalg.solve_triangular(EYE, x, upper=False), 12, s(12)),
    "triangular right": (lambda x: torch.linalg.solve_triangular(
        torch.eye(12) + square(x).tril(-1), x, upper=False, left=False), 12, []),
    # equations and unknowns are both the features; an inverse exchanges rows and columns
    "solve": (lambda x: torch.linalg.solve(square(x), x.transpose(1, 2)).transpose(1, 2), 12,
              s(12)),
    "inverse": (lambda x: x @ torch.linalg.inv(square(x)), 12, s(12)),
    "matrix_exp": (lambda x: x @ torch.linalg.matrix_exp(square(x) / 20), 12, s(12)),
    # a Cholesky factor depends on the order of the features
    "cholesky": (lambda x: x @ torch.linalg.cholesky(square(x)), 12, []),
    # masks over places pick rows and leave the features as they are, also written out along them
    "picked rows": (lambda x: x[MASK], 12, s(12)),
    "picked entries": (lambda x: x[MASK.unsqueeze(-1).expand_as(x)].reshape(-1, 12), 12, s(12)),
    "mask and number": (lambda x: x.unsqueeze(1)[:, 0][MASK[0].expand(2, 4), :3], 3, s(3, 9)),
    "filled": (filled, 12, s(12)),
    "rows written": (rows_written, 12, s(12)),
    "row written": (row_written, 12, s(12)),
    "numbers written": (part_written, 12, []),
    "rows scattered": (rows_scattered, 12, s(12)),
    "selected": (lambda x: torch.masked_select(x, MASK[..., None]).reshape(-1, 12), 12, []),
    # a mask that tells the features apart
    "some features": (lambda x: x[..., torch.arange(12) % 5 > 1], 6, []),
    # products
    "inner": (lambda x: torch.inner(x, x).flatten(2) @ x.flatten(0, 1)[:8], 12, s(12)),
    "tensordot": (lambda x: torch.tensordot(x, x, ([2], [2])).flatten(2) @ x.flatten(0, 1), 12,
                  s(12)),
    "cdist": (lambda x: torch.cdist(x, x.tanh()) @ x, 12, s(12)),
    "kron": (lambda x: torch.kron(x[0], torch.ones(1, 2)), 24,
             s(12) + s(2, over=(12,))),
    "addbmm": (lambda x: torch.addbmm(x[0], x, x.transpose(1, 2) @ x), 12, s(12)),
    "addr": (lambda x: torch.addr(x[0], torch.arange(4.0), x[1, 0]), 12, s(12)),
    "cross": (lambda x: torch.linalg.cross(x.unflatten(-1, (4, 3)), x.tanh().unflatten(
        -1, (4, 3))).flatten(-2), 12, s(4)),
    # diagonals: rows and columns of one number
    "diagonal": (lambda x: square(x).diagonal(dim1=1, dim2=2), 12, s(12)),
    "diag_embed": (lambda x: x @ torch.diag_embed(x[:, 0]), 12, s(12)),
    # broadcast and joined
    "broadcast": (lambda x: torch.mul(*torch.broadcast_tensors(x, x[:, :1])), 12, s(12)),
    "hstack": (lambda x: torch.hstack([x, x.relu()]), 12, s(12)),
    "vstack": (lambda x: torch.vstack([x, x.relu()]), 12, s(12)),
    "grid": (lambda x: torch.stack(torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")).prod(0).sum(0),
             12, s(12)),
    "by counts": (lambda x: x.repeat_interleave(torch.tensor([2, 0, 3, 1]), 1), 12, s(12)),
    # the place of the largest entry moves with the entries, unless its number is used
    "assigned": (assigned, 12, s(12)),
    "numbered": (numbered, 12, []),
    "first of ties": (lambda x: torch.zeros_like(x).scatter_(
        -1, (x > 0).long().max(-1, keepdim=True)[1], 1.0) * x, 12, []),
    # losses as gates
    "mse": (lambda x: x * F.mse_loss(x, x.tanh()), 12, s(12)),
    "mse of each": (lambda x: F.mse_loss(x, x.tanh(), reduction="none"), 12, s(12)),
    "cross entropy": (lambda x: x * F.cross_entropy(x.flatten(0, 1), torch.arange(8)), 12, []),
    # order statistics are symmetric; boundaries are constants; the order of places counts
    "quantile": (lambda x: x - x.quantile(0.3, -1, True), 12, s(12)),
    "bucketize": (lambda x: x * torch.bucketize(x, torch.arange(5.0) - 2), 12, s(12)),
    "msort": (lambda x: torch.msort(x.transpose(0, 2)).transpose(0, 2), 12, []),
    "logaddexp": (lambda x: torch.logaddexp(x, -x), 12, s(12)),
}


@pytest.mark.parametrize("name", BODIES)
def test_operation(name: str) -> None:
    function, width, groups = BODIES[name]
    torch.manual_seed(0)
    space, found = proved(Body(function, width), X)
    assert [u for u in space.meta.unsupported if u.lost] == []
    assert signatures(space) == sorted(groups)
    assert found.max_error <= 1e-11, found.report()
    assert found.undetected == ()
    assert found.ok is bool(groups)


class Grouped(nn.Module):
    """Two convolutions with a channel shuffle between."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1, groups=3)
        self.b = nn.Conv2d(12, 12, 1, groups=4)
        self.shuffle, self.c = nn.ChannelShuffle(3), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.shuffle(self.a(x)).relu()).relu())


def test_shuffled_channels() -> None:
    """(3, 4) becomes (4, 3): the four stay a group, the three are the groups of the input."""
    space, found = proved(Grouped(), torch.randn(2, 3, 5, 7))
    assert space.meta.unsupported == ()
    assert signatures(space) == sorted(s(4) + s(3, over=(4,)))
    assert found.ok, found.report()


class Pair(nn.Module):
    """A bilinear layer between two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 7)
        self.both, self.out = nn.Bilinear(6, 7, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.both(self.a(x).tanh(), self.b(x).tanh()).relu())


def test_bilinear() -> None:
    space, found = proved(Pair(), X)
    assert signatures(space) == s(6, 7, 8)
    assert found.ok, found.report()


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(11, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bag(x).relu())


def test_bags_of_rows() -> None:
    space, found = proved(Bag(), torch.randint(0, 11, (3, 4)))
    assert signatures(space) == s(6)
    assert found.ok, found.report()
