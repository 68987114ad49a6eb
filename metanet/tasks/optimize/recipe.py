"""Recipes of meta-training, read from YAML."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from metanet.checkpoint.names import no_such, printable
from metanet.errors import MetanetError
from metanet.tasks.optimize.families import tasks_of
from metanet.tasks.optimize.spec import KINDS, WEIGHT_NETS

FOLDER = Path(__file__).parent / "recipes"
ESTIMATORS = ("pes", "es", "backprop", "first-order")


@dataclass(frozen=True)
class Recipe:
    """How a learned optimizer is trained.

    Attributes:
        about: in words.
        kind: of the net; ``unf``, ``gmn`` and ``mlp`` take a single task.
        hidden, depth, base: of the net. design: of what ``context`` reads.
        tasks: names of inner tasks, see ``families``; taken in turn.
        estimator: of the meta-gradient: ``pes`` (persistent evolution strategies, arXiv
            2112.13835), ``es`` (truncated, antithetic), ``backprop`` (through a truncation),
            ``first-order`` (the same, but gradients of the inner loss count as given, as in
            arXiv 1606.04474: no second derivatives, which explode where the inner training is
            chaotic).
        steps: outer steps. truncation: inner steps in each. pairs: antithetic pairs.
        horizon: inner steps of an episode, log-uniform between these two.
        sigma: of the perturbations. lr: of the outer Adam, with a cosine to a tenth.
        reparam: parameters are stored divided by a factor, log-uniform between these two.
        floor: losses enter as ``log(loss + floor · first loss)``.
        late: weight of the end of an episode beside 1 of its start.
        reach: longest step of a tensor over the size of its entries; 0: any.
        seed: of everything.
    """

    about: str = ""
    kind: str = "element"
    hidden: int = 8
    depth: int = 3
    tasks: tuple[str, ...] = ("mlp-digits",)
    estimator: str = "pes"
    steps: int = 1000
    truncation: int = 20
    pairs: int = 8
    horizon: tuple[int, int] = (50, 500)
    sigma: float = 0.03
    lr: float = 0.01
    reparam: tuple[float, float] = (0.5, 2.0)
    floor: float = 0.02
    late: float = 3.0
    seed: int = 0
    design: int = 1
    base: str = "adam"
    reach: float = 0.0

    def __post_init__(self) -> None:
        tasks = tasks_of(self.tasks)
        if self.estimator not in ESTIMATORS:
            raise MetanetError(f"no estimator {printable(self.estimator, 40)!r}; there are "
                               f"{', '.join(ESTIMATORS)}")
        if self.kind not in KINDS:
            raise MetanetError(f"no net of kind {printable(self.kind, 40)!r}; there are "
                               f"{', '.join(KINDS)}")
        if self.kind in WEIGHT_NETS and len(tasks) != 1:
            raise MetanetError(f"a {self.kind} net belongs to one network; name one task, not "
                               f"{len(tasks)}")
        low, high = self.horizon
        if not 1 <= self.truncation <= low <= high:
            raise MetanetError(f"truncation {self.truncation} and horizon {list(self.horizon)} "
                               "must rise")
        positive = (self.steps, self.pairs, self.sigma, self.lr, self.floor, *self.reparam)
        if not 0 <= self.seed < 2**50:
            raise MetanetError(f"seed {self.seed} must be a whole number from 0 to 2^50")
        if not tasks or min(positive) <= 0 or self.reparam[0] > self.reparam[1]:
            raise MetanetError("steps, pairs, sigma, lr, floor and reparam must be positive, and "
                               "reparam must rise")

    @property
    def key(self) -> str:
        """Hash of all that the result depends on."""
        told = {k: v for k, v in asdict(self).items() if k != "about"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def names() -> tuple[str, ...]:
    """The recipes that come with metanet."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load(name: str) -> Recipe:
    """A shipped recipe by its name, or one from a file.

    Raises:
        MetanetError: if there is none, or it is malformed.
    """
    from metanet.zoo.typed_yaml import Document, Reader

    path = FOLDER / f"{name}.yaml" if name in names() else Path(name)
    if not path.is_file():
        raise MetanetError(f"{no_such('recipe', name, names())}, or give a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise MetanetError(f"{printable(name, 80)}: is not text ({error}); this is no recipe") \
            from error
    reader = Reader([Document(text, printable(path.name))])
    found: Recipe = reader.read(Recipe, reader.top())
    return found
