"""Example inputs guessed for live modules."""

from __future__ import annotations

import logging

import pytest
import torch
from models import MODELS, make
from torch import Tensor, nn

from metanet.errors import TraceError
from metanet.trace.inputs import batch_of, ids, synthesise


@pytest.mark.parametrize("name", MODELS)
def test_golden_models_accept_what_is_guessed(name: str) -> None:
    module = make(name)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    first, second = synthesise(module), synthesise(module)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.isfinite(module(*first)).all()
    sizes = first[0].shape
    assert name == "lenet" or (min(sizes) >= 2 and len(set(sizes)) == len(sizes))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self.a(x) * self.a(y) * scale


class Caches(nn.Module):
    """Keeps a tensor between calls, as attention biases do."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        bias = self.cache.setdefault("bias", self.a.bias * 2)
        return self.a(x) + bias


class LateInput(nn.Module):
    """The layer registered first is not the one that meets the input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)
        self.conv = nn.Conv2d(2, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(("module", "shapes"), [
    (nn.Linear(2, 3), [(3, 2)]),
    (nn.Conv1d(3, 4, 5), [(2, 3, 16)]),
    (nn.Conv3d(2, 4, 3), [(3, 2, 8, 12, 10)]),
    (nn.ConvTranspose2d(3, 4, 5), [(2, 3, 16, 24)]),
    (nn.Embedding(9, 4), [(2, 5)]),
    (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), [(2, 6)]),
    (nn.LSTM(5, 4), [(7, 2, 5)]),
    (nn.GRUCell(5, 4), [(2, 5)]),
    (nn.MultiheadAttention(8, 2, batch_first=True), [(2, 5, 8)] * 3),
    (nn.Transformer(8, 2, 1, 1, 16, batch_first=True), [(2, 5, 8)] * 2),
    (nn.Bilinear(3, 4, 2), [(5, 3), (5, 4)]),
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 5)), [(2, 784)]),
    (nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 29 * 29, 5)), [(2, 1, 33, 33)]),
    (Two(), [(2, 6), (2, 6)]),
    (LateInput(), [(3, 2, 16, 24)]),
])
def test_shapes(module: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    inputs = synthesise(module.eval())
    assert [tuple(x.shape) for x in inputs] == shapes
    module(*inputs)


def test_dtype_follows_the_parameters() -> None:
    assert synthesise(nn.Linear(3, 4).double())[0].dtype == torch.float64
    assert synthesise(nn.Linear(3, 4, device="meta"))[0].device.type == "cpu"


def test_the_module_keeps_nothing_of_the_probe() -> None:
    module = Caches().eval()
    inputs = synthesise(module)
    assert module.cache == {}
    assert torch.isfinite(module(*inputs)).all()


def test_random_state_and_log_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Sequential(make("lenet"), nn.Dropout()).train()
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.ERROR):
        synthesise(module)
    assert torch.equal(before, torch.random.get_rng_state()) and not caplog.records


def test_hopeless_modules_ask_for_inputs() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, 4))

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return x["image"] @ self.w

    with pytest.raises(TraceError, match="pass example_inputs"):
        synthesise(Odd())
    with pytest.raises(TraceError, match="nothing to try"):
        synthesise(nn.ReLU())


def test_values() -> None:
    assert batch_of(2, 3).shape == (5, 2, 3)
    assert ids(7, 2, 5).max() < 7 and torch.equal(ids(7, 2, 5), ids(7, 2, 5))
