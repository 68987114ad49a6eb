"""Folded transformers: the same function, streams and heads that turn, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import run_command
from safetensors.torch import save_file
from torch import Tensor, nn

import metanet
from metanet.errors import MetanetError, SymmetryError
from metanet.symmetry import distance
from metanet.symmetry.verify import relative_change
from metanet.tasks.merge import Folded, Runner, Samples, align, fold, learn
from metanet.tasks.merge.repair import mix
from tests.bench.merge_gpt import GPTS, Size

TINY = Size(width=16, layers=1, context=12, batch=2, steps=1, heads=4)
KINDS = ("gpt2", "llama")
TEXT = torch.randint(0, 128, (6, 9), generator=torch.Generator().manual_seed(0))


def drawn(kind: str, seed: int) -> dict[str, Tensor]:
    """Weights of a size that matters, gains far from 1; tied where the network ties them."""
    torch.manual_seed(seed)
    net = GPTS[kind](TINY)
    with torch.no_grad():
        for name, p in net.named_parameters():
            gain = "ln" in name or name.startswith("norm")
            p.copy_(0.3 * torch.randn_like(p) + (1.0 if gain and "weight" in name else 0.0))
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def wide(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> tuple[str, Folded]:
    return request.param, fold(GPTS[request.param](TINY).eval(), torch.zeros(2, 7).long())


def test_the_function_stays(made: tuple[str, Folded]) -> None:
    kind, folded = made
    state = drawn(kind, 0)
    after = folded.apply(state)
    assert folded.error(state) < 1e-10
    net, bare = GPTS[kind](TINY).eval(), folded.runner.module
    net.load_state_dict(state)
    bare.load_state_dict(after)
    with torch.no_grad():
        assert relative_change(net(TEXT), bare(TEXT)) < 1e-5
    assert all(bool((after[norm.gain] == 1).all()) for norm in folded.norms)
    assert all(after[name].dtype == tensor.dtype for name, tensor in state.items())


def test_what_turns(made: tuple[str, Folded]) -> None:
    kind, folded = made
    kinds = sorted((g.kind, g.size, g.copies) for g in folded.space.groups)
    assert folded.space.status == "verified"
    if kind == "gpt2":  # heads; neurons; values and queries of each head; the stream
        assert kinds == [("O", 4, 4), ("O", 4, 4), ("O1", 16, 1), ("S", 4, 1), ("S", 64, 1)]
        assert not folded.ties
    else:  # two groups of two heads, two pairs of rotary positions each; neurons with signs
        assert kinds == [("O", 4, 2), ("O", 16, 1), ("S", 2, 1), ("S", 2, 2), ("SO", 2, 4),
                         ("signed", 42, 1)]
        assert folded.ties == {"head.weight": "embed.weight"}


def test_folded_models_may_be_turned_and_others_not(made: tuple[str, Folded]) -> None:
    kind, folded = made
    state, g = wide(drawn(kind, 1)), folded.space.random(3)
    once = folded.apply(state)
    twice = g.apply(once)
    before, after = folded.runner.doubled([once, twice], TEXT[:, :7])
    assert relative_change(before, after) < 1e-10
    bare = state | {name: state[owner] for name, owner in folded.ties.items()}
    before, after = folded.runner.doubled([bare, g.apply(bare)], TEXT[:, :7])
    assert relative_change(before, after) > 1e-2


def test_a_planted_rotation_comes_back(made: tuple[str, Folded]) -> None:
    kind, folded = made
    a = folded.apply(drawn(kind, 2))
    b = folded.space.random(5).apply(a)
    found = align(a, b, runner=folded.runner)
    moved = found.apply(b)
    assert found.certificate is not None and found.certificate.ok
    assert max(float((moved[n] - a[n]).abs().max()) for n in a) < 1e-3
    still = Runner(folded.runner.module, example_inputs=folded.runner.example).space
    assert distance(a, b, folded.space).relative < 1e-4
    assert distance(a, b, still).relative > 0.5


def test_activations_see_what_turns(made: tuple[str, Folded]) -> None:
    kind, folded = made
    a = folded.apply(drawn(kind, 2))
    b = folded.space.random(6).apply(a)
    found = align(a, b, runner=folded.runner, method="activations", calib=TEXT)
    stream = next(g.label for g in folded.space.groups if g.size == 16)
    back = (found.element @ folded.space.random(6)).values[stream]
    assert float(abs(back - torch.eye(16).numpy()).max()) < 0.05


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("labels", [True, False])
def test_turns_are_learned(made: tuple[str, Folded], labels: bool) -> None:
    kind, folded = made
    a, b = (folded.apply(drawn(kind, seed)) for seed in (7, 8))
    start = folded.space.identity()
    told = Samples(TEXT[:, :-1], TEXT[:, 1:] if labels else None)
    found = learn(folded.runner, a, b, start, told, steps=25, rows=6, rate=0.03)
    assert sum(found.losses[-5:]) < sum(found.losses[:5])
    state = wide(b)
    before, after = folded.runner.doubled([state, found.element.apply(state)], TEXT[:, :7])
    assert relative_change(before, after) < 1e-10
    assert not found.element.is_identity()


def test_learning_needs_what_turns() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    runner = Runner(net, example_inputs=torch.randn(3, 4))
    state = {k: v.detach() for k, v in net.state_dict().items()}
    with pytest.raises(SymmetryError, match="nothing to learn"):
        learn(runner, state, state, runner.space.identity(), Samples(torch.randn(5, 4)))
    with pytest.raises(MetanetError, match="steps"):
        learn(runner, state, state, runner.space.identity(), Samples(torch.randn(5, 4)), steps=0)


# ---------------------------------------------------------------- refused


class Stream(nn.Module):
    """A small residual network; ``how`` makes it one that cannot be folded."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inside, self.up = nn.Linear(5, 8), nn.Linear(8, 6)
        self.down, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.gain = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        if self.how == "post":
            x = self.norm(x + self.down(torch.relu(self.up(x))))
            return self.out(x + self.down(torch.relu(self.up(self.last(x)))))
        if self.how == "twice":
            x = x + self.down(torch.relu(self.up(self.norm(x) * self.gain)))
            return self.out(self.last(x)) + self.out(self.norm(x))
        if self.how == "output":
            return self.norm(x + self.down(torch.relu(self.up(self.last(x)))))
        if self.how == "activation":  # linear layers and norms, and yet no stream that turns
            x = torch.relu(x) + self.down(torch.relu(self.up(self.norm(torch.relu(x)))))
            return self.out(self.last(x))
        return self.out(torch.relu(self.up(x)) @ self.down.weight.T)


@pytest.mark.parametrize(("how", "told"), [
    ("post", "no pre-norm residual stream"), ("twice", "no linear layer|several times"),
    ("output", "no norm reads"), ("activation", "random rotations change"),
    ("none", "no norm reads")])
def test_other_networks_are_refused(how: str, told: str) -> None:
    with pytest.raises(SymmetryError, match=told):
        fold(Stream(how), torch.randn(4, 5))


def test_a_gain_of_zero_is_refused_where_the_shift_has_nowhere_to_go(
        made: tuple[str, Folded]) -> None:
    kind, folded = made
    state = drawn(kind, 0)
    state["norm.weight"][3] = 0.0
    if kind == "llama":  # without a shift a zero is as good as any
        assert folded.error(state) < 1e-10
        return
    with pytest.raises(SymmetryError, match=r"norm.weight.* cannot be folded"):
        folded.apply(state)
    state["norm.weight"][3] = 1.0
    state["blocks.0.ln1.weight"][3] = 0.0  # its readers have biases
    assert folded.error(state) < 1e-10


# ---------------------------------------------------------------- the command


def test_the_command(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.inside, self.up = nn.Linear(5, 8), nn.Linear(8, 6)\n"
        "        self.down, self.out = nn.Linear(6, 8), nn.Linear(8, 3)\n"
        "        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)\n"
        "    def forward(self, x):\n        x = self.inside(x)\n"
        "        x = x + self.down(torch.relu(self.up(self.norm(x))))\n"
        "        return self.out(self.last(x))\n\ndef net():\n"
        "    return Net(), torch.randn(4, 5)\n", encoding="utf-8")
    files, shapes = [], {"inside": (8, 5), "up": (6, 8), "down": (8, 6), "out": (3, 8)}
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        state = {}
        for name, (rows, columns) in shapes.items():
            state[f"{name}.weight"] = torch.randn(rows, columns, generator=rng)
            state[f"{name}.bias"] = torch.randn(rows, generator=rng)
        for name in ("norm", "last"):
            state[f"{name}.weight"] = 1 + 0.3 * torch.randn(8, generator=rng)
            state[f"{name}.bias"] = torch.randn(8, generator=rng)
        save_file(state, tmp_path / f"{seed}.safetensors")
        made = run_command("fold", str(tmp_path / f"{seed}.safetensors"), "--arch", f"{code}:net",
                           "-o", str(tmp_path / f"folded{seed}.safetensors"),
                           "--save-spec", str(tmp_path / "net.space"), "--json")
        assert made.code == 0, made.err
        assert made.json["norms"] == 2 and made.json["max_error"] < 1e-10
        files.append(str(tmp_path / f"folded{seed}.safetensors"))
    spec, back = str(tmp_path / "net.space"), str(tmp_path / "back.alignment")
    assert run_command("align", *files, "--spec", spec, "-o", back).code == 0
    done = run_command("merge", *files, "--alignment", back, "-o", str(tmp_path / "merged"))
    assert done.code == 0, done.err
    a, b = (metanet.open(file).state_dict() for file in files)
    want = mix(a, metanet.Alignment.load(back).apply(b), 0.5)
    got = metanet.open(tmp_path / "merged").state_dict()
    assert all(torch.allclose(got[name], want[name], atol=1e-6) for name in want)
    assert any(float((got[name] - mix(a, b, 0.5)[name]).abs().max()) > 0.05 for name in want)
