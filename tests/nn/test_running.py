"""How layers run: precisions, autocast, several channels, determinism, checkpoints, compilers."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import models
import pytest
import torch
from hand_spaces import SPACES, random_state
from layer_list import LAYERS
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import InvariantPool, Pointwise, Stack, UNFLinear
from metanet.nn.checks import random_batch, randomised
from metanet.symmetry import infer

ROOT = Path(__file__).resolve().parents[2]
SPACE = SPACES["attention"]


def values(output: WeightBatch | Tensor) -> list[Tensor]:
    return list(output.blocks.values()) if isinstance(output, WeightBatch) else [output]


def step(layer: nn.Module, batch: WeightBatch) -> list[Tensor]:
    """Outputs, and gradients of inputs and parameters."""
    leaf = batch.map(lambda block: block.detach().clone().requires_grad_())
    found = values(layer(leaf))
    wanted = [*leaf.blocks.values(), *layer.parameters()]
    total = torch.stack([value.float().square().sum() for value in found]).sum()
    return [*found, *torch.autograd.grad(total, wanted, allow_unused=True,
                                         materialize_grads=True)]


def worst(want: list[Tensor], got: list[Tensor]) -> float:
    """Largest relative error over tensors."""
    return max(float((a.double() - b.double().cpu()).norm() / (1 + a.double().norm()))
               for a, b in zip((t.detach().cpu() for t in want), (t.detach() for t in got),
                               strict=True))


def made(name: str, space: str = "attention") -> tuple[nn.Module, WeightBatch]:
    layer = randomised(LAYERS[name](SPACES[space]), 1)
    return layer, random_batch(layer.space, layer.c_in)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_is_close_to_float64(name: str) -> None:
    layer, batch = made(name)
    want = step(layer, batch)
    got = step(layer.float(), batch.to(torch.float32))
    assert got[0].dtype == torch.float32
    assert worst(want, got) < 1e-4


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_by_autocast(name: str) -> None:
    layer, batch = made(name)
    want = step(layer, batch)
    layer, batch = layer.float(), batch.to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = step(layer, batch)
    assert all(torch.isfinite(value).all() for value in got)
    assert worst(want[:1], got[:1]) < 0.05
    assert worst(want, got) < 0.3  # of sums of squares, through bfloat16 both ways
    if name.startswith(("unf", "dws")):
        assert got[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_throughout(name: str) -> None:
    layer, batch = made(name)
    want = values(layer(batch))
    got = values(layer.bfloat16()(batch.to(torch.bfloat16)))
    assert got[0].dtype == torch.bfloat16 and worst(want, got) < 0.1


@pytest.mark.parametrize("name", LAYERS)
def test_deterministic(name: str) -> None:
    layer, batch = made(name)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = step(layer, batch), step(layer, batch)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [name for name, make in LAYERS.items()
                                  if make(SPACES["mlp"]).space == SPACES["mlp"]])
def test_weights_gradients_and_momenta_as_channels(name: str) -> None:
    """State dicts stacked as channels; acting on all of them is acting on the output."""
    space = SPACES["mlp"]
    layer = randomised(LAYERS[name](space), 2)
    members = [[random_state(space, 10 * i + j, torch.float64) for j in range(layer.c_in)]
               for i in range(2)]
    batch = WeightBatch.stack(space, [m if len(m) > 1 else m[0] for m in members])
    assert batch.channels == layer.c_in
    element = space.random(seed=3)
    moved = WeightBatch.stack(space, [[element.apply(state) for state in m] for m in members])
    want = layer(batch)
    got = layer(moved)
    if isinstance(want, WeightBatch) and want.space == space:
        want = want.apply(element)
    elif isinstance(want, WeightBatch):
        return  # into the latent space: assert_equivariant carries the element there
    assert worst(values(want), values(got)) < 1e-12
    changed = [[m[0], *(random_state(space, 99, torch.float64) for _ in m[1:])] for m in members]
    if layer.c_in > 1:
        other = layer(WeightBatch.stack(space, changed))
        assert worst(values(layer(batch)), values(other)) > 1e-3


def test_a_real_optimizer_state_goes_through() -> None:
    module = models.make("lenet").double()
    space = infer(module.float(), models.MODELS["lenet"].example_inputs)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(models.MODELS["lenet"].example_inputs[0]).square().sum().backward()
    optimiser.step()
    named = dict(module.named_parameters())
    gradients = {name: p.grad for name, p in named.items()}
    momenta = {name: optimiser.state[p]["momentum_buffer"] for name, p in named.items()}
    batch = WeightBatch.stack(space, [(module.state_dict(), gradients, momenta)])
    out = UNFLinear(space, 3, 1)(batch).unstack()[0]
    assert {name: value.shape for name, value in out.items()} == {
        name: value.shape for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", ["unf", "unf_role", "dws_max", "gmn", "encoding"])
def test_checkpoints_change_nothing(name: str) -> None:
    layer, batch = made(name)
    plain = step(Stack(layer, InvariantPool(*_after(layer))), batch)
    saved = step(Stack(layer, InvariantPool(*_after(layer)), checkpoint=True), batch)
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))


def _after(layer: nn.Module) -> tuple[object, int]:
    return getattr(layer, "space_out", layer.space), layer.c_out


def test_checkpoints_save_memory() -> None:
    """Bytes that autograd keeps, with and without."""
    kept = []
    for checkpoint in (False, True):
        layers = itertools.chain.from_iterable(
            (UNFLinear(SPACE, 4, 4), Pointwise(SPACE, 4)) for _ in range(6))
        net = Stack(*layers, checkpoint=checkpoint)
        saved: dict[int, int] = {}

        def note(t: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = net(random_batch(SPACE, 4, n=64).to(torch.float32))
        kept.append(sum(saved.values()))
        del out
    assert kept[1] < kept[0]


def test_a_stack_says_what_it_takes() -> None:
    with pytest.raises(SymmetryError, match="first layer"):
        Stack()
    with pytest.raises(SymmetryError, match="ReLU"):
        Stack(nn.ReLU())
    net = Stack(UNFLinear(SPACE, 2, 3), checkpoint=True)
    assert net.space == SPACE and net.c_in == 2 and "checkpoint=True" in repr(net)


def compiled_errors(backend: str, names: Sequence[str]) -> dict[str, float]:
    """``fullgraph`` refuses any break; outputs and gradients against those of the eager layer."""
    done = subprocess.run([sys.executable, "tests/compile_run.py", backend, *names], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == list(names)
    return found


def test_compile_as_one_graph() -> None:
    errors = compiled_errors("aot_eager", ["unf", "dws", "gmn", "pool", "encoding"])
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.slow
def test_every_layer_compiles_as_one_graph() -> None:
    errors = compiled_errors("aot_eager", list(LAYERS))
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    errors = compiled_errors("inductor", ["unf", "dws_max", "gmn"])
    assert max(errors.values()) < 1e-10, errors


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_cuda_equals_cpu(name: str, dtype: torch.dtype, gpu: torch.device) -> None:
    layer, batch = made(name)
    want = step(layer, batch)
    bound = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 0.3}[dtype]
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    layer, batch = layer.to(gpu, exact), batch.to(gpu, exact)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        got = step(layer, batch)
    assert got[0].is_cuda and worst(want, got) < bound
