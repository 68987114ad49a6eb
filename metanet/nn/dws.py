"""DWSLinear: the layer of deep weight spaces as a preset of the complete basis."""

from __future__ import annotations

from metanet.nn.unf import UNFLinear
from metanet.symmetry import WeightSpace


class DWSLinear(UNFLinear):
    """Every fixed axis folded into channels, so that only hidden neurons are permuted
    (arXiv 2301.12780); on a feed-forward net the terms are those of the published layer, for
    several outputs a few more.

    Blocks ``[N, *factors, c_in]`` → ``[N, *factors, c_out]``.

    Args:
        space: input and output are batches of this space.
        c_in: channels in.
        c_out: channels out.
        reduce: ``mean``, or ``max`` over the classes that a term drops (then not linear).
        bias: see ``UNFLinear``.

    Attributes:
        dimension: weights per pair of channels, folded fixed indices included (75 for the SIREN
            [2, 32, 32, 1]).
    """

    def __init__(self, space: WeightSpace, c_in: int, c_out: int, reduce: str = "mean",
                 bias: bool = True) -> None:
        super().__init__(space, c_in, c_out, frozen="fold", bias=bias, reduce=reduce)

    @property
    def dimension(self) -> int:
        """Weights per pair of channels."""
        numbers: int = sum(weight.numel() for weight in self.weights)
        return numbers // (self.c_in * self.c_out)

    def __repr__(self) -> str:
        return f"DWSLinear(dimension {self.dimension}, {self.reduce}, {self.extra_repr()})"
