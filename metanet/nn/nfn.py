"""NPLinear and HNPLinear: the layers of neural functionals (arXiv 2302.14040) as presets.

HNP permutes hidden neurons only; NP also inputs and outputs, which needs far fewer weights on wide
ends. What the ends mean is then lost: encode their positions first (``Encoding(position=True)``).
"""

from __future__ import annotations

from functools import lru_cache

from metanet.graph import WeightBatch
from metanet.nn.unf import UNFLinear, check_input
from metanet.symmetry import Axis, Fixed, Group, Occ, TensorSpec, WeightSpace


@lru_cache(maxsize=64)
def free_ends(space: WeightSpace) -> WeightSpace:
    """The space in which plain fixed input and output axes are permuted too.

    A fixed first or second axis becomes a group; first axes of one size in tensors of one module
    (``head.weight``, ``head.bias``) share theirs. Further axes (the taps of kernels) stay fixed,
    and so do products and sums with fixed factors.
    """
    known = {group.label for group in space.normal_groups}
    groups: dict[tuple[str, int, int], Group] = {}
    tensors = {}
    for name, spec in space.tensors.items():
        axes: list[Axis] = []
        for place, axis in enumerate(spec.axes):
            if place > 1 or not isinstance(axis, Fixed) or axis.size == 1:
                axes.append(axis)
                continue
            key = (name.rpartition(".")[0] if place == 0 else name, place, axis.size)
            if key not in groups:
                groups[key] = Group(_label(known), axis.size)
            axes.append(Occ(groups[key].label, ()))
        tensors[name] = TensorSpec(spec.shape, tuple(axes))
    return WeightSpace([*space.normal_groups, *groups.values()], tensors)


def _label(known: set[str]) -> str:
    """A label that is not taken yet."""
    label = next(f"end{i}" for i in range(len(known) + 1) if f"end{i}" not in known)
    known.add(label)
    return label


class HNPLinear(UNFLinear):
    """Hidden neurons permuted, every fixed axis folded (arXiv 2302.14040, HNP).

    Blocks ``[N, *factors, c_in]`` → ``[N, *factors, c_out]``. The basis is that of ``DWSLinear``:
    the published one holds redundant terms (98 for [2, 32, 32, 1], whose maps span 75 dimensions).

    Args:
        space: input and output are batches of this space.
        c_in: channels in.
        c_out: channels out.
        bias: see ``UNFLinear``.
    """

    def __init__(self, space: WeightSpace, c_in: int, c_out: int, bias: bool = True) -> None:
        super().__init__(space, c_in, c_out, frozen="fold", bias=bias)


class NPLinear(UNFLinear):
    """Inputs and outputs permuted as hidden neurons are (arXiv 2302.14040, NP): ``free_ends``.

    Blocks ``[N, *factors, c_in]`` → ``[N, *factors, c_out]``. 4L² + 10L − 4 terms for a
    feed-forward net of L layers.

    Args:
        space: input and output are batches of this space.
        c_in: channels in.
        c_out: channels out.
        bias: see ``UNFLinear``.

    Attributes:
        inner: the space with free ends; the layer commutes with all its permutations.
    """

    def __init__(self, space: WeightSpace, c_in: int, c_out: int, bias: bool = True) -> None:
        super().__init__(free_ends(space), c_in, c_out, bias=bias)
        self.inner, self.space, self.complete = self.space, space, False

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → ``[N, *factors, c_out]`` in every block."""
        check_input(self.space, self.c_in, batch)
        return batch.with_blocks(self._mixed(batch.blocks))
