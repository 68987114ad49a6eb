"""The compiled step: its kernels are the rule, its state is that of the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metanet.errors import MetanetError
from metanet.tasks.optimize import LearnedOptimizer, Net, fresh, fused


class Odd(nn.Module):
    """A convolution, vectors, a single number, and a parameter without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.head, self.scale = nn.Linear(5, 3), nn.Parameter(torch.tensor(1.5))
        self.idle = nn.Parameter(torch.ones(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.scale * self.head(self.norm(self.conv(x)).mean((2, 3))))


def rule() -> Net:
    plain = fresh()
    generator = torch.Generator().manual_seed(3)
    return plain.with_theta(plain.theta + 0.3 * torch.randn(len(plain.theta),
                                                            generator=generator))


def trained(compiled: bool, dtype: torch.dtype = torch.float32, switch: bool = False
            ) -> tuple[nn.Module, LearnedOptimizer]:
    """Eight steps; ``switch``: after four of them the state goes on in the other form."""
    torch.manual_seed(0)
    model = Odd().to(dtype)
    model.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = LearnedOptimizer(model, rule(), weight_decay=0.1, compiled=compiled)
    for i in range(8):
        if switch and i == 4:
            state = optimizer.state_dict()
            optimizer = LearnedOptimizer(model, rule(), weight_decay=0.1, compiled=not compiled)
            optimizer.load_state_dict(state)
        x = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(i)).to(dtype)
        optimizer.zero_grad()
        (model(x) - x[:, 0, 0, :3]).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("switch", [False, True])
def test_kernels_are_the_rule(switch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_compiled", lambda function: function)
    (a, _), (b, one) = trained(False), trained(True, switch=switch)
    start = Odd()
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=2e-4, msg=name)
    assert float(one.state[b.get_parameter("conv.weight")]["step"]) == 8
    assert float(one.state[b.get_parameter("idle")]["step"]) == 0
    assert torch.equal(b.get_parameter("idle"), start.idle)
    assert float(b.get_parameter("scale").detach()) != 1.5


def test_narrow_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_compiled", lambda function: function)
    (a, _), (b, _) = (trained(c, torch.bfloat16) for c in (False, True))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-2, rtol=1e-2)


def test_only_nets_of_entries() -> None:
    model = nn.Linear(3, 2)
    optimizer = LearnedOptimizer(model.named_parameters(), fresh(), compiled=True)
    assert optimizer.compiled
    with pytest.warns(UserWarning, match="structure-free"):
        other = LearnedOptimizer(model.parameters(), fresh("context"), compiled=True)
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(MetanetError, match="kind 'element'"):
        other.step()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled_for_real() -> None:
    (a, _), (b, _) = trained(False), trained(True)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=2e-4)
