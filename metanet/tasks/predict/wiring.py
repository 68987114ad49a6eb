"""Features of how a network is wired: what statistics of single tensors cannot see.

All are functions of the weights alone, the same for every order of the neurons, and every one has a
reason to tell how far and how well a network was trained: kernels become smooth, singular values
few, neurons alike; gradients leave the sum over classes where it started, so its share of the last
layer shrinks; what feeds a neuron and what it feeds grow together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from metanet.graph import WeightBatch
from metanet.symmetry import WeightSpace
from metanet.tasks.predict.normal import Place, places

_FEW = 3
"""Axes shorter than this have no spectrum worth a number."""
Matrix = Float[Tensor, "N a b"]
Column = Float[Tensor, " N"]


def wiring(batch: WeightBatch) -> Float[Tensor, "N f"]:
    """Spectra, likeness of neurons, smoothness of kernels, and how layers fit each other."""
    blocks = {name: x[..., 0].double() for name, x in batch.blocks.items()}
    found = [*_tensors(batch, blocks)]
    for group in batch.space.normal_groups:
        found += _neurons(batch.space, group.label, blocks)
    columns = torch.stack(found, 1) if found else torch.zeros(len(batch), 0, dtype=torch.float64)
    return columns.nan_to_num(0.0, 50.0, -50.0).clamp(-50, 50)


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(1e-20).log()


def _correlation(a: Float[Tensor, "N k"], b: Float[Tensor, "N k"]) -> Column:
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    size = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return (a * b).sum(1) / size.clamp_min(1e-12)


# ------------------------------------------------------------ one tensor


def _tensors(batch: WeightBatch, blocks: dict[str, Tensor]) -> Iterator[Column]:
    for name, spec in batch.space.tensors.items():
        parts = batch.space.blocks(name)
        if len(spec.shape) < 2 or len(parts) != 1:
            continue
        x = blocks[parts[0].name].reshape(len(batch), *spec.shape)
        if len(spec.shape) == 4:
            yield from _kernels(x)
        for matrix in (x.flatten(2), x.transpose(1, 2).flatten(2)):
            yield _log(_share_of_mean(matrix))
            if min(matrix.shape[1:]) >= _FEW:
                yield from _likeness(matrix)
        if min(x.shape[1], x.flatten(2).shape[2]) >= _FEW:
            yield from _spectrum(x.flatten(2))


def _kernels(x: Float[Tensor, "N o i h w"]) -> Iterator[Column]:
    """Shares of the square sum by frequency (cosine transform), and its mean distance from the
    middle.
    """
    total = x.square().flatten(1).sum(1).clamp_min(1e-30)
    bases, offsets = [], []
    for k in x.shape[3:]:
        i = torch.arange(k, dtype=x.dtype)
        wave = torch.cos(torch.pi * (i + 0.5) * i[:, None] / k)
        bases.append(wave / wave.norm(dim=1, keepdim=True))
        offsets.append(i - (k - 1) / 2)
    power = torch.einsum("noihw,uh,vw->noiuv", x, *bases).square().sum((1, 2))
    order = torch.arange(x.shape[3])[:, None] + torch.arange(x.shape[4])
    for frequency in range(min(5, int(order.max()) + 1)):
        yield _log(power[:, order == frequency].sum(1) / total)
    far = offsets[0][:, None].square() + offsets[1].square()
    yield (x.square().sum((1, 2)) * far).sum((1, 2)) / total


def _share_of_mean(x: Matrix) -> Column:
    """How much of the square sum the mean over the first axis holds."""
    return x.mean(1).square().sum(1) * x.shape[1] / x.square().flatten(1).sum(1).clamp_min(1e-30)


def _likeness(x: Matrix) -> Iterator[Column]:
    """Mean cosine between two rows, and the mean of its square."""
    rows = x / x.norm(dim=2, keepdim=True).clamp_min(1e-15)
    cosines, n = rows @ rows.transpose(1, 2), x.shape[1]
    own = cosines.diagonal(dim1=1, dim2=2)
    yield (cosines.sum((1, 2)) - own.sum(1)) / (n * (n - 1))
    yield _log((cosines.square().sum((1, 2)) - own.square().sum(1)) / (n * (n - 1)))


def _spectrum(x: Matrix) -> Iterator[Column]:
    """Shares of the first three squared singular values, and the entropy of all."""
    gram = x @ x.transpose(1, 2) if x.shape[1] <= x.shape[2] else x.transpose(1, 2) @ x
    values = torch.linalg.eigvalsh(gram).clamp_min(0).flip(1)
    shares = values / values.sum(1, keepdim=True).clamp_min(1e-30)
    yield from _log(shares[:, :_FEW]).unbind(1)
    yield -(shares * _log(shares)).sum(1)


# ------------------------------------------------------------ one group of neurons


def _neurons(space: WeightSpace, label: str, blocks: dict[str, Tensor]) -> list[Column]:
    incoming, outgoing = places(space, label)
    into = _rows(blocks, [p for p in incoming if blocks[p[0]].ndim > 2])
    out = _rows(blocks, outgoing)
    if into is None or out is None or into.shape[1] < _FEW:
        return []
    bias = _rows(blocks, [p for p in incoming if blocks[p[0]].ndim == 2])
    fed, feeds = _log(into.norm(dim=2)), _log(out.norm(dim=2))
    path = fed + feeds
    above = path - path.mean(1, keepdim=True)
    found = [fed.std(1), feeds.std(1), _correlation(fed, feeds), path.mean(1), path.std(1),
             above.amax(1), above.amin(1), (fed - feeds).mean(1), (fed - feeds).std(1)]
    if bias is not None:
        found += _offsets(bias[..., 0], fed, feeds)
    return found + _fit(into, out)


def _rows(blocks: dict[str, Tensor], where: list[Place]) -> Matrix | None:
    """Weights of each neuron as one row ``[N, neurons, rest]``."""
    parts = [blocks[name].movedim(axis, 1) for name, axis, _ in where]
    return torch.cat([x.reshape(*x.shape[:2], -1) for x in parts], 2) if parts else None


def _offsets(bias: Float[Tensor, "N n"], fed: Float[Tensor, "N n"], feeds: Float[Tensor, "N n"]
             ) -> list[Column]:
    """Biases in units of the weights beside them: thresholds of neurons."""
    at = bias / fed.exp()
    return [at.mean(1), _log(at.std(1)), at.amin(1), at.amax(1), _correlation(at, fed + feeds),
            _correlation(bias, fed), _correlation(bias, feeds)]


def _fit(into: Matrix, out: Matrix) -> list[Column]:
    """How alike the Gram matrices of what feeds the neurons and of what they feed are."""
    one, other = into @ into.transpose(1, 2), out @ out.transpose(1, 2)
    n = one.shape[1]
    product = (one * other).sum((1, 2))
    sizes = one.flatten(1).norm(dim=1) * other.flatten(1).norm(dim=1)
    traces = (one.diagonal(dim1=1, dim2=2).sum(1) * other.diagonal(dim1=1, dim2=2).sum(1))
    off = [x - torch.diag_embed(x.diagonal(dim1=1, dim2=2)) for x in (one, other)]
    return [_log(product / sizes.clamp_min(1e-30)), _log(product * n / traces.clamp_min(1e-30)),
            _correlation(off[0].flatten(1), off[1].flatten(1))]
