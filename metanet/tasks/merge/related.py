"""``related``: are two models the products of one training run?

**Order** (exact). If two models are independent, and training treats the neurons of a group alike,
then the model with its neurons shuffled is as likely as the model itself: the element that brings
``b`` to ``a``, found in a way that does not look at the order of ``b``, is uniform on the group.
Fine-tunes and partly retrained copies keep the order of their parent, so that it is near the
identity. The number of fixed points of a uniform permutation has a known distribution: p-values
are exact, and independent over groups (Zhu et al., "Independence tests for language models", ICML
2025, arXiv 2502.12292, permute copies of one architecture; here the group is inferred).

**Orbit** (bounds). A copy whose neurons were permuted has lost the order. It is found by witnesses
that no permutation touches: partners found from the input side are those found from the output
side; half of a layer's neurons, through the next layer, find the partners of the other half; and
entries of partners coincide to a hundredth of their spread. Two models of one task agree a little
in all of them by what they learned, so no exact law is known: the p-values are binomial tails for
an agreement of a quarter and a coincidence of a tenth by chance, several times what independent
models show.

The answer is the smaller of the order's and 1000 times the orbit's p-value (a weighted Bonferroni
bound): uniform under independence up to a tenth of a percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom, chi2, spearmanr
from torch import Tensor

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.names import printable
from metanet.errors import SymmetryError
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.action import act
from metanet.symmetry.assign import assign
from metanet.symmetry.gains import collect, family
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import PERMUTING
from metanet.symmetry.starts import grown_start
from metanet.tasks.merge.fixed_points import order_log_p

BUDGET = 1 << 30
_AGREE = 0.25
_COINCIDE = 0.1
_NEAR = 0.01
_SHARE = 1e-3
_ORDERED = 1e-9
_SMALLEST = 4
ASSUMPTIONS = (
    "training treats the neurons of a group alike: they are drawn alike, and nothing in the code "
    "or the data tells them apart",
    "under independence neither model was made by looking at the other; the same data, recipe and "
    "code may have been used, but not the same initial weights",
    "neither model was sorted, pruned or canonicalised afterwards (a group in the order of its "
    "norms is refused)",
)


@dataclass(frozen=True)
class GroupKinship:
    """One group: ``fixed_points`` of the matching among ``size * copies`` neurons, its rank
    correlation with the identity, the exact log10 p of both, and how many partners found from the
    input side are confirmed from the output side (None where it has only one side).
    """

    label: str
    size: int
    copies: int
    fixed_points: int
    spearman: float
    log10_p: float
    agreement: int | None
    agreement_log10_p: float
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Kinship:
    """Whether two models are kin. ``p_value`` is small for kin; None where it was ``refused``.

    ``statistic`` is Fisher's sum over the groups' exact p-values, ``order_p`` its p-value,
    ``orbit_p`` the bound for permuted copies. ``log10_p`` is there for what no float holds.
    """

    p_value: float | None
    log10_p: float | None
    statistic: float | None
    order_p: float | None
    orbit_p: float | None
    per_group: tuple[GroupKinship, ...]
    assumptions: tuple[str, ...] = ASSUMPTIONS
    refused: str | None = None
    refused_groups: Mapping[str, str] = field(default_factory=dict)
    by_layer: tuple[dict[str, Any], ...] = ()
    tensors: int = 0
    bytes: int = 0

    @property
    def related(self) -> bool:
        """Whether p is below one in a million."""
        return self.log10_p is not None and self.log10_p < -6

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"related": self.related}


def related(
    a: Any,
    b: Any,
    space: WeightSpace | None = None,
    *,
    arch: str | None = None,
    seed: int = 0,
    budget: int = BUDGET,
    by_layer: bool = False,
) -> Kinship:
    """Test whether two models are independent.

    Args:
        a: a model: tensors, a module or anything that ``metanet.open`` takes; of a checkpoint on
            the Hub only the tensors that are needed are read.
        b: the other.
        space: of both; by default inferred from ``arch`` or, for a module, its forward.
        arch: name of the architecture.
        seed: of the shuffles that hide the order of ``b``.
        budget: bytes per model to read, smallest tensors first.
        by_layer: also say, per tensor, how much nearer the models are than shuffled copies.

    Raises:
        SymmetryError: no space is known; SpaceMismatch: the models do not fit it.
    """
    found = _space(a, space, arch)
    names = _few(found, budget)
    part = _restricted(found, names)
    one, other = _read(a, names), _read(b, names)
    refused = {g.label: why for g in part.groups if (why := _refusal(part, g, one, other))}
    groups = [g for g in part.groups if g.label not in refused]
    if not groups:
        reasons = "; ".join(f"{k}: {v}" for k, v in refused.items()) or "the space has no group"
        return Kinship(None, None, None, None, None, (), refused=reasons, refused_groups=refused)
    matched, tables = _blind_match(part, one, other, seed)
    sides = _sides(part, one, other)
    rng = np.random.default_rng([seed, 1])
    rows = tuple(_group(g, matched, sides, rng) for g in groups)
    order, statistic = _fisher([row.log10_p * math.log(10) for row in rows])
    orbit = _orbit(rows, part, one, other, tables)
    log_p = min(0.0, order - math.log1p(-_SHARE), orbit - math.log(_SHARE))
    layers = _by_layer(part, one, other, seed) if by_layer else ()
    return Kinship(
        math.exp(max(log_p, -690)), log_p / math.log(10), statistic, math.exp(max(order, -690)),
        math.exp(max(orbit, -690)), rows, refused_groups=refused, by_layer=layers,
        tensors=len(names), bytes=sum(t.numel() * t.element_size() for t in one.values()))


# ---------------------------------------------------------------- what is read


def _space(a: Any, space: WeightSpace | None, arch: str | None) -> WeightSpace:
    if space is not None:
        return space
    from metanet.symmetry import infer

    if arch is None and not isinstance(a, torch.nn.Module):
        raise SymmetryError("which symmetry? Name the architecture (arch=, --arch), or give the "
                            "space (--spec)")
    return infer(a, arch=arch)


def _few(space: WeightSpace, budget: int) -> list[str]:
    """Tensors that groups stand in, smallest first, until the budget (4 bytes a number) is spent;
    running statistics say nothing about the run that weights do not.
    """
    grouped = {name for group in space.groups if group.kind in PERMUTING for name in group.tensors}
    wanted = sorted((n for n in grouped if not n.rpartition(".")[2].startswith("running_")),
                    key=lambda n: (math.prod(space.tensors[n].shape), n))
    names: list[str] = []
    spent = 0
    for name in wanted:
        spent += 4 * math.prod(space.tensors[name].shape)
        if spent > budget and names:
            break
        names.append(name)
    return [name for name in space.tensors if name in set(names)]


def _restricted(space: WeightSpace, names: list[str]) -> WeightSpace:
    """The space of some of its tensors."""
    from metanet.symmetry.axis import occurrences

    axes = {name: space.normal_axes(name) for name in names}
    labels = {occ.label for tree in axes.values() for axis in tree for occ in occurrences(axis)}
    groups = [g for g in space.normal_groups if g.label in labels]
    tensors = {name: replace(space.tensors[name], axes=axes[name]) for name in names}
    return WeightSpace(groups, tensors, status=space.status, meta=space.meta)


def _read(model: Any, names: list[str]) -> dict[str, Tensor]:
    if isinstance(model, torch.nn.Module):
        model = model.state_dict()
    if isinstance(model, Mapping):
        found = {name: model[name] for name in names if name in model}
    else:
        from metanet.checkpoint import open as open_checkpoint

        ckpt: Checkpoint = open_checkpoint(model)
        found = {name: ckpt.read(name) for name in names if name in ckpt}
    missing = [name for name in names if name not in found]
    if missing:
        raise SymmetryError(f"tensor {missing[0]!r} of the space is not in one of the models")
    scaled = {}
    for name, tensor in found.items():
        value = tensor.detach().cpu().double()
        if not bool(value.isfinite().all()):
            raise SymmetryError(f"{name}: not all values are finite; `metanet doctor` tells more")
        scaled[name] = value / max(float(value.norm()), 1e-30)
    return scaled


# ---------------------------------------------------------------- refusals


def _refusal(
    space: WeightSpace, group: Group, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> str | None:
    """Why the neurons of a group are not exchangeable, or cannot be told apart."""
    if group.kind not in PERMUTING:
        return f"kind {group.kind} is no permutation"
    if group.size < _SMALLEST:
        return f"{group.size} neurons are too few to have an order"
    if group.dead:
        return "no output depends on it"
    for title, model in (("first", a), ("second", b)):
        every = _norms(space, group, model)
        total = np.sqrt(sum(norms**2 for norms in every.values()))
        if len(np.unique(total.round(12))) <= len(total) // 2:
            return f"most of its neurons are copies of each other in the {title} model"
        for name, norms in every.items():
            if len(np.unique(norms)) > len(norms) // 2:
                rho, p = spearmanr(np.arange(len(norms)), norms)
                if p < _ORDERED:
                    return (f"in the {title} model its neurons stand in the order of their norms "
                            f"in {printable(name)} (rank correlation {rho:.2f}): they were sorted, "
                            "or are not exchangeable")
    return None


def _norms(
    space: WeightSpace, group: Group, model: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Norm of each neuron's weights per tensor, over the whole group (copies one by one)."""
    found: dict[str, np.ndarray] = {}
    for name in group.tensors:
        total = np.zeros(group.size * group.copies)
        for block in space.blocks(name):
            view = block.view(model[name]).square()
            for position, digit in enumerate(block.digits):
                if digit.label == group.label:
                    own = [*digit.bases, position]
                    rest = [p for p in range(view.ndim) if p not in own]
                    total += view.permute(*own, *rest).reshape(len(total), -1).sum(1).numpy()
        found[name] = np.sqrt(total)
    return found


# ---------------------------------------------------------------- the order


def _blind_match(
    space: WeightSpace, a: Mapping[str, Tensor], b: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, np.ndarray], GroupElement]:
    """The element from ``b`` to ``a``, found on a shuffled ``b`` so that ties tell nothing."""
    shuffle = space.random(seed)
    signs = {k: v for k, v in shuffle.values.items() if space.group(k).kind == "signed"}
    shuffle = GroupElement(space, shuffle.tables, signs)
    hidden = {name: act(shuffle, name, tensor) for name, tensor in b.items()}
    element = grown_start(space, a, hidden) @ shuffle
    return element.tables, element


def _group(
    group: Group, tables: Mapping[str, np.ndarray], sides: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> GroupKinship:
    table = tables[group.label].reshape(-1, group.size)
    count, rho, log_p = order_log_p(table, rng)
    agreement, log_agree = None, 0.0
    if group.label in sides:
        total = sides[group.label].size
        agreement = int(sides[group.label].sum())
        log_agree = _binomial(agreement, total, _AGREE + 1 / group.size)
    return GroupKinship(group.label, group.size, group.copies, count, rho, log_p / math.log(10),
                        agreement, log_agree / math.log(10), group.tensors)


def _fisher(logs: list[float]) -> tuple[float, float]:
    """log p and the statistic of Fisher's combination of independent p-values."""
    statistic = -2 * sum(logs)
    tail = float(chi2.logsf(statistic, 2 * len(logs)))
    if math.isfinite(tail):
        return tail, statistic
    # with an even number of degrees of freedom the tail is a sum, which is done on logarithms
    half = statistic / 2
    terms = [j * math.log(half) - math.lgamma(j + 1) for j in range(len(logs))]
    return float(np.logaddexp.reduce(terms)) - half, statistic


# ---------------------------------------------------------------- the orbit


def _sides(
    space: WeightSpace, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Per group with two sides, which partners found from the inputs the outputs confirm.

    Each side settles the groups one after the other, by tensors that lead from one to the next,
    and never by one of the other side. Groups that are fibred, or over which others are, are left
    out: their tensors hold both sides in one.
    """
    plain = [g for g in space.groups if not g.over and len(family(space, g)) == 1]
    into, out = _directions(space)
    forward = _one_side(space, plain, into, (a, b))
    backward = _one_side(space, plain[::-1], out, (a, b))
    return {label: forward[label] == backward[label] for label in forward if label in backward}


def _directions(space: WeightSpace) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Tensors that make a group's neurons, and those that read them."""
    into: dict[str, list[str]] = {}
    out: dict[str, list[str]] = {}
    for name in space.tensors:
        meta = space.tensor_meta(name)
        for block in space.blocks(name):
            for digit in block.digits:
                if digit.label is not None:
                    made = digit.axis in meta.out_axes or digit.axis not in meta.in_axes
                    (into if made else out).setdefault(digit.label, []).append(name)
    return into, out


def _one_side(
    space: WeightSpace, groups: list[Group], tensors: Mapping[str, list[str]],
    pair: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> dict[str, np.ndarray]:
    """Partners settled by the tensors of one side; groups that have none stay unsettled."""
    start = GroupElement(space)
    tables, values = start.tables, start.values
    settled = {group.label for group in space.normal_groups if group.kind == "fixed"}
    waiting, found = list(groups), {}
    progress = True
    while waiting and progress:
        progress = False
        for group in list(waiting):
            names = [n for n in dict.fromkeys(tensors.get(group.label, ()))
                     if any(set(filter(None, block.labels)) - {group.label} <= settled
                            for block in space.blocks(n))]
            gains = collect(space, group, ({n: pair[0][n] for n in names},
                                           {n: pair[1][n] for n in names}),
                            tables, values, settled)
            if not (np.any(gains.plain) or np.any(gains.odd)):
                continue
            tables, values = assign(gains, tables, values)
            found[group.label] = tables[group.label]
            settled.add(group.label)
            waiting.remove(group)
            progress = True
    return found


def _orbit(
    rows: tuple[GroupKinship, ...], space: WeightSpace, a: Mapping[str, Tensor],
    b: Mapping[str, Tensor], element: GroupElement,
) -> float:
    """Bound on log p of agreement and coincidence: Bonferroni over groups and tensors."""
    told = [(row.agreement, row.size * row.copies, row.agreement_log10_p * math.log(10))
            for row in rows if row.agreement is not None]
    agree = [log_p for _, _, log_p in told]
    if len(told) > 1:  # all groups together
        chance = _AGREE + 1 / min(row.size for row in rows)
        agree.append(_binomial(sum(c for c, _, _ in told), sum(n for _, n, _ in told), chance))
    agree += _halves(space, a, b)
    near = [_coincidence(a[name], act(element, name, b[name])) for name in a if a[name].ndim > 1]
    tests = [*agree, *near]
    return min(0.0, min(tests) + math.log(len(tests))) if tests else 0.0


def _halves(
    space: WeightSpace, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> list[float]:
    """log p of witnesses for tensors between two groups, where nothing after them is kin.

    Partners of the first group are known from the input side. One half of them settles the second
    group; by it the tensor finds partners for the other half, which should be those known.
    """
    plain = [g for g in space.groups if not g.over and len(family(space, g)) == 1]
    into, _ = _directions(space)
    known = _one_side(space, plain, into, (a, b))
    found = []
    for name in (n for n in a if len(space.blocks(n)) == 1):
        block = space.blocks(name)[0]
        labels = [label for label in block.labels if label in known]
        meta = space.tensor_meta(name)
        if len(labels) != 2 or len(set(labels)) != 2:
            continue
        outs, ins = sorted((block.labels.index(label) for label in labels),
                           key=lambda p: block.digits[p].axis not in meta.out_axes)
        sizes = block.digits[outs].size, block.digits[ins].size, -1
        left, right = (block.view(m[name]).movedim((outs, ins), (0, 1)).reshape(sizes)
                       for m in (a, b))
        right = right[:, torch.from_numpy(known[str(block.labels[ins])])]
        found.append(_second_half(left.numpy(), right.numpy()))
    return found


def _second_half(a: np.ndarray, b: np.ndarray) -> float:
    """log p for one tensor ``[second, first, rest]`` whose first group is aligned."""
    first = np.random.default_rng(0).permutation(a.shape[1])
    one, other = first[: len(first) // 2], first[len(first) // 2 :]
    gain = np.einsum("isr,jsr->ij", a[:, one], b[:, one], optimize=True)
    rows = linear_sum_assignment(gain, maximize=True)[1]
    gain = np.einsum("hir,hjr->ij", a[:, other], b[rows][:, other], optimize=True)
    same = int((linear_sum_assignment(gain, maximize=True)[1] == np.arange(len(other))).sum())
    return _binomial(same, len(other), _AGREE + 1 / len(other))


def _coincidence(a: Tensor, b: Tensor) -> float:
    """log p of so many entries within a hundredth of the spread; repeated values do not count."""
    left, right = a.reshape(-1), b.reshape(-1)
    if left.numel() > 1_000_000:
        left, right = left[:1_000_000], right[:1_000_000]
    _, inverse, counts = left.unique(return_inverse=True, return_counts=True)
    single = (counts == 1)[inverse]
    left, right = left[single], right[single]
    spread = float(left.std()) if left.numel() > 1 else 0.0
    if left.numel() < 20 or spread == 0:
        return 0.0
    near = int(((left - right).abs() < _NEAR * spread).sum())
    return _binomial(near, left.numel(), _COINCIDE)


def _binomial(count: int, total: int, chance: float) -> float:
    if count <= 0 or chance >= 1:
        return 0.0
    tail = float(binom.logsf(count - 1, total, chance))
    return tail if math.isfinite(tail) else _chernoff(count / total, total, chance)


def _chernoff(share: float, total: int, chance: float) -> float:
    """Upper bound of a binomial's log tail, where it underflows."""
    gap = share * math.log(share / chance)
    if share < 1:
        gap += (1 - share) * math.log((1 - share) / (1 - chance))
    return -total * gap


# ---------------------------------------------------------------- layer by layer


def _by_layer(
    space: WeightSpace, a: Mapping[str, Tensor], b: Mapping[str, Tensor], seed: int,
    draws: int = 199,
) -> tuple[dict[str, Any], ...]:
    """Cosine of each tensor pair as they stand, among those of shuffled copies."""
    found = []
    elements = [space.random(seed + 1 + i) for i in range(draws)]
    plain = [GroupElement(space, e.tables) for e in elements]
    for name in a:
        size = float(a[name].norm() * b[name].norm()) or 1.0
        cosine = float((a[name] * b[name]).sum()) / size
        use = plain if a[name].numel() <= 200_000 else plain[:19]
        others = [float((a[name] * act(e, name, b[name])).sum()) / size for e in use]
        p = (1 + sum(other >= cosine for other in others)) / (1 + len(others))
        spread = float(np.std(others)) or 1e-12
        found.append({"tensor": name, "cosine": cosine, "p_value": p,
                      "z": (cosine - float(np.mean(others))) / spread})
    return tuple(found)
