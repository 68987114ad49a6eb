"""One step for all layers of a space: reduce blocks, one matrix per signature, expand into blocks.

The step is linear, and its adjoint has the same form with the two sides exchanged, so the backward
pass is written out: it reduces the gradient once, uses the transposed matrices, and expands once.
What is as large as a block is touched three times: to reduce it, to write the broadcast sums of the
smaller terms, and by the matrix product that is accumulated onto them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from metanet.nn.basis import Basis, Bucket, Pattern, Piece
from metanet.nn.reduce import Reductions, combine, diagonal, from_sorted, to_sorted
from metanet.nn.roles import Shared

_PAIRS = 4  # of whole blocks that are worth one product each, without stacking

Weight: TypeAlias = Tensor | tuple[Tensor, Tensor] | Shared
"""The matrix of a stage, two factors of it, or matrices of roles."""

Parts: TypeAlias = dict[Pattern, list[tuple[frozenset[int], Tensor]]]


@dataclass(frozen=True)
class Side:
    """Pieces that stand side by side along the rows or the columns of a signature's matrix."""

    pieces: tuple[Piece, ...]
    spans: tuple[tuple[int, int], ...]  # start and width of each
    means: tuple[float, ...]            # 1 / number of entries that each piece averages

    @property
    def width(self) -> int:
        """Rows or columns of the matrix."""
        return sum(width for _, width in self.spans)


@dataclass(frozen=True)
class Stage:
    """All that shares one signature; ``whole``: no piece is reduced, so nothing is stacked."""

    rows: Side
    columns: Side
    whole: bool


@dataclass(frozen=True)
class Plan:
    """A basis with numbers of channels: what is to be done, worked out once."""

    names: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    stages: tuple[Stage, ...]
    places: tuple[tuple[int, Pattern, int], ...]  # block, its discrete pattern, private slot
    widths_in: tuple[int, ...]
    widths_out: tuple[int, ...]


def plan(found: Basis, c_in: int, c_out: int) -> Plan:
    """The plan of a basis."""
    stages = tuple(_stage(found, bucket, c_in, c_out) for bucket in found.buckets)
    names = tuple(found.grids)
    discrete = {p.block: p.pattern for p in found.buckets[0].terms if p.pattern.discrete}
    places = tuple((names.index(name), discrete[name], i) for name, grid in found.grids.items()
                   for i, slot in enumerate(grid.slots) if slot.private)
    grids = found.grids.values()
    return Plan(names, tuple(grid.sizes for grid in grids), stages, places,
                tuple(grid.width * c_in for grid in grids),
                tuple(grid.width * c_out for grid in grids))


def _stage(found: Basis, bucket: Bucket, c_in: int, c_out: int) -> Stage:
    rows, columns = _side(found, bucket.features, c_in), _side(found, bucket.terms, c_out)
    pairs = len(bucket.features) * len(bucket.terms)
    pieces = (*bucket.features, *bucket.terms)
    return Stage(rows, columns, pairs <= _PAIRS and all(_is_whole(p) for p in pieces))


def _is_whole(piece: Piece) -> bool:
    return piece.pattern.discrete and len(piece.order) == len(piece.pattern.classes)


def _side(found: Basis, pieces: Sequence[Piece], channels: int) -> Side:
    spans, means, start = [], [], 0
    for piece in pieces:
        grid = found.grids[piece.block]
        spans.append((start, grid.width * channels))
        start += grid.width * channels
        gone = [members[0] for i, members in enumerate(piece.pattern.classes)
                if i not in piece.survivors]
        means.append(1 / prod(grid.sizes[slot] for slot in gone))
    return Side(tuple(pieces), tuple(spans), tuple(means))


class _Target:
    """Blocks under construction: small parts to broadcast, products to accumulate."""

    def __init__(self, found: Plan, widths: Sequence[int]) -> None:
        self.plan, self.widths = found, widths
        self.parts: dict[str, Parts] = {name: {} for name in found.names}
        self.products: dict[str, list[tuple[Tensor, Tensor]]] = {n: [] for n in found.names}

    def add(self, piece: Piece, value: Tensor) -> None:
        """A value ``[N or 1, *survivors in canonical order, c]``."""
        terms = self.parts[piece.block].setdefault(piece.pattern, [])
        terms.append((piece.survivors, to_sorted(value, piece.order)))

    def block(self, index: int, n: int) -> Tensor:
        """The finished block ``[n, *slots, c]``."""
        name, sizes = self.plan.names[index], self.plan.sizes[index]
        parts, products = self.parts[name], self.products[name]
        shape = (n, *sizes, self.widths[index])
        whole = next((p for p in parts if p.discrete), None)
        small = combine(parts[whole], len(sizes)) if whole is not None else []
        total = _accumulate(small, products, shape)
        for pattern, terms in parts.items():
            for value in combine(terms, len(pattern.classes)) if pattern is not whole else ():
                diagonal(total, pattern).add_(value)
        return total


class _MaxTarget(_Target):
    """Gradients of blocks that were reduced by maxima: they go where the maxima are."""

    def __init__(self, found: Plan, widths: Sequence[int], values: Sequence[Tensor]) -> None:
        super().__init__(found, widths)
        self.reduced = {name: Reductions(value, "max")
                        for name, value in zip(found.names, values, strict=True)}
        self.maxima: dict[str, dict[Pattern, dict[frozenset[int], Tensor]]] = {
            name: {} for name in found.names}

    def add(self, piece: Piece, value: Tensor) -> None:
        """A gradient of a piece, ``[N, *survivors in canonical order, c]``."""
        kept = piece.survivors
        if len(kept) == len(piece.pattern.classes):
            super().add(piece, value)
            return
        self.reduced[piece.block].get(piece.pattern, kept)
        gradients = self.maxima[piece.block].setdefault(piece.pattern, {})
        value = to_sorted(value, piece.order)
        gradients[kept] = gradients[kept] + value if kept in gradients else value

    def block(self, index: int, n: int) -> Tensor:
        """The finished gradient ``[n, *slots, c]``."""
        total, name = super().block(index, n), self.plan.names[index]
        for pattern, gradients in self.maxima[name].items():
            self.reduced[name].add_gradient(total, pattern, gradients)
        return total


def _accumulate(small: Sequence[Tensor], products: Sequence[tuple[Tensor, Tensor]],
                shape: tuple[int, ...]) -> Tensor:
    """A fresh contiguous tensor: the broadcast sum of small tensors, plus matrix products."""
    if not small:
        (value, weight), *products = products
        total = (_flat(value) @ weight).view(shape)
    else:
        total = _broadcast_sum(small, shape)
    for value, weight in products:
        if torch.is_grad_enabled():
            total = torch.addmm(total.view(-1, shape[-1]), _flat(value), weight).view(shape)
        else:
            total.view(-1, shape[-1]).addmm_(_flat(value), weight)
    return total


def _broadcast_sum(small: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    if torch.is_grad_enabled():
        total = sum(small[1:], start=small[0]).expand(shape)
        return total.clone(memory_format=torch.contiguous_format)
    total = small[0].new_empty(shape)
    if len(small) == 1 or any(max(a, b) != c for a, b, c in zip(small[0].shape, small[1].shape,
                                                                shape, strict=True)):
        total.copy_(small[0])
        rest = small[1:]
    else:
        torch.add(small[0], small[1], out=total)
        rest = small[2:]
    for value in rest:
        total.add_(value)
    return total


def _stack(side: Side, reduced: dict[str, Reductions]) -> Tensor:
    found = [reduced[p.block].ordered(p.pattern, p.order) for p in side.pieces]
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def _slices(side: Side, other: Side, weight: Tensor) -> list[tuple[Piece, Piece, Tensor]]:
    """Pieces in, pieces out and the part of the matrix between them."""
    return [(p, q, weight[i:i + h, j:j + w])
            for p, (i, h) in zip(side.pieces, side.spans, strict=True)
            for q, (j, w) in zip(other.pieces, other.spans, strict=True)]


def _turned(value: Tensor, source: Piece, goal: Piece) -> Tensor:
    """A whole block with its slots in the order of those that another matches them with."""
    if source.order == goal.order:
        return value
    return to_sorted(from_sorted(value, source.order), goal.order)


def _feed(stage: Stage, reduced: dict[str, Reductions], weight: Weight, target: _Target,
          adjoint: bool, bias: Tensor | None = None) -> Tensor | None:
    """One signature from reductions to the target; gives the stacked reductions, if stacked."""
    source, goal = (stage.columns, stage.rows) if adjoint else (stage.rows, stage.columns)
    if stage.whole and isinstance(weight, Shared):
        weight = weight.dense()
    if stage.whole and bias is None and isinstance(weight, Tensor):
        for p, q, part in _slices(source, goal, weight):
            target.products[q.block].append((_turned(reduced[p.block].value, p, q), part))
        return None
    if isinstance(weight, Shared):
        _feed_shared(stage, reduced, weight, target, bias)
        return None
    stacked = _stack(source, reduced)
    mixed = stacked @ weight if isinstance(weight, Tensor) else stacked @ weight[0] @ weight[1]
    if bias is not None:
        mixed = mixed + bias
    for piece, (start, width) in zip(goal.pieces, goal.spans, strict=True):
        target.add(piece, mixed.narrow(-1, start, width))
    return stacked


def _feed_shared(stage: Stage, reduced: dict[str, Reductions], weight: Shared, target: _Target,
                 bias: Tensor | None) -> None:
    pieces = [reduced[p.block].ordered(p.pattern, p.order) for p in stage.rows.pieces]
    spans = stage.columns.spans
    for piece, value, (start, width) in zip(stage.columns.pieces, weight(pieces), spans,
                                            strict=True):
        target.add(piece, value if bias is None else value + bias.narrow(0, start, width))


def forward(found: Plan, values: Sequence[Tensor], weights: Sequence[Weight],
            bias: Tensor | None, extras: Sequence[Tensor], reduce: str = "mean"
            ) -> tuple[list[Tensor], list[Tensor | None]]:
    """Folded blocks ``[N, *slots, wc_in]`` → ``[N, *slots, wc_out]``, and the stacked features.

    Args:
        weights: one matrix per stage.
        bias: for the first stage, which has the empty signature.
        extras: one ``[n, wc_out]`` per private slot, added along it.
    """
    reduced = {n: Reductions(v, reduce) for n, v in zip(found.names, values, strict=True)}
    target = _Target(found, found.widths_out)
    stacks = [_feed(stage, reduced, weight, target, False, None if i else bias)
              for i, (stage, weight) in enumerate(zip(found.stages, weights, strict=True))]
    for (index, pattern, slot), extra in zip(found.places, extras, strict=False):
        terms = target.parts[found.names[index]].setdefault(pattern, [])
        terms.append((frozenset({slot}), extra.unsqueeze(0)))
    n = len(values[0])
    return [target.block(i, n) for i in range(len(found.names))], stacks


class Mix(torch.autograd.Function):
    """``forward`` with its adjoint as the backward pass; saves blocks and stacked features."""

    @staticmethod
    def forward(ctx: Any, found: Plan, n_extras: int, reduce: str, *tensors: Tensor | None
                ) -> tuple[Tensor, ...]:
        """``tensors``: bias, extras, weights, values."""
        bias, extras, weights, values = _sort(found, n_extras, tensors)
        blocks, stacks = forward(found, values, weights, bias, extras, reduce)
        ctx.plan, ctx.n_extras, ctx.reduce = found, n_extras, reduce
        ctx.save_for_backward(*weights, *values, *stacks)
        return tuple(blocks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``tensors``."""
        found: Plan = ctx.plan
        k, m = len(found.stages), len(found.names)
        saved = ctx.saved_tensors
        weights, values, stacks = saved[:k], saved[k:k + m], saved[k + m:]
        grads = [g.contiguous() for g in gradients]
        reduced = {n: Reductions(g, "sum")
                   for n, g in zip(found.names, grads, strict=True)}
        wanted = any(ctx.needs_input_grad[-m:])
        target = (_Target(found, found.widths_in) if ctx.reduce == "mean" else
                  _MaxTarget(found, found.widths_in, values))
        into = dict(zip(found.names, values, strict=True))
        d_weights = []
        for stage, weight, stack in zip(found.stages, weights, stacks, strict=True):
            back = _transposed(stage, weight) if ctx.reduce == "mean" else weight.T
            if stack is None:
                d_weights.append(_whole_gradient(stage, into, reduced))
                if wanted:
                    _feed(stage, reduced, back, target, True)
                continue
            arrived = _stack(stage.columns, reduced)
            d_weights.append(_flat(stack).T @ _flat(arrived))
            if wanted:
                mixed = arrived @ back
                for piece, (start, width) in zip(stage.rows.pieces, stage.rows.spans,
                                                 strict=True):
                    target.add(piece, mixed.narrow(-1, start, width))
        d_bias = None
        if ctx.needs_input_grad[3]:
            d_bias = _stack(found.stages[0].columns, reduced).sum(0)
        d_extras = [reduced[found.names[index]].get(pattern, frozenset({slot})).sum(0)
                    for index, pattern, slot in found.places[:ctx.n_extras]]
        n = len(values[0])
        d_values = [target.block(i, n) if wanted else None for i in range(m)]
        return (None, None, None, d_bias, *d_extras, *d_weights, *d_values)


def _transposed(stage: Stage, weight: Tensor) -> Tensor:
    """Columns to rows; the adjoint of a mean spreads a share to each entry."""
    if all(mean == 1 for mean in stage.rows.means):
        return weight.T
    scale = torch.cat([weight.new_full((width,), mean) for (_, width), mean in zip(
        stage.rows.spans, stage.rows.means, strict=True)])
    return weight.T * scale


def _whole_gradient(stage: Stage, values: dict[str, Tensor], reduced: dict[str, Reductions]
                    ) -> Tensor:
    rows = []
    for p in stage.rows.pieces:
        parts = [_flat(_turned(values[p.block], p, q)).T @ _flat(reduced[q.block].value)
                 for q in stage.columns.pieces]
        rows.append(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _flat(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])


def _sort(found: Plan, n_extras: int, tensors: Sequence[Tensor | None]) -> Any:
    k = 1 + n_extras
    return (tensors[0], tensors[1:k], tensors[k:k + len(found.stages)],
            tensors[k + len(found.stages):])


def mix(found: Plan, values: Sequence[Tensor], weights: Sequence[Weight], bias: Tensor | None,
        extras: Sequence[Tensor], reduce: str = "mean") -> Sequence[Tensor]:
    """The step, differentiable; under ``torch.compile`` the compiler fuses it and its gradient."""
    device = values[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        values, extras = [v.to(dtype) for v in values], [e.to(dtype) for e in extras]
        weights = [(w[0].to(dtype), w[1].to(dtype)) if isinstance(w, tuple) else w.to(dtype)
                   for w in weights]
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return mix(found, values, weights, bias, extras, reduce)
    fused = all(isinstance(weight, Tensor) for weight in weights)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not fused:
        return forward(found, values, weights, bias, extras, reduce)[0]
    tensors = (bias, *extras, *weights, *values)
    mixed: Sequence[Tensor] = Mix.apply(found, len(extras), reduce, *tensors)  # type: ignore[no-untyped-call]
    return mixed


class Join(torch.autograd.Function):
    """Broadcast parts plus one product ``value @ weight``, in a single block."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], kept: tuple[frozenset[int], ...], value: Tensor,
                weight: Tensor, *parts: Tensor) -> Tensor:
        """``parts``: ``[N or 1, *kept slots, c]`` each."""
        rank = len(shape) - 2
        small = combine(zip(kept, parts, strict=True), rank) if parts else []
        ctx.kept, ctx.lead = kept, tuple(len(part) for part in parts)
        ctx.save_for_backward(value, weight)
        return _accumulate(small, [(value, weight)], shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Products for the value and the weight, sums for the parts."""
        value, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        flat = _flat(gradient)
        d_value = (flat @ weight.T).view(value.shape) if ctx.needs_input_grad[2] else None
        sums = Reductions(gradient, "sum")
        pattern = _plain(gradient.ndim - 2)
        parts = [sums.get(pattern, kept) for kept in ctx.kept]
        parts = [part.sum(0, keepdim=True) if lead == 1 else part
                 for part, lead in zip(parts, ctx.lead, strict=True)]
        return (None, None, d_value, _flat(value).T @ flat, *parts)


def _plain(rank: int) -> Pattern:
    """The discrete pattern of unrelated slots: enough to sum by."""
    return Pattern(tuple((i,) for i in range(rank)), ("",) * rank, ((),) * rank)


def join(value: Tensor, weight: Tensor, parts: Sequence[tuple[frozenset[int], Tensor]]) -> Tensor:
    """``[N, *slots, k] @ [k, c]`` plus parts broadcast to all slots."""
    shape = (*value.shape[:-1], weight.shape[-1])
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(value.device.type)
    if plain:
        return sum(combine(parts, value.ndim - 2), start=value @ weight)
    kept = tuple(kept for kept, _ in parts)
    tensors = (part for _, part in parts)
    found: Tensor = Join.apply(shape, kept, value, weight, *tensors)  # type: ignore[no-untyped-call]
    return found
