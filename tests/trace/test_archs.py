"""Architectures by name: registry, solving names and widths, errors, ties, user files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import make
from torch import Tensor, nn

from metanet.errors import SpaceMismatch, TraceError
from metanet.trace.archs import architecture, build, load, names
from metanet.trace.archs.registry import _REGISTRY

MLP = {"net.0.weight": (16, 8), "net.0.bias": (16,), "net.2.weight": (24, 16),
       "net.2.bias": (24,), "net.10.weight": (10, 24)}


def lenet_state(prefixes: list[str], side: int = 4) -> dict[str, Tensor]:
    shapes = [(6, 1, 5, 5), (16, 6, 5, 5), (120, 16 * side * side), (84, 120), (10, 84)]
    state = {}
    for prefix, shape in zip(prefixes, shapes, strict=True):
        state[f"{prefix}.weight"] = torch.randn(shape) / 10
        state[f"{prefix}.bias"] = torch.randn(shape[0])
    return state


def resnet_state(width: int, blocks: int, option: str, **changes: Tensor) -> dict[str, Tensor]:
    """State of a CIFAR ResNet, named as in the files, without step counters."""
    state = {"conv1.weight": torch.randn(width, 3, 3, 3) / 5, **norm("bn1", width)}
    ins = width
    for s, outs in enumerate((width, 2 * width, 4 * width), 1):
        for b in range(blocks):
            path = f"layer{s}.{b}"
            state[f"{path}.conv1.weight"] = torch.randn(outs, ins, 3, 3) / 10
            state[f"{path}.conv2.weight"] = torch.randn(outs, outs, 3, 3) / 10
            state |= norm(f"{path}.bn1", outs) | norm(f"{path}.bn2", outs)
            if ins != outs and option == "B":
                state[f"{path}.shortcut.0.weight"] = torch.randn(outs, ins, 1, 1)
                state |= norm(f"{path}.shortcut.1", outs)
            ins = outs
    state |= {"linear.weight": torch.randn(10, ins), "linear.bias": torch.randn(10)}
    return state | changes


def norm(path: str, size: int) -> dict[str, Tensor]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{path}.{leaf}": 1 + torch.rand(size) for leaf in leaves}


def test_names_are_listed_and_unknown_ones_get_a_hint() -> None:
    assert {"mlp:[ACTIVATION]", "timm:NAME", "hf:[FOLDER]", "file.py:factory"} <= set(names())
    with pytest.raises(TraceError, match=r"did you mean 'resnet20-cifar'.*mnist-lenet45k"):
        build("resnet20_cifar", MLP)


@pytest.mark.parametrize(("arch", "message"), [
    ("mnist-cnn21k:7", "takes no argument"), ("timm", "timm:NAME"), ("mlp:rlu", "unknown activ"),
    ("siren:zero", "finite number"), ("siren:0", "finite number"), ("lenet:big", "whole number"),
])
def test_bad_arguments(arch: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        build(arch, MLP)


def test_a_file_is_needed() -> None:
    with pytest.raises(TraceError, match="give a checkpoint"):
        build("mlp")
    with pytest.raises(TraceError, match=r"metanet\.open"):
        build("mlp", 7)


def test_decorator_registers_and_refuses_a_taken_name() -> None:
    @architecture("bias-only")
    def bias_only(request: object) -> tuple[nn.Module, tuple[Tensor]]:
        return nn.Linear(2, 3), (torch.zeros(4, 2),)

    try:
        built = build("bias-only", {"weight": (3, 2), "bias": (3,)})
        assert built.arch == "bias-only" and not built.module.training
        with pytest.raises(TraceError, match="taken"):
            architecture("bias-only")(bias_only)
    finally:
        del _REGISTRY["bias-only"]


def test_mlp_has_the_files_names_in_any_order_of_the_file() -> None:
    for shapes in (MLP, dict(reversed(MLP.items()))):
        module = build("mlp", shapes).module
        assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == MLP
        assert all(p.is_meta for p in module.parameters())


@pytest.mark.parametrize(("arch", "function"), [
    ("mlp", F.relu), ("mlp:tanh", torch.tanh), ("siren", lambda x: torch.sin(30 * x)),
    ("siren:2.5", lambda x: torch.sin(2.5 * x)),
])
def test_dense_functions(arch: str, function: object) -> None:
    state = {name: torch.randn(shape) for name, shape in MLP.items()}
    built = build(arch, state)
    (x,) = built.example_inputs
    h = function(F.linear(x, state["net.0.weight"], state["net.0.bias"]))
    h = function(F.linear(h, state["net.2.weight"], state["net.2.bias"]))
    expected = F.linear(h, state["net.10.weight"])
    assert torch.allclose(load(built, state)(x), expected, atol=1e-5)


def test_golden_siren_is_the_same_function() -> None:
    module = make("siren")
    built = build("siren", module.state_dict())
    x = torch.rand(50, 2)
    assert torch.equal(load(built, module.state_dict())(x), module(x))


def test_named_layers_are_chained_by_words_and_shapes() -> None:
    shapes = {"output.weight": (4, 9), "hidden1.weight": (9, 9), "hidden0.weight": (9, 9),
              "input.weight": (9, 5)}
    module = build("mlp", shapes).module
    assert module._prefixes_ == ["input", "hidden0", "hidden1", "output"]


def test_square_layers_without_order_are_refused() -> None:
    with pytest.raises(TraceError, match="more than one order"):
        build("mlp", {"a.weight": (9, 9), "b.weight": (9, 9)})
    with pytest.raises(TraceError, match="no order"):
        build("mlp", {"a.weight": (9, 8), "b.weight": (7, 6)})


def test_broken_chain_says_which_tensor() -> None:
    shapes = {**MLP, "net.2.weight": (24, 17)}
    with pytest.raises(SpaceMismatch, match=r"net\.2\.weight.*\(24, 16\).*found \(24, 17\)"):
        build("mlp", shapes)
    with pytest.raises(SpaceMismatch, match=r"net\.0\.bias.*\(16,\).*\(15,\)"):
        build("mlp", {**MLP, "net.0.bias": (15,)})
    with pytest.raises(TraceError, match=r"'bn\.weight' of shape \(16,\) is not part"):
        build("mlp", {**MLP, "bn.weight": (16,)})


@pytest.mark.parametrize("name", [
    "forward.weight", "a..weight", ".".join("x" * 99) + ".weight", "_modules.weight",
])
def test_names_that_cannot_be_modules(name: str) -> None:
    with pytest.raises(TraceError, match="name"):
        build("mlp", {name: (4, 3)})


def test_absurd_sizes() -> None:
    with pytest.raises(TraceError, match="sizes of this file"):
        build("mlp", {"a.0.weight": (3, 10**15)})
    with pytest.raises(TraceError, match="size 0"):
        build("mlp", {"a.0.weight": (0, 3)})
    assert build("mlp", {"a.0.weight": (10**12, 3)}).example_inputs[0].shape == (2, 3)


def test_terminal_escapes_in_names_are_escaped() -> None:
    with pytest.raises(TraceError) as caught:
        build("mlp", {"\x1b[2Jevil": (4, 3)})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("prefixes", [
    ["conv1", "conv2", "fc1", "fc2", "fc3"], [f"{i}" for i in (0, 3, 7, 9, 11)],
    ["features.0", "features.3", "classifier.0", "classifier.2", "classifier.4"],
])
def test_lenet_under_any_names(prefixes: list[str]) -> None:
    state = lenet_state(prefixes)
    built = build("lenet", state)
    (x,) = built.example_inputs
    assert x.shape == (2, 1, 28, 28)
    golden = make("lenet")
    golden.load_state_dict(dict(zip(golden.state_dict(), lenet_state_in_order(state, prefixes),
                                    strict=True)))
    assert torch.equal(load(built, state)(x), golden(x))


def lenet_state_in_order(state: dict[str, Tensor], prefixes: list[str]) -> list[Tensor]:
    return [state[f"{p}.{leaf}"] for p in prefixes for leaf in ("weight", "bias")]


@pytest.mark.parametrize(("arch", "side", "image"), [
    ("lenet", 4, 28), ("lenet", 5, 32), ("lenet", 7, 28), ("lenet:32", 8, 32), ("lenet", 53, 224),
])
def test_lenet_input_side_from_the_flatten(arch: str, side: int, image: int) -> None:
    state = lenet_state(["conv1", "conv2", "fc1", "fc2", "fc3"], side)
    built = build(arch, state)
    assert built.example_inputs[0].shape[2:] == (image, image)
    assert load(built, state)(*built.example_inputs).shape == (2, 10)


def test_lenet_that_does_not_fit() -> None:
    state = lenet_state(["conv1", "conv2", "fc1", "fc2", "fc3"])
    with pytest.raises(SpaceMismatch, match=r"fc1\.weight.*16 channels times a square"):
        build("lenet", {**state, "fc1.weight": torch.zeros(120, 16 * 15)})
    with pytest.raises(TraceError, match="2 convolutions and 2 Linear layers, found 2 and 3"):
        build("mnist-cnn21k", state)
    with pytest.raises(SpaceMismatch, match="side 40"):
        build("lenet:40", state)
    small = {**state, "conv1.weight": torch.zeros(6, 1, 3, 3),
             "conv2.weight": torch.zeros(16, 6, 3, 3), "fc1.weight": torch.zeros(120, 16 * 25)}
    with pytest.raises(SpaceMismatch, match=r"conv1\.weight.*5x5"):
        build("mnist-lenet45k", small)


@pytest.mark.parametrize(("name", "blocks", "option"), [
    ("resnet20-cifar", 3, "A"), ("resnet32-cifar", 5, "A"), ("resnet44-cifar", 7, "A"),
    ("resnet56-cifar", 9, "A"), ("resnet20-cifar-b", 3, "B"),
])
def test_resnets_of_any_width(name: str, blocks: int, option: str) -> None:
    state = resnet_state(4, blocks, option)
    built = build(name, state)
    assert set(built.module.state_dict()) == set(state)
    assert all(not b.is_meta for b in built.module.buffers())
    assert load(built, state)(*built.example_inputs).shape == (2, 10)


@pytest.mark.parametrize("option", ["A", "B"])
def test_resnet_is_the_golden_function(option: str) -> None:
    golden = make(f"resnet20{option.lower()}")
    state = {rename(k): v for k, v in golden.state_dict().items()}
    built = build("resnet20-cifar" + ("-b" if option == "B" else ""), state)
    x = torch.randn(2, 3, 32, 32)
    assert set(built.module.state_dict()) == set(state)  # step counters are there, as in the file
    assert torch.equal(load(built, state)(x), golden(x))


def rename(name: str) -> str:
    head, _, rest = name.partition(".")
    if head != "layers":
        return name
    number, _, rest = rest.partition(".")
    return f"layer{int(number) // 3 + 1}.{int(number) % 3}.{rest}"


def test_resnet_mismatches() -> None:
    state = resnet_state(4, 5, "A")
    with pytest.raises(SpaceMismatch, match=r"expected 3 blocks.*found 5.*resnet32-cifar"):
        build("resnet20-cifar", state)
    with pytest.raises(TraceError, match="--arch resnet20-cifar-b"):
        build("resnet20-cifar", resnet_state(4, 3, "B"))
    with pytest.raises(TraceError, match=r"--arch resnet20-cifar$"):
        build("resnet20-cifar-b", resnet_state(4, 3, "A", **{
            "layer2.0.conv1.weight": torch.zeros(8, 4, 3, 3)}))
    state = resnet_state(4, 3, "A")
    with pytest.raises(SpaceMismatch, match=r"bn2\.running_var.*expected shape \(4,\), found \(5,"):
        build("resnet20-cifar", {**state, "layer1.1.bn2.running_var": torch.ones(5)})
    with pytest.raises(SpaceMismatch, match=r"'ema' of shape \(3,\) is not part"):
        build("resnet20-cifar", {**state, "ema": torch.zeros(3)})
    del state["layer3.2.bn1.bias"]
    with pytest.raises(SpaceMismatch, match=r"layer3\.2\.bn1\.bias.*expected and absent"):
        build("resnet20-cifar", state)


def test_pruned_block_loads() -> None:
    state = resnet_state(4, 3, "A", **{
        "layer1.1.conv1.weight": torch.randn(3, 4, 3, 3),
        "layer1.1.conv2.weight": torch.randn(4, 3, 3, 3)}) | norm("layer1.1.bn1", 3)
    assert load(build("resnet20-cifar", state), state)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_loaded_modules_export() -> None:
    for arch, state in (("mlp", {k: torch.randn(s) for k, s in MLP.items()}),
                        ("lenet", lenet_state(["conv1", "conv2", "fc1", "fc2", "fc3"])),
                        ("resnet20-cifar-b", resnet_state(4, 3, "B"))):
        built = build(arch, state)
        module = load(built, state)
        program = torch.export.export(module, built.example_inputs)
        assert set(program.state_dict) == set(state)
        x = built.example_inputs[0]
        assert torch.allclose(program.module()(x), module(x), atol=1e-6)


FACTORY = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 4)
        self.out = nn.Linear(4, 11, bias=False)
        self.out.weight = self.emb.weight
    def forward(self, ids):
        return self.out(self.emb(ids))

def factory():
    return Tied()

def with_inputs():
    return Tied(), (torch.tensor([[1, 2, 3], [4, 5, 6]]),)

def broken():
    raise RuntimeError("no")

def number():
    return 3
"""


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    path = tmp_path / "zoo_of_mine.py"
    path.write_text(FACTORY)
    yield str(path)
    sys.modules.pop("_metanet_user_zoo_of_mine", None)


def test_user_factory_and_ties(user_file: str) -> None:
    state = {"emb.weight": torch.randn(11, 4)}  # of two tied names one is enough
    built = build(f"{user_file}:factory", state)
    assert built.example_inputs[0].shape == (2, 5)
    module = load(built, state)
    assert module.out.weight is module.emb.weight
    assert torch.equal(module.emb.weight, state["emb.weight"])
    assert build(f"{user_file}:with_inputs").example_inputs[0].shape == (2, 3)


def test_two_different_copies_of_a_tied_tensor(user_file: str) -> None:
    state = {"emb.weight": torch.zeros(11, 4), "out.weight": torch.ones(11, 4)}
    with pytest.raises(SpaceMismatch, match="two different copies"):
        load(build(f"{user_file}:factory", state), state)


def test_user_file_errors(user_file: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="has no function 'nope'"):
        build(f"{user_file}:nope")
    with pytest.raises(TraceError, match="RuntimeError: no"):
        build(f"{user_file}:broken")
    with pytest.raises(TraceError, match="not int"):
        build(f"{user_file}:number")
    with pytest.raises(TraceError, match="no file"):
        build(f"{tmp_path}/absent.py:factory")
    (tmp_path / "bad.py").write_text("import no_such_module_here")
    with pytest.raises(TraceError, match="no_such_module_here"):
        build(f"{tmp_path}/bad.py:factory")
