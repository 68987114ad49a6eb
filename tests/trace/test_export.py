"""The recorded program is the module's function, and the module is never touched."""

from __future__ import annotations

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.errors import TraceError
from metanet.trace.export import alias_owners, export_program
from metanet.trace.program import Ref

NAMES = ["mlp", "siren", "lenet", "resnet8a", "vgg11bn", "lstm2", "encoder", "char_lm", "prelu"]


def state(module: nn.Module) -> dict[str, Tensor]:
    named = dict(module.named_parameters(remove_duplicate=False))
    return {k: v.detach() for k, v in (named | dict(module.named_buffers())).items()}


@pytest.mark.parametrize("name", NAMES)
def test_program_computes_what_the_module_computes(name: str) -> None:
    module, inputs = models.make(name), models.MODELS[name].example_inputs
    program = export_program(module, inputs)
    (out,) = program.run(state(module))
    with torch.no_grad():
        torch.testing.assert_close(out, module(*inputs))


@pytest.mark.parametrize("name", ["resnet8a", "lstm2", "encoder", "char_lm"])
def test_module_is_untouched(name: str) -> None:
    module, inputs = models.make(name), models.MODELS[name].example_inputs
    module.train()
    next(module.children()).eval()  # a mixture of modes must survive
    before = {k: v.clone() for k, v in module.state_dict().items()}
    ids = {k: id(v) for k, v in module.named_parameters(remove_duplicate=False)}
    keys = {path: set(vars(part)) for path, part in module.named_modules()}
    modes = {path: part.training for path, part in module.named_modules()}
    export_program(module, inputs)
    assert {k: id(v) for k, v in module.named_parameters(remove_duplicate=False)} == ids
    assert {path: set(vars(part)) for path, part in module.named_modules()} == keys
    assert {path: part.training for path, part in module.named_modules()} == modes
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    module(*inputs).sum().backward()  # still trainable: nothing fake was left inside


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5, self.training)


def test_recorded_in_eval_mode_whatever_the_module_is_in() -> None:
    module = Dropped().train()
    x = torch.randn(2, 4)
    program = export_program(module, x)
    torch.testing.assert_close(program.run(state(module))[0], module.fc(x))
    assert module.training


def test_parameters_may_be_on_meta_and_buffers_may_not() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    for part in module:
        for key, value in list(part._parameters.items()):
            part._parameters[key] = nn.Parameter(value.to("meta"))
    program = export_program(module, torch.randn(2, 4))
    assert program.tensors["2.weight"] == ((3, 6), torch.float32)
    assert next(s for s in program.sources if s.name == "0.weight").value is None
    with pytest.raises(TraceError, match=r"buffer '1\.running_mean' is on the meta device"):
        export_program(module.to("meta"), torch.randn(2, 4))


def test_tied_names_by_identity() -> None:
    module = models.make("char_lm")
    assert alias_owners(module) == {"wte.weight": "lm_head.weight"}
    program = export_program(module, models.MODELS["char_lm"].example_inputs)
    assert program.aliases == {"wte.weight": "lm_head.weight"}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor, *, shift: Tensor | None = None) -> dict:
        out = self.fc(x) * scale
        return {"first": out if shift is None else out + shift, "second": [out]}


X, S, B = torch.randn(2, 4), torch.randn(4), torch.randn(4)


@pytest.mark.parametrize(
    "inputs", [{"x": X, "scale": S, "shift": B}, (X, S), ((X,), {"scale": S}), [X, S]]
)
def test_forms_of_inputs_and_outputs(inputs: object) -> None:
    program = export_program(Named(), inputs)
    assert [name for name, _ in program.outputs] == ["output 0", "output 1"]
    assert {s.kind for s in program.sources} == {"parameter", "input"}


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.a(x).relu()
        return self.b(x)


def test_wrapped_regions_are_inlined() -> None:
    module, x = Guarded(), torch.randn(2, 4)
    program = export_program(module, x)
    assert [op.family for op in program.ops] == ["aten.linear", "aten.relu", "aten.linear"]
    torch.testing.assert_close(program.run(state(module))[0], module(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


@pytest.mark.parametrize("module", [Branching(), Masked()])
def test_control_flow_and_shapes_that_depend_on_values_are_refused(module: nn.Module) -> None:
    with pytest.raises(TraceError, match=type(module).__name__):
        export_program(module, torch.randn(2, 4))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).add_(1)


def test_running_changes_nothing_given() -> None:
    x = torch.randn(2, 4)
    kept = x.clone()
    program = export_program(InPlace(), x)
    assert torch.equal(x, kept)
    given = {"x": x}
    first, second = program.run(given)[0], program.run(given)[0]
    assert torch.equal(x, kept)
    assert torch.equal(first, kept * 2 + 1)
    assert torch.equal(first, second)


def test_operations_know_where_they_stand() -> None:
    program = export_program(models.make("resnet8a"), models.MODELS["resnet8a"].example_inputs)
    first = next(op for op in program.ops if op.family == "aten.conv2d")
    assert first.title == "conv2d (conv1)"
    assert first.where.startswith("models.py:")
    assert first.refs() == [Ref(i) for i in (first.refs()[0].index, first.refs()[1].index)]


def test_live_values() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x).relu()
            return self.used(x)

    program = export_program(Side(), torch.randn(2, 4))
    live = program.live()
    alive = {s.name for s in program.sources if s.ref.index in live}
    assert alive == {"used.weight", "used.bias", "x"}
