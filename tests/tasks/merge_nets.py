"""Small networks for the tests of merging."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16, bias), nn.ReLU(), nn.Linear(16, 12, bias), nn.ReLU(),
                         nn.Linear(12, 4, bias))


class Residual(nn.Module):
    """A convolutional stream with batch norm, two writers beside the first."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.outer = nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 1.5)
            self.norm.weight.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Two heads over a fixed input: q and k of a head share a digit, v and out another."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.q, self.k, self.v = (nn.Linear(6, 2 * 5) for _ in range(3))
        self.out = nn.Linear(2 * 5, 7)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, 2, 5).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, 10))


def inputs(count: int = 64, seed: int = 5) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
