"""NGTLayer: attention of neurons over the weights that touch them, and over nothing else.

After the relational transformer of neural graphs (NG-T, arXiv 2403.12143), whose published code
attends over all pairs of neurons; here a neuron attends over the entries of the blocks it stands
in, so time and memory are linear in the weights. Keys and values of an entry are linear in
``m = W_e·e + Σ_j W_j·h_j + W_g·u``, so queries are brought to the space of ``m`` and values are
taken after averaging: no product of the size of a block is needed beside that for ``m``.
"""

from __future__ import annotations

from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.basis import Piece, node_basis, node_signature
from metanet.nn.engine import join
from metanet.nn.gmn import matrix, states_held
from metanet.nn.message import Kept, gated
from metanet.nn.reduce import Reductions, to_sorted
from metanet.nn.unf import check_input, short
from metanet.symmetry import WeightSpace

_NONE: Kept = frozenset()


class Attender(nn.Module):
    """One node set: what it gives to messages, and how it attends over them.

    Args:
        incoming: places of the nodes in blocks.
        state: where the batch holds their states.
        c: channels.
        heads: of attention.
    """

    def __init__(self, incoming: tuple[Piece, ...], state: Piece, c: int, heads: int) -> None:
        super().__init__()
        self.incoming, self.state, self.c, self.heads = incoming, state, c, heads
        self.give = matrix(c, len(incoming) * c)
        # Queries and keys as one bilinear form per head, values and output as one matrix each.
        self.query = nn.Parameter(torch.randn(len(incoming), c, heads * c) / c)
        self.value = nn.Parameter(torch.randn(len(incoming), heads, c, c) / sqrt(heads * c))
        self.update = matrix(c, c, zero=True)
        self.widen, self.narrow = matrix(c, 2 * c), matrix(2 * c, c, zero=True)

    def read(self, batch: WeightBatch) -> Tensor:
        """The states ``[N, *nodes in canonical order, c]``."""
        return Reductions(batch.blocks[self.state.block]).ordered(self.state.pattern,
                                                                  self.state.order)

    def share(self, state: Tensor) -> dict[str, list[tuple[Kept, Tensor]]]:
        """What these nodes add to the messages of each block."""
        parts: dict[str, list[tuple[Kept, Tensor]]] = {}
        mixed = _norm(state) @ self.give
        for i, piece in enumerate(self.incoming):
            value = to_sorted(mixed.narrow(-1, i * self.c, self.c), piece.order)
            parts.setdefault(piece.block, []).append((piece.survivors, value))
        return parts

    def forward(self, state: Tensor, messages: dict[str, Tensor]) -> Tensor:
        """States ``[N, *nodes, c]`` after attention over all places, and after a small MLP."""
        nodes, n = state.shape[1:-1], len(state)
        flat = _norm(state).reshape(n, prod(nodes), self.c)
        seen, scores = [], []
        for piece, query in zip(self.incoming, self.query, strict=True):
            entries = _facing(messages[piece.block], piece)
            asked = (flat @ query).reshape(n, -1, self.heads, self.c).transpose(-1, -2)
            scores.append(entries @ asked / sqrt(self.c))  # [N, nodes, entries, heads]
            seen.append(entries)
        shares = torch.cat(scores, 2).softmax(2).split([s.shape[2] for s in scores], 2)
        got = torch.zeros_like(flat)
        for share, entries, value in zip(shares, seen, self.value, strict=True):
            averages = share.transpose(-1, -2) @ entries  # [N, nodes, heads, c]
            got = got + torch.einsum("nkhc,hcd->nkd", averages, value)
        state = state + (got @ self.update).reshape(state.shape)
        return state + F.gelu(_norm(state) @ self.widen) @ self.narrow


class NGTLayer(nn.Module):
    """Relational attention on a latent space, with gated updates of the edges.

    Args:
        space: input and output are batches of this space, which holds node and global states
            (``nn.latent``).
        c: channels in and out.
        heads: of attention.
        frozen: see ``metanet.nn.grid``.

    At initialisation the layer is the identity (zero-init residual).

    Raises:
        SymmetryError: if the space lacks states.
    """

    coupled = True

    def __init__(self, space: WeightSpace, c: int, heads: int = 4, frozen: str = "batch") -> None:
        super().__init__()
        self.space, self.c_in, self.c_out, self.heads = space, c, c, heads
        self.basis = node_basis(space, frozen)
        held = states_held(space, self.basis)
        labels = ["", *(group.label for group in space.normal_groups)]
        missing = [label for label in labels if label not in held]
        if missing:
            raise SymmetryError(f"the space holds no states of {missing[0] or 'the whole'!r}; "
                                f"work on nn.latent(space)")
        self.edges = tuple(name for name in self.basis.grids if name not in held.values())
        self.edge_in, self.edge_bias, self.edge_out = (nn.ParameterList() for _ in range(3))
        for name in self.edges:
            width = self.basis.grids[name].width * c
            self.edge_in.append(matrix(width, c))
            self.edge_bias.append(nn.Parameter(torch.zeros(c)))
            out = torch.cat([matrix(c, width).data, torch.zeros(c, width)], -1)
            self.edge_out.append(nn.Parameter(out))
        self.nodes = nn.ModuleList(self._attender(label, held[label]) for label in labels)

    def _attender(self, label: str, held: str) -> Attender:
        bucket = self.basis.by_signature[node_signature(self.space, label) if label else ()]
        state = next(p for p in bucket.terms if p.block == held and p.pattern.discrete)
        incoming = tuple(p for p in bucket.features
                         if p.block in self.edges and p.pattern.discrete)
        return Attender(incoming, state, self.c_in, self.heads)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → ``[N, *factors, c]``."""
        check_input(self.space, self.c_in, batch)
        grids, sets = self.basis.grids, [n for n in self.nodes if isinstance(n, Attender)]
        states = [nodes.read(batch) for nodes in sets]
        parts: dict[str, list[tuple[Kept, Tensor]]] = {name: [] for name in self.edges}
        for nodes, state in zip(sets, states, strict=True):
            for name, terms in nodes.share(state).items():
                parts[name] += terms
        blocks, messages = dict(batch.blocks), {}
        for name, weight, bias, out in zip(self.edges, self.edge_in, self.edge_bias,
                                           self.edge_out, strict=True):
            value = grids[name].fold(batch.blocks[name])
            messages[name] = join(value, weight, [(_NONE, bias.unsqueeze(0)), *parts[name]])
            blocks[name] = grids[name].unfold(gated(value, F.gelu(messages[name]), out))
        for nodes, state in zip(sets, states, strict=True):
            blocks[nodes.state.block] = to_sorted(nodes(state, messages), nodes.state.order)
        return batch.with_blocks(blocks)

    def __repr__(self) -> str:
        return (f"NGTLayer({short(self.space)} -> {short(self.space)}, {self.c_in} -> "
                f"{self.c_out}, {self.heads} heads)")


def _norm(state: Tensor) -> Tensor:
    return F.layer_norm(state, state.shape[-1:])


def _facing(message: Tensor, piece: Piece) -> Tensor:
    """``[N, *slots, c]`` → ``[N, nodes in canonical order, entries of a node, c]``."""
    gone = [i for i in range(message.ndim - 2) if i not in piece.order]
    turned = message.permute(0, *(1 + i for i in (*piece.order, *gone)), message.ndim - 1)
    nodes = prod(turned.shape[1:1 + len(piece.order)])
    return turned.reshape(len(message), nodes, -1, message.shape[-1])
