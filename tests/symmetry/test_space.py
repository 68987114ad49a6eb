"""The type: text form, JSON, normal form, equality, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from metanet.errors import SymmetryError
from metanet.symmetry import Axis, Fixed, Group, Occ, Prod, Sum, TensorSpec, WeightSpace
from metanet.symmetry.axis import axis_size
from metanet.symmetry.normal import normal_axis
from metanet.testing import random_axis
from tests.symmetry.reference import denotation
from tests.symmetry.strategies import ALGEBRA, SEEDS, spaces

EXAMPLE = """space v1
group h1 = S(16)
group h = S(4)
group d = S(8) / h
group v = S(8) / h
group model = S(32)
group vocab = fixed(97) "input"
attn.in_proj: (h d/h + h d/h + h v/h) model   # packed
fc1.bias: h1
fc1.weight: h1 784!
wte.weight: vocab model
"odd name #1": (h (2! + d/h + 2! + v/h)) 3!
scalar:
x.weight = wte.weight
"""


def plain(text: str) -> Axis:
    """An axis written with unfibred labels a (2), b (3)."""
    lines = ["space v1"]
    lines += [f"group {g} = S({n})" for g, n in (("a", 2), ("b", 3)) if g in text]
    return WeightSpace.parse("\n".join([*lines, f"t: ({text})"])).normal_axes("t")[0]


@ALGEBRA
@given(spaces("S", "signed", "positive"))
def test_parse_inverts_str(space: WeightSpace) -> None:
    again = WeightSpace.parse(str(space))
    assert again == space and hash(again) == hash(space) and again.digest == space.digest
    assert str(again) == str(space)
    assert space.normal() == space


@ALGEBRA
@given(spaces("S", "signed"))
def test_json_round_trip(space: WeightSpace) -> None:
    again = WeightSpace.from_json(space.to_json())
    assert again == space and again.to_json() == space.to_json()


def test_example() -> None:
    space = WeightSpace.parse(EXAMPLE)
    assert [g.label for g in space.groups] == ["h", "d", "v", "model", "h1"]
    assert space.group("d").copies == 4 and space.group("d").over == ("h",)
    assert space.group("model").tensors == ("attn.in_proj", "wte.weight")
    assert [g.label for g in space.fixed] == ["vocab"] and space.fixed[0].reason == "input"
    assert space.aliases == {"x.weight": "wte.weight"}
    assert WeightSpace.parse(str(space)) == space


def test_labels_reasons_and_dtypes_do_not_count() -> None:
    space = WeightSpace.parse(EXAMPLE)
    renamed = EXAMPLE.replace("model", "stream").replace('"input"', '"words"')
    assert WeightSpace.parse(renamed) == space
    assert WeightSpace.parse(EXAMPLE.replace("wte.weight: vocab", "wte.weight: 97!")
                             .replace('group vocab = fixed(97) "input"\n', "")) == space
    assert WeightSpace.parse(EXAMPLE.replace("h v/h)", "h d/h)").replace("v/h", "d/h")
                             .replace("group v = S(8) / h\n", "")) != space


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("(a + b) b", "a b + b b"),
        ("2! (a + b)", "a + b + a + b"),
        ("2! 3! a", "6! a"),
        ("a 1!", "a"),
        ("2! a + 3! a", "5! a"),
        ("a + a", "2! a"),
        ("1! + 2! + 3!", "6!"),
        ("a (2! + 3!)", "a 5!"),
        ("a + b + a + b + a + b", "3! (a + b)"),
        ("a 2! (a + b)", "a (a + b + a + b)"),
        ("(a + (b + a)) + b", "2! (a + b)"),
    ],
)
def test_same_axis_same_form(text: str, normal: str) -> None:
    assert plain(text) == plain(normal)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b", "b a"), ("a 2!", "2! a"), ("a + b", "b + a"), ("a + b + a", "2! a + b"), ("a", "2!")],
)
def test_different_axes_differ(one: str, other: str) -> None:
    assert plain(one) != plain(other)


def test_nested_form_is_kept() -> None:
    axis = plain("a (2! + b + 2! + b)")
    assert axis == Prod((Occ("a"), Fixed(2), Sum((Fixed(2), Occ("b")))))


GROUPS = [Group("a", 2), Group("b", 3), Group("c", 2)]
SIZES = {g.label: g.size for g in GROUPS}


@ALGEBRA
@given(SEEDS)
def test_normal_form_is_the_denotation(seed: int) -> None:
    """Normal forms are equal exactly if every index means the same; a form keeps the meaning."""
    rng = np.random.default_rng(seed)
    one, other = (random_axis(rng, GROUPS, depth=3) for _ in range(2))
    if max(axis_size(one, SIZES), axis_size(other, SIZES)) > 3000:
        return
    assert denotation(normal_axis(one), SIZES) == denotation(one, SIZES)
    assert normal_axis(normal_axis(one)) == normal_axis(one)
    rewritten = rewrite(one, rng)
    assert denotation(rewritten, SIZES) == denotation(one, SIZES)
    assert normal_axis(rewritten) == normal_axis(one)
    same = denotation(one, SIZES) == denotation(other, SIZES)
    assert (normal_axis(one) == normal_axis(other)) == same


@pytest.mark.parametrize("size", range(1, 7))
def test_small_axes_exhaustively(size: int) -> None:
    """All sums of up to four short terms: equal forms if and only if equal meanings."""
    terms = [Fixed(1), Fixed(2), Occ("a"), Prod((Occ("a"), Fixed(2))), Prod((Fixed(2), Occ("a"))),
             Occ("c"), Prod((Occ("a"), Occ("c")))]
    by_form: dict[Axis, list] = {}
    by_meaning: dict[tuple, Axis] = {}
    for axis in sums(terms, size):
        form, meaning = normal_axis(axis), tuple(denotation(axis, SIZES))
        assert by_form.setdefault(form, meaning) == meaning
        assert by_meaning.setdefault(meaning, form) == form


def sums(terms: list[Axis], size: int, parts: tuple[Axis, ...] = ()):
    if size == 0 and parts:
        yield Sum(parts)
    for term in terms:
        n = axis_size(term, SIZES)
        if n <= size:
            yield from sums(terms, size - n, (*parts, term))


def rewrite(axis: Axis, rng: np.random.Generator) -> Axis:
    """A random other spelling of the same axis."""
    if isinstance(axis, Fixed):
        if axis.size > 1 and rng.random() < 0.5:
            cut = int(rng.integers(1, axis.size))
            return Sum((Fixed(cut), Fixed(axis.size - cut)))
        return Prod((Fixed(1), axis)) if rng.random() < 0.3 else axis
    if isinstance(axis, Occ):
        return Prod((axis, Fixed(1))) if rng.random() < 0.3 else axis
    parts = [rewrite(part, rng) for part in axis.parts]
    if isinstance(axis, Prod):
        if isinstance(parts[0], Sum) and rng.random() < 0.7:
            return Sum(tuple(Prod((term, *parts[1:])) for term in parts[0].parts))
        if len(parts) > 2 and rng.random() < 0.5:
            return Prod((Prod(tuple(parts[:2])), *parts[2:]))
        return Prod(tuple(parts))
    if len(set(parts)) == 1 and rng.random() < 0.7:
        return Prod((Fixed(len(parts)), parts[0]))
    return Sum((Sum(tuple(parts)),)) if rng.random() < 0.5 else Sum(tuple(parts))


def test_sizes_of_one_vanish() -> None:
    one = WeightSpace.parse("space v1\ngroup h = S(1)\ngroup d = S(3) / h\nt: (h d/h) 1!")
    assert one == WeightSpace.parse("space v1\ngroup d = S(3)\nt: d 1!")
    assert [(g.label, g.over, g.copies) for g in one.groups] == [("d", (), 1)]


def test_base_of_another_axis() -> None:
    text = "space v1\ngroup h = S(3)\ngroup d = S(2) / h\n"
    space = WeightSpace.parse(text + "t: d/h h")
    assert space == WeightSpace.parse(text + "t: d/h@1 h")
    assert space != WeightSpace.parse("space v1\ngroup h = S(3)\ngroup d = S(2)\nt: d h")
    with pytest.raises(SymmetryError, match="stands 2 times"):
        WeightSpace.parse(text + "t: d/h h h")
    first, second = (WeightSpace.parse(text + f"t: d/h@{n} h h") for n in (1, 2))
    assert first != second and WeightSpace.parse(str(second)) == second


def test_order_of_bases_does_not_count() -> None:
    text = "space v1\ngroup h = S(3)\ngroup k = S(2)\ngroup d = S(2) / (%s)\nt: (h k d/(%s))"
    assert WeightSpace.parse(text % ("k h", "h k")) == WeightSpace.parse(text % ("h k", "k h"))


def test_aliases_are_owned_by_the_first_name() -> None:
    text = "space v1\ngroup g = S(3)\nz10: g\nz9 = z10\na = z9"
    space = WeightSpace.parse(text)
    assert list(space.tensors) == ["a"] and space.aliases == {"z9": "a", "z10": "a"}


def test_exponents() -> None:
    base = "space v1\ngroup g = signed(3)\na: g^%d\nb: g"
    assert WeightSpace.parse(base % 3) == WeightSpace.parse(base % -1)
    assert WeightSpace.parse(base % 2) == WeightSpace.parse(base % 0)
    assert WeightSpace.parse(base % 2) != WeightSpace.parse(base % 1)
    text = "space v1\ngroup g = S(3)\na: g^5"
    assert WeightSpace.parse(text) == WeightSpace.parse(text.replace("^5", ""))
    with pytest.raises(SymmetryError, match="exponent 2"):
        WeightSpace.parse("space v1\ngroup g = GL(3)\na: g^2")


def test_sizes_solved_from_shapes() -> None:
    text = "space v1\nfc1: h (k d/k)\nfc2: h\nq: k\nsquare: (s s)"
    space = WeightSpace.parse(text, shapes={"fc1": (5, 12), "fc2": (5,), "q": (4,), "square": (9,)})
    assert {g.label: g.size for g in space.groups} == {"h": 5, "k": 4, "d": 3, "s": 3}
    with pytest.raises(SymmetryError, match="d, k do not follow"):
        WeightSpace.parse("space v1\nfc1: (k d)", shapes={"fc1": (12,)})
    with pytest.raises(SymmetryError, match="no size of 's'"):
        WeightSpace.parse("space v1\nfc1: (s s)", shapes={"fc1": (12,)})
    with pytest.raises(SymmetryError, match="not in the checkpoint"):
        WeightSpace.parse("space v1\nfc1: s", shapes={})
    with pytest.raises(SymmetryError, match="not declared"):
        WeightSpace.parse("space v1\nfc1: s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with"),
        ("group h = S(3)", "line 1, column 1"),
        ("space v2", "begins with"),
        ("space v1\ngroup h = T(3)\nt: h", "unknown kind 'T'"),
        ("space v1\ngroup h = S(0)\nt: h", "not positive"),
        ("space v1\ngroup h = S(3)", "occurs in no tensor"),
        ("space v1\ngroup h = S(3)\ngroup h = S(4)\nt: h", "declared twice"),
        ("space v1\nt: 3!\nt: 4!", "declared twice"),
        ("space v1\nt: 3", "expected '!'"),
        ("space v1\nt: (3! + )", "expected a label"),
        ("space v1\nt: (3!", r"expected '\)'"),
        ("space v1\nt: 3! )", "expected a label"),
        ("space v1\nt 3!", "expected ':'"),
        ("space v1\nu = t", "does not name one tensor"),
        ("space v1\nu = t\nt = u", "does not name one tensor"),
        ("space v1\ngroup d = S(2) / h\nt: d/h", "unknown 'h'"),
        ("space v1\ngroup d = S(2) / d\nt: d/d", "cycle"),
        ("space v1\ngroup h = S(2)\ngroup d = S(2) / h\nt: h d", "stands over nothing"),
        ("space v1\ngroup h = S(2)\ngroup d = S(2) / h\nt: d/h\nu: h", "absent"),
        ("space v1\ngroup h = O(2)\ngroup d = S(2) / h\nt: (h d/h)", "has no indices"),
        ("space v1\ngroup h = S(2)\ngroup k = S(2) / h\ngroup d = S(2) / k\nt: (h k/h d/k)",
         "not over that group's own base"),
        ("space v1\nt: " + "(" * 60 + "2!" + ")" * 60, "nested more than"),
        ("space v1\nt: 1234567890123456789!", "at most 18 digits"),
    ],
)
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(SymmetryError, match=message):
        WeightSpace.parse(text)


def test_malformed_json() -> None:
    with pytest.raises(SymmetryError, match="not the JSON of a space"):
        WeightSpace.from_json({"format": "else"})
    data = WeightSpace.parse(EXAMPLE).to_json()
    del data["tensors"]["fc1.bias"]["axes"]
    with pytest.raises(SymmetryError, match="malformed"):
        WeightSpace.from_json(data)


def test_shape_must_fit() -> None:
    with pytest.raises(SymmetryError, match=r"lengths \(3,\), the shape is \(4,\)"):
        WeightSpace([Group("g", 3)], {"t": TensorSpec((4,), (Occ("g"),))})
