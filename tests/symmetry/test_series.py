"""Networks whose layers follow each other, recognised by names and shapes; judged by running."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import models
import pytest
import torch
from symmetry_tools import signatures
from torch import Tensor, nn

from metanet.symmetry import resolve

Shapes = dict[str, tuple[int, ...]]


class Named(nn.Module):
    """Layers by name, called in the order given, with a function after each but the last."""

    def __init__(self, after: Callable[[Tensor], Tensor] = torch.tanh, **layers: nn.Module) -> None:
        super().__init__()
        self.after, self.order = after, list(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = x.flatten(1) if isinstance(self._modules[name], nn.Linear) else x
            x = self._modules[name](x)  # type: ignore[misc]
            x = x if name == self.order[-1] else self.after(x)
        return x


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(),
                                   nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.actor(x), self.critic(x)], 1)


class Policy(nn.Module):
    """stable-baselines3 with state-dependent exploration: features times log_std count too."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp_extractor = nn.ModuleDict({
            "policy_net": nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()),
            "value_net": nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())})
        self.action_net, self.value_net = nn.Linear(8, 3), nn.Linear(8, 1)
        self.log_std = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        features = self.mlp_extractor["policy_net"](x)
        noise = features.square() @ self.log_std.exp()
        value = self.value_net(self.mlp_extractor["value_net"](x))
        return torch.cat([self.action_net(features), noise, value], 1)


def mnist() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3),
                         nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(6 * 4),
                         nn.Linear(6 * 4, 7), nn.PReLU(7), nn.Linear(7, 3))


IMAGE, ROW = (2, 1, 8, 8), (3, 5)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, list[int]]] = {
    "sequential": (mnist, IMAGE, "pattern", [4, 6, 7]),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                                  nn.Linear(8, 2)), ROW, "pattern", [8, 8]),
    "layer norms": (lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(),
                                          nn.Linear(8, 2)), ROW, "pattern", [8]),
    "fc": (lambda: Named(fc1=nn.Linear(5, 8), fc2=nn.Linear(8, 8), fc3=nn.Linear(8, 2)), ROW,
           "pattern", [8, 8]),
    # conv2's places are flattened in an order that names and shapes do not tell
    "conv and fc": (lambda: Named(conv1=nn.Conv2d(1, 4, 3), conv2=nn.Conv2d(4, 6, 3),
                                  fc1=nn.Linear(6 * 16, 7), fc2=nn.Linear(7, 3)), IMAGE,
                    "pattern", [4, 7]),
    "words": (lambda: Named(stem=nn.Conv2d(1, 4, 3), body=nn.Conv2d(4, 6, 3),
                            hidden=nn.Linear(6 * 16, 7), head=nn.Linear(7, 3)), IMAGE,
              "chain", [4, 7]),
    "words with a norm": (lambda: Named(stem=nn.Conv2d(1, 4, 3), norm=nn.BatchNorm2d(4),
                                        body=nn.Conv2d(4, 6, 3), head=nn.Linear(6 * 16, 3)), IMAGE,
                          "chain", [4]),
    "actor and critic": (ActorCritic, ROW, "pattern", [8, 8, 8]),
    "stable-baselines3": (Policy, ROW, "pattern", [8, 8, 8, 8]),
}


@pytest.mark.parametrize("name", NETS)
def test_what_is_claimed_holds(name: str) -> None:
    make, shape, route, sizes = NETS[name]
    module = make().double().eval()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    found = resolve(state)
    assert found.space is not None and found.route == route, found.note
    assert found.space.status == "inferred" and "nobody ran it" in found.note
    assert found.module is None and found.verification is None
    assert signatures(found.space) == sorted(models.s(*sizes))
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        before, changed = module(x), 0
        for seed in range(3):
            moved = found.space.random(seed).apply(state)
            changed += any(not torch.equal(moved[k], state[k]) for k in state)
            module.load_state_dict(moved)
            assert (module(x) - before).abs().max() <= 1e-11 * before.abs().max()
    assert changed > 1


def dense(*chain: tuple[str, int, int]) -> Shapes:
    return {f"{name}.weight": (outs, ins) for name, ins, outs in chain}


REFUSED: dict[str, tuple[Shapes, str]] = {
    # gate, up and down of a gated unit chain in the order of their numbers, which is not theirs
    "gated unit": (dense(("w1", 8, 24), ("w2", 24, 8), ("w3", 8, 24)), "cannot be chained"),
    "square": (dense(("layers.0", 8, 8), ("layers.1", 8, 8)), "side by side"),
    "attention": (dense(("q", 8, 8), ("k", 8, 8), ("v", 8, 8), ("o", 8, 8)), "cannot be chained"),
    "generator and discriminator": (dense(
        ("g.a", 5, 7), ("g.b", 7, 30), ("d.a", 30, 7), ("d.b", 7, 1)), "more than one"),
    "residual": (dense(("stem", 5, 8), ("mid", 8, 9), ("back", 9, 8), ("head", 8, 2)),
                 "more than one layer may follow"),
    "equal widths": ({"stem.weight": (8, 3, 3, 3), "head.weight": (8, 128)},
                     "two widths are equal"),
    "variational": (dense(("fc1", 30, 12), ("fc21", 12, 4), ("fc22", 12, 4), ("fc3", 4, 12),
                          ("fc4", 12, 30)), "cannot read"),
    "depthwise": ({"0.weight": (16, 1, 3, 3), "3.weight": (32, 16, 1, 1)}, "in groups"),
    "transposed": ({"0.weight": (8, 3, 3, 3), "2.weight": (8, 8, 4, 4), "4.weight": (3, 8, 3, 3)},
                   "transposed"),
    "group norm": ({"conv1.weight": (8, 3, 3, 3), "norm.weight": (8,), "norm.bias": (8,),
                    "conv2.weight": (5, 8, 3, 3)}, "in groups"),
    "a norm for two": ({**dense(("fc1", 5, 8), ("fc2", 8, 8), ("fc3", 8, 2)), "norm.weight": (8,)},
                       "may follow 2 of its layers"),
    "recurrent": ({**dense(("fc1", 5, 8), ("fc2", 8, 2)), "rnn.weight_ih_l0": (8, 5)},
                  "no part of"),
    "one layer": (dense(("fc1", 5, 8)), "it has 1 layers"),
    "nothing": ({"scale": (3,)}, "no part of"),
    "in parallel": (dense(("lin0.model.1", 64, 1), ("lin1.model.1", 32, 1)), "joined in any way"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(name: str) -> None:
    shapes, message = REFUSED[name]
    found = resolve({k: torch.zeros(shape) for k, shape in shapes.items()})
    assert (found.space, found.route, found.arch) == (None, None, None)
    assert message in found.note


def test_what_stands_between_two_containers_stays_fixed() -> None:
    """Widths all differ, but the 30 between generator and discriminator is an image."""
    shapes = dense(("g.a", 5, 7), ("g.b", 7, 30), ("d.a", 30, 9), ("d.b", 9, 1))
    found = resolve({k: torch.zeros(shape) for k, shape in shapes.items()})
    assert found.space is not None and found.route == "chain"
    assert signatures(found.space) == models.s(7, 9)
    assert "others may read it" in found.space.explain("d.a.weight", 1)


def test_equal_widths_are_warned_of() -> None:
    for width, warned in ((8, True), (9, False)):
        shapes = dense(("fc1", 5, 8), ("fc2", 8, width), ("fc3", width, 2))
        note = resolve({k: torch.zeros(shape) for k, shape in shapes.items()}).note
        assert ("nothing may be added" in note) == warned


def test_no_library_is_imported_for_it() -> None:
    code = ("import sys, torch, metanet\n"
            "s = {'0.weight': torch.zeros(4, 3), '2.weight': torch.zeros(2, 4)}\n"
            "assert metanet.symmetry.resolve(s).route == 'pattern'\n"
            "assert not {'transformers', 'timm', 'torchvision'} & {*sys.modules}")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tied_tensors_are_no_row() -> None:
    weight = torch.randn(4, 4)
    found = resolve({"fc1.weight": weight, "fc2.weight": weight, "fc3.weight": torch.randn(2, 4)})
    assert found.space is None and "fc2.weight" in found.note


def test_names_that_deceive() -> None:
    shapes = {"a\x1b[2J.weight": (3, 3), "]" * 500 + ".weight": (3, 3)}
    note = resolve({k: torch.zeros(shape) for k, shape in shapes.items()}).note
    assert "\x1b" not in note and len(note) < 2000
