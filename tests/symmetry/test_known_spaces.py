"""The table of verified spaces that is shipped: what it holds, and what fits it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from symmetry_tools import signatures

from metanet.symmetry import WeightSpace, cache, infer, known_sources, resolve
from metanet.symmetry.cache import Entry, Hit, find, packed
from metanet.trace.archs.vision import prepare_torchvision

MLP = """space v1
group a = S(16)
group b = S(20)
x.weight: a 8!
y.weight: b a
"""


def entries() -> list[Entry]:
    return [Entry(**told) for found in cache.table().values() for told in found]


def zeros(space: WeightSpace) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(spec.shape) for name, spec in space.tensors.items()}


def test_every_entry_fits_its_own_shapes_and_is_not_called_verified() -> None:
    known = entries()
    assert len(known) >= 15 and (Path(cache.__file__).parent / cache.FILE).stat().st_size < 400_000
    for entry in known:
        assert entry.error <= 1e-10 and entry.fit in cache.FITS
        space = WeightSpace.parse(entry.space)
        state = {n: torch.empty(s.shape, device="meta") for n, s in space.tensors.items()}
        hit = cache._hit(entry, {n: tuple(t.shape) for n, t in state.items()}, {})
        assert hit is not None and hit.exact and hit.space.status == "inferred"
        assert hit.space.groups and signatures(hit.space) == signatures(space)


def test_the_table_names_what_can_be_made() -> None:
    assert {entry.name for entry in entries()} <= {s.name for s in known_sources.sources()}


@pytest.mark.parametrize("name", ["lenet:32", "resnet20-cifar"])
def test_an_entry_is_what_tracing_gives(name: str) -> None:
    source = next(s for s in known_sources.sources() if s.name == name)
    module, inputs = source.make()
    space = infer(module, inputs)
    found = resolve(zeros(space))
    assert found.space == space and (found.route, found.arch) == ("cache", name)
    assert found.space is not None and found.space.status == "inferred"
    assert "nobody ran this file" in found.note and found.module is None
    fresh = known_sources.entry_of(source)
    assert fresh.space == next(e.space for e in entries() if e.name == name)


def test_verify_runs_the_architecture_that_the_table_names() -> None:
    source = next(s for s in known_sources.sources() if s.name == "lenet:32")
    found = resolve(zeros(infer(*source.make())), verify=True)
    assert found.space is not None and found.space.status == "verified"
    assert found.verification is not None and found.verification.ok and found.route == "cache"
    assert infer(zeros(found.space), verify=True).status == "verified"
    assert infer(zeros(found.space)) == found.space


def classes(state: dict[str, torch.Tensor], head: str, count: int) -> dict[str, torch.Tensor]:
    for leaf in ("weight", "bias"):
        old = state[f"{head}.{leaf}"]
        state[f"{head}.{leaf}"] = torch.zeros(count, *old.shape[1:])
    return state


def test_other_classes_and_other_widths() -> None:
    source = next(s for s in known_sources.sources() if s.name == "resnet20-cifar")
    space = infer(*source.make())
    found = resolve(classes(zeros(space), "linear", 7))
    assert found.space is not None and found.route == "cache" and "but for sizes" in found.note
    assert signatures(found.space) == signatures(space)
    wide = zeros(space)
    wide["layer1.0.conv1.weight"] = torch.zeros(17, 16, 3, 3)
    assert resolve(wide).space is None
    assert "other shapes" in resolve(wide).note


@pytest.mark.timm
def test_a_resnet_of_another_width_is_the_same_network() -> None:
    prepare_torchvision()
    import timm

    module = timm.create_model("wide_resnet50_2", num_classes=5).eval()
    space = infer(module, (torch.randn(2, 3, 40, 48),))
    found = resolve(module.state_dict())
    assert found.space == space and "resnet50" in found.note
    grouped = timm.create_model("resnext101_32x4d").eval()
    assert resolve(grouped.state_dict()).space is None


def table_of(*told: Entry) -> dict[str, list[dict[str, object]]]:
    import gzip
    import json

    found: dict[str, list[dict[str, object]]] = json.loads(
        gzip.decompress(packed(told)))["entries"]
    return found


def test_entries_that_contradict_each_other_are_no_answer(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Entry("one", None, "exact", 0.0, MLP)
    two = Entry("two", None, "exact", 0.0, MLP.replace("b a", "20! a").replace("group b = S(20)",
                                                                              ""))
    state = zeros(WeightSpace.parse(MLP))
    monkeypatch.setattr(cache, "table", lambda: table_of(one))
    hit = find(resolve(state).checkpoint)
    assert isinstance(hit, Hit) and hit.entry == Entry(**vars(one) | {"dead": []})
    monkeypatch.setattr(cache, "table", lambda: table_of(one, two))
    assert "different symmetries" in str(find(resolve(state).checkpoint))
    assert packed([one, two]) == packed([one, two])


def test_how_far_sizes_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for fit, fixed, width in (("exact", False, False), ("classes", True, False),
                              ("widths", True, True)):
        entry = Entry("one", None, fit, 0.0, MLP)
        monkeypatch.setattr(cache, "table", lambda e=entry: table_of(e))
        for state, allowed in (
            ({"x.weight": torch.zeros(16, 9), "y.weight": torch.zeros(20, 16)}, fixed),
            ({"x.weight": torch.zeros(17, 8), "y.weight": torch.zeros(20, 17)}, width),
            ({"x.weight": torch.zeros(17, 8), "y.weight": torch.zeros(20, 16)}, False),
        ):
            assert isinstance(find(resolve(state).checkpoint), Hit) == allowed, (fit, allowed)


def test_either_name_of_a_tied_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "space v1\ngroup a = S(16)\nin.weight: 31! a\nout.weight = in.weight\nv: a\n"
    space = WeightSpace.parse(text)
    monkeypatch.setattr(cache, "table", lambda: table_of(
        Entry.of("tied", None, "exact", 0.0, space)))
    weight, v = torch.zeros(31, 16), torch.zeros(16)
    for state in ({"in.weight": weight, "v": v}, {"out.weight": weight, "v": v},
                  {"in.weight": weight, "out.weight": weight, "v": v}):
        found = resolve(state)
        assert found.route == "cache" and found.space is not None
        assert signatures(found.space) == [("S", 16, ())]
        assert set(found.space.random(0).apply(state)) == set(state)


@pytest.mark.slow
@pytest.mark.timm
@pytest.mark.parametrize("name", ["timm's resnet18", "torchvision's mobilenet_v2"])
def test_entries_of_libraries_are_what_tracing_gives(name: str) -> None:
    source = next(s for s in known_sources.sources() if s.name == name)
    assert known_sources.entry_of(source).space == next(
        e.space for e in entries() if e.name == name)
