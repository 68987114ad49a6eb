"""verify finds wrong spaces, says what it could not see, and is never satisfied by nothing."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from symmetry_tools import proved, signatures
from torch import Tensor, nn

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.element import table_shape
from metanet.symmetry.infer import infer, infer_program, record
from metanet.symmetry.randomise import fill
from metanet.symmetry.verify import relative_change, verify, verify_program

MLP = """space v1
group a = S(16)
group b = S(24)
0.weight: a 8!
0.bias: a
2.weight: b a
2.bias: b
4.weight: 10! b
4.bias: 10!
"""


@pytest.fixture(scope="module")
def mlp():
    return record(models.make("mlp"), models.MODELS["mlp"].example_inputs)


def test_written_space_of_an_mlp_is_right(mlp) -> None:
    space = WeightSpace.parse(MLP)
    assert space == infer_program(mlp)
    assert verify_program(mlp, space).ok


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.bias: a\n", "0.bias: 16!\n"),  # a bias left behind
        ("4.weight: 10! b\n4.bias: 10!\n", "4.weight: o b\n4.bias: o\n"),  # outputs moved
        ("0.weight: a 8!\n", "0.weight: a i\n"),  # inputs moved
        ("2.weight: b a\n", "2.weight: b c\n"),  # two groups where there is one
    ],
)
def test_too_much_freedom_is_found(mlp, old: str, new: str) -> None:
    text = MLP.replace(old, new)
    for label, size in (("o", 10), ("i", 8), ("c", 16)):
        if f"{label} " in new or f" {label}\n" in new:
            text = text.replace("group b", f"group {label} = S({size})\ngroup b")
    found = verify_program(mlp, WeightSpace.parse(text))
    assert not found.ok
    assert found.max_error > 1e-3
    assert "NOT VERIFIED" in found.report()


def test_too_little_freedom_is_no_error(mlp) -> None:
    """Half of a group pinned: sound, and proved as far as it goes."""
    text = MLP.replace("S(16)", "S(8)").replace(": a 8!", ": (8! + a) 8!")
    text = text.replace(" a\n", " (8! + a)\n")
    found = verify_program(mlp, WeightSpace.parse(text))
    assert found.ok and found.controls.total == 2


def test_nothing_free_is_not_verified(mlp) -> None:
    text = MLP.replace("group a = S(16)\n", "").replace("group b = S(24)\n", "")
    text = text.replace("24! ", "").replace(" b", " 24!").replace(" a", " 16!")
    found = verify_program(mlp, WeightSpace.parse(text))
    assert found.max_error == 0.0
    assert found.empty and not found.ok
    assert "nothing was proved" in found.report()


def test_a_single_layer_has_nothing_to_find() -> None:
    _, found = proved(nn.Linear(4, 3), torch.randn(2, 4))
    assert found.ok and found.controls.total == 0


class OneKey(nn.Module):
    """Attention over a single key: queries have no effect, so their group cannot be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(y).mT).softmax(-1)
        return self.o(weights @ self.v(y))


def test_undetected_control_is_reported() -> None:
    _, found = proved(OneKey(), (torch.randn(2, 5, 6), torch.randn(2, 1, 6)))
    assert found.max_error < 1e-13
    assert found.undetected == ("q",)
    assert (found.controls.total, found.controls.detected) == (2, 1)
    assert not found.ok and "undetected: q" in found.report()
    _, seen = proved(OneKey(), (torch.randn(2, 5, 6), torch.randn(2, 3, 6)))
    assert seen.ok


def test_groups_in_one_tensor_only_are_counted() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.fc = nn.Parameter(torch.randn(7)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scale.exp().sum()

    space, found = proved(Summed(), torch.randn(2, 4))
    assert [g.size for g in space.groups] == [7]
    assert (found.controls.total, found.controls.single) == (0, 1)
    assert found.ok


def test_wrong_tensors_are_a_mismatch(mlp) -> None:
    with pytest.raises(SpaceMismatch, match=r"'4\.bias' only in the network"):
        verify_program(mlp, WeightSpace.parse(MLP.replace("4.bias: 10!\n", "")))
    with pytest.raises(SpaceMismatch, match="'extra' only in the space"):
        verify_program(mlp, WeightSpace.parse(MLP + "extra: 3!\n"))
    with pytest.raises(SpaceMismatch, match=r"'0\.weight' has shape \(16, 8\) in the network"):
        verify_program(mlp, WeightSpace.parse(MLP.replace("a 8!", "a 9!")))


def test_tied_tensors_must_be_tied_in_the_space() -> None:
    golden = models.MODELS["char_lm"]
    program = record(golden.factory(), golden.example_inputs)
    text = str(infer_program(program)).replace("wte.weight = lm_head.weight", "wte.weight: 13! 8!")
    with pytest.raises(SpaceMismatch, match="are one tensor in the network and two in the space"):
        verify_program(program, WeightSpace.parse(text))


def test_json_has_the_public_fields(mlp) -> None:
    found = verify_program(mlp, infer_program(mlp), samples=2)
    data = json.loads(json.dumps(found.to_json()))
    assert set(data) >= {"ok", "max_error", "samples", "dtype", "controls", "undetected"}
    assert data["controls"] == {"total": 2, "detected": 2, "dead": 0, "single": 0}
    assert (data["samples"], data["dtype"], data["ok"]) == (2, "float64", True)
    assert found.report().startswith("verified\n")
    assert replace(found, ok=False).report().startswith("NOT VERIFIED")


def test_public_call_leaves_the_module_alone() -> None:
    module = models.make("resnet8a").train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    inputs = models.MODELS["resnet8a"].example_inputs
    found = verify(module, infer(module, inputs), inputs, samples=1, seed=3)
    assert found.ok and found.samples == 1 and module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.get_default_dtype() == torch.float32


def test_the_seed_decides(mlp) -> None:
    space = infer_program(mlp)
    first, again, other = (verify_program(mlp, space, 1, seed) for seed in (0, 0, 1))
    assert first.max_error == again.max_error
    assert first.ok and other.ok


@pytest.mark.parametrize("name", ["resnet8a", "encoder", "char_lm", "lstm2"])
def test_random_values_are_not_degenerate(name: str) -> None:
    program = record(models.MODELS[name].factory(), models.MODELS[name].example_inputs)
    drawn = fill(program, torch.Generator().manual_seed(0), 1.0)
    assert drawn.keys() == {n for n in program.tensors if n not in program.aliases}
    for key, value in drawn.items():
        assert value.dtype == torch.float64
        assert value.unique().numel() == value.numel(), key
        assert "running_var" not in key or bool((value >= 0.5).all())


class Amplifier(nn.Module):
    """sin of large numbers, six times: rounding errors grow beyond any tolerance."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(30 * layer(x))
        return self.layers[-1](x)


def test_amplified_rounding_is_told_from_a_wrong_space() -> None:
    space, found = proved(Amplifier(), torch.randn(2, 8))
    assert found.ok and found.notes, found.report()
    assert len(space.groups) == 6


@pytest.mark.parametrize(
    ("a", "b", "change"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 1.0], 0.5),
        ([1.0, float("inf")], [1.0, float("inf")], 0.0),
        ([1.0, float("nan")], [1.0, 2.0], float("inf")),
        ([float("nan")], [float("nan")], float("inf")),
        ([1, 2], [1, 3], 1.0),
    ],
)
def test_relative_change(a: list, b: list, change: float) -> None:
    assert relative_change(torch.tensor(a), torch.tensor(b)) == change


def test_status_follows_the_proof() -> None:
    module, inputs = models.make("mlp"), models.MODELS["mlp"].example_inputs
    assert infer(module, inputs).status == "inferred"
    assert infer(module, inputs, verify=True).status == "verified"
    with pytest.raises(SymmetryError, match="could not be proved"):
        infer(OneKey(), (torch.randn(2, 5, 6), torch.randn(2, 1, 6)), verify=True)


@pytest.mark.parametrize("name", models.SMALL)
def test_moving_one_tensor_alone_changes_the_output(name: str) -> None:
    """On the module itself, with its own weights: the whole element keeps, a part does not."""
    golden = models.MODELS[name]
    module = models.make(name, dtype=torch.float64)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in golden.example_inputs)
    state = module.state_dict()
    space = infer(module, inputs)
    group = max(space.groups, key=lambda g: len(g.tensors))
    table = np.broadcast_to(np.roll(np.arange(group.size), 1), table_shape(space, group))
    moved = GroupElement(space, {group.label: table.copy()}).apply(state)
    before = output(module, state, inputs)
    assert relative_change(before, output(module, moved, inputs)) < 1e-10
    changes = [
        relative_change(before, output(module, state | names(space, moved, tensor), inputs))
        for tensor in group.tensors
    ]
    assert max(changes) > 1e-6


def names(space: WeightSpace, state: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if space.aliases.get(k, k) == owner}


def output(module: nn.Module, state: dict[str, Tensor], inputs: tuple) -> Tensor:
    module = copy.deepcopy(module)
    module.load_state_dict(state)
    with torch.no_grad():
        return module(*inputs)


class Centred(nn.Module):
    """Tokens are mixed, then each is normed: the bias of the mix shifts whole tokens, in vain."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(6, 7), nn.LayerNorm(5) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x).transpose(1, 2)).relu().sum(1)


@pytest.mark.parametrize(("norm", "single", "total"), [(True, 1, 0), (False, 0, 1)])
def test_a_group_that_matters_in_one_tensor_needs_no_control(
    norm: bool, single: int, total: int
) -> None:
    space, found = proved(Centred(norm), torch.randn(2, 5, 6))
    assert signatures(space) == [("S", 7, ())]
    assert found.ok, found.report()
    assert (found.controls.single, found.controls.total) == (single, total)


def test_a_wrong_claim_is_still_refuted_where_a_bias_is_silent() -> None:
    module = Centred(True)
    right = infer(module, (torch.randn(2, 5, 6),))
    text = str(right).replace("6!", "c").replace("group ", "group c = S(6)\ngroup ", 1)
    wrong = WeightSpace.parse(text)
    assert not verify(module, wrong, (torch.randn(2, 5, 6),)).ok
