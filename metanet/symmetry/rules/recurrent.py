"""LSTM, GRU and plain recurrent layers and cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metanet.symmetry.factor import Expr, all_fixed, length
from metanet.symmetry.rules.context import Context, Value
from metanet.symmetry.rules.registry import rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _kind(ctx: Context) -> str:
    name = ctx.op.family.removeprefix("aten.") if ctx.op is not None else ""
    return next(kind for kind in _GATES if name.startswith(kind))


def _cell(ctx: Context, x: Expr, weights: Sequence[Value], gates: int, depth: int,
          projected: bool) -> tuple[Expr, Expr]:
    """Tie the weights of one direction; the axes of its output and of its cell state."""
    w_ih, w_hh = weights[0], weights[1]
    ctx.tie(x, w_ih.axes[1])
    order, hidden = ctx.split(w_hh.axes[0], gates, length(w_hh.axes[0]) // gates)
    ctx.freeze(order, "gates")
    ctx.tie(w_ih.axes[0], w_hh.axes[0])
    for bias in weights[2:4] if len(weights) >= 4 else ():
        ctx.tie(bias.axes[0], w_hh.axes[0])
        ctx.role(bias, "bias", depth)
    out = hidden
    if projected:
        out = weights[-1].axes[0]
        ctx.tie(weights[-1].axes[1], hidden)
        ctx.weight(weights[-1], (0,), (1,), depth + 1)
    ctx.tie(out, w_hh.axes[1])
    for weight in weights[:2]:
        ctx.weight(weight, (0,), (1,), depth)
    ctx.activations.append((hidden, _kind(ctx)))
    return out, hidden


def _state(ctx: Context, states: Sequence[Value], layer: int, axes: Sequence[Expr]) -> None:
    """Initial states, where they are no constant, lie along the hidden axes."""
    for state, axis in zip(states, axes, strict=False):
        if not state.uniform:
            ctx.tie(ctx.cut(state.axes, 0, layer, layer + 1)[-1], axis)


@rule("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")
def recurrent(
    ctx: Context, x: Value, hx: Any, params: Sequence[Value], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Value, ...]:
    """x [N, T, C] (or [T, N, C]); rows of the weights are (gates, hidden)."""
    kind, directions = _kind(ctx), 2 if bidirectional else 1
    states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    per = len(params) // (layers * directions)
    projected = per == (5 if has_biases else 3)
    time = 1 if batch_first and x.rank == 3 else 0
    ctx.freeze(x.axes[time], "steps")
    ctx.mix(x, (time,))
    below, depth, finals = x.axes[-1], x.depth, []
    for layer in range(layers):
        outs = []
        for direction in range(directions):
            at = layer * directions + direction
            weights = params[at * per : (at + 1) * per]
            out, hidden = _cell(ctx, below, weights, _GATES[kind], depth, projected)
            _state(ctx, states, at, (out, hidden))
            outs.append(out)
            finals.append((out, hidden))
        below, depth = ctx.cat(outs), depth + 1
    batch = tuple(axis for i, axis in enumerate(x.axes[:-1]) if i != time)
    ends = [_final(ctx, [final[i] for final in finals], batch, depth)
            for i in range(len(ctx.shapes) - 1)]
    return Value((*x.axes[:-1], below), depth=depth), *ends


def _final(ctx: Context, finals: Sequence[Expr], batch: Sequence[Expr], depth: int) -> Value:
    """Last states, stacked over layers and directions: each has its own hidden axis."""
    if len(finals) == 1:
        return Value(((), *batch, finals[0]), depth=depth)
    base, hidden = ctx.stack_cases(finals)
    return Value((base, *batch, hidden), depth=depth)


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(ctx: Context, x: Value, hx: Any, *params: Any) -> Any:
    """One step: x [N, C], states [N, H]."""
    states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    weights = [p for p in params if isinstance(p, Value)]
    out, hidden = _cell(ctx, x.axes[-1], weights, _GATES[_kind(ctx)], x.depth, False)
    for state in states:
        if not (state.uniform or (all_fixed(state.axes[-1]) and all_fixed(hidden))):
            ctx.tie(state.axes[-1], hidden)
    value = Value((*x.axes[:-1], out), depth=x.depth + 1)
    return value if len(ctx.shapes) == 1 else (value, value)
