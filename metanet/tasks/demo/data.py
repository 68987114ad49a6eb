"""scikit-learn's digits in three disjoint parts: to train nets, to label few, to test them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_TEST = 797
N_LABELLED = 100


@dataclass(frozen=True)
class Images:
    """Images in [0, 1] and their classes 0 … 9."""

    x: Float[Tensor, "n 1 8 8"]
    y: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Digits:
    """1797 images of 8x8 pixels (E. Alpaydin, UCI), split without overlap.

    ``train`` (900) is all that any net is trained on, ``labelled`` (100) belongs to the reference
    that may look at data, ``test`` (797) defines the accuracies.
    """

    train: Images
    labelled: Images
    test: Images


def load_digits(seed: int = 0) -> Digits:
    """The digits that ship with scikit-learn, shuffled with ``seed``."""
    from sklearn import datasets

    raw = datasets.load_digits()
    x = torch.from_numpy(raw.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    parts = order.split([len(y) - N_TEST - N_LABELLED, N_LABELLED, N_TEST])
    return Digits(*(Images(x[part], y[part]) for part in parts))
