"""Recipes: YAML files that say how a zoo is made. Equal recipe and seed give equal bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

from metanet.zoo.card import recipe_hash
from metanet.zoo.draw import Draw, fixed
from metanet.zoo.fit_inr import INR, Fit
from metanet.zoo.typed_yaml import Document, Reader

from metanet.checkpoint.names import no_such
from metanet.errors import ZooError

FOLDER = Path(__file__).parent / "recipes"
ARCHES = ("small-cnn", "mlp", "mnist-cnn21k", "mnist-lenet45k")
ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "leaky_relu")
OPTIMIZERS = ("sgd", "adam", "rmsprop")
INITS = ("default", "kaiming", "xavier", "orthogonal", "normal")
NORMALISATIONS = ("none", "half", "standard")
_NONE, _ALL, _BATCH, _TWO = fixed(0.0), fixed(1.0), fixed(64), fixed(2)
_ADAM, _RELU, _DEFAULT, _STANDARD = map(fixed, ("adam", "relu", "default", "standard"))
# What says how much is made and how it is cut, but not what any one member is.
_FRAME = ("name", "about", "license", "n", "commit", "chunk")


@dataclass(frozen=True)
class Images:
    """Where images come from.

    Attributes:
        name: of the data set, see ``metanet.zoo.data``.
        part: train or test.
        side: resized to this many pixels (bilinear); None leaves them.
        gray: colours averaged away.
    """

    name: str
    part: str = "train"
    side: int | None = None
    gray: bool = False


@dataclass(frozen=True)
class Init:
    """Where coordinate networks start.

    Attributes:
        kind: ``independent`` (each its own), ``shared`` (all the same) or ``meta`` (all the same,
            learned by Reptile on other images of the data set).
        scheme: see :meth:`metanet.zoo.fit_inr.INR.init`.
        rounds: of Reptile.
    """

    kind: str = "independent"
    scheme: str = "dws"
    rounds: int = 100


@dataclass(frozen=True)
class INRRecipe:
    """A zoo of coordinate networks, each fitted to one image.

    Attributes:
        name, about: of the recipe.
        n: networks to make.
        data: the images.
        model, init, fit: how each is made.
        views: networks per image.
        seed: of everything.
        keep_start: the initialisation of every so-many-th network is kept as a member, for the
            leak gate; 0 keeps none.
        chunk: networks fitted together. commit: networks per shard.
        license: of the weights.
    """

    name: str
    about: str
    n: int
    data: Images
    model: INR = field(default_factory=INR)
    init: Init = field(default_factory=Init)
    fit: Fit = field(default_factory=Fit)
    views: int = 1
    seed: int = 0
    keep_start: int = 8
    chunk: int = 8
    commit: int = 128
    license: str = "CC0-1.0"


@dataclass(frozen=True)
class Family:
    """Members that have equal hyper-parameters.

    Attributes:
        size: how many each family has.
        init: ``independent``, or ``shared``: they differ in the order of their data only.
    """

    size: int = 1
    init: str = "independent"


@dataclass(frozen=True)
class Training:
    """How one network is trained; every value may be a draw.

    Attributes:
        lr, weight_decay, batch, steps: of the optimizer.
        optimizer: ``sgd`` (momentum .9), ``adam`` (decoupled decay) or ``rmsprop``.
        activation: of hidden layers.
        init: scheme of the weights; biases start at 0 (``default``: as in torch).
        init_scale: times the weights at the start.
        width: of hidden layers; None for the architecture's own. depth: hidden layers of an MLP.
        fraction: share of the training images that a network sees.
        label_noise: share of its labels that are drawn at random.
        dropout: before Linear layers.
        normalise: ``none`` (pixels in [0, 1]), ``half`` ((x - .5) / .5) or ``standard``.
    """

    lr: Draw
    steps: Draw
    weight_decay: Draw = _NONE
    batch: Draw = _BATCH
    optimizer: Draw = _ADAM
    activation: Draw = _RELU
    init: Draw = _DEFAULT
    init_scale: Draw = _ALL
    width: Draw | None = None
    depth: Draw = _TWO
    fraction: Draw = _ALL
    label_noise: Draw = _NONE
    dropout: Draw = _NONE
    normalise: Draw = _STANDARD


@dataclass(frozen=True)
class NetRecipe:
    """A zoo of classifiers.

    Attributes:
        name, about: of the recipe.
        n: training runs to make.
        data: the images that they learn.
        arch: ``small-cnn``, ``mlp``, ``mnist-cnn21k`` or ``mnist-lenet45k``.
        members: how each is trained.
        family: members with equal hyper-parameters.
        checkpoints: shares of the steps at which a run is kept as a member; 0 is the start.
        train_images: training images that accuracy is measured on; of the test part all are used.
        seed: of everything.
        chunk: runs per task. commit: runs per transaction.
        license: of the weights.
    """

    name: str
    about: str
    n: int
    data: Images
    arch: str
    members: Training
    family: Family = field(default_factory=Family)
    checkpoints: tuple[float, ...] = (1.0,)
    train_images: int = 2000
    seed: int = 0
    chunk: int = 1
    commit: int = 16
    license: str = "CC0-1.0"


Recipe: TypeAlias = "INRRecipe | NetRecipe"
_FACTORIES: dict[str, Any] = {"inr": INRRecipe, "net": NetRecipe}


# ------------------------------------------------------------ reading


def names() -> list[str]:
    """The recipes that come with metanet."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(source: str | os.PathLike[str]) -> Recipe:
    """A recipe by its name, or from a YAML file.

    Raises:
        ZooError: for an unknown recipe, key or value, with its line.
    """
    documents = list(_chain(source))
    return _read(documents, Path(os.fspath(source)).stem)


def parse(text: str, name: str = "recipe") -> Recipe:
    """A recipe from the text of a YAML file."""
    document = Document(text, name)
    return _read([*_bases(document, 0), document], name)


def _chain(source: str | os.PathLike[str], depth: int = 0) -> Iterator[Document]:
    path = Path(source)
    if not path.suffix:
        if str(source) not in names():
            raise ZooError(f"{no_such('recipe', source, names())}, or name a YAML file")
        path = FOLDER / f"{source}.yaml"
    try:
        document = Document(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{path}: cannot be read as a recipe ({error})") from None
    yield from _bases(document, depth)
    yield document


def _bases(document: Document, depth: int) -> Iterator[Document]:
    found = document.pairs(document.root, "").get("base")
    if found is None:
        return
    if depth > 4:
        raise document.fail(found[0], "recipes stand on each other in a circle")
    if found[1].value not in names():  # by name only: a recipe opens no path
        raise document.fail(found[1], no_such("recipe", found[1].value, names()))
    yield from _chain(str(found[1].value), depth + 1)


def _read(documents: list[Document], name: str) -> Recipe:
    reader = Reader(documents)
    given = reader.top()
    given.pop("base", None)
    if "factory" not in given:
        raise ZooError(f"{documents[-1].name}: key 'factory' is missing; it is one of "
                       f"{', '.join(_FACTORIES)}")
    document, _, node = given.pop("factory")[-1]
    named = getattr(node, "value", None)
    if not isinstance(named, str) or named not in _FACTORIES:
        raise document.fail(node, f"factory must be one of {', '.join(_FACTORIES)}")
    if "name" in given:
        raise document.fail(given["name"][-1][1], "the name of a recipe is that of its file")
    found: Recipe = reader.read(_FACTORIES[named], given, name=name)
    _check(found, documents[-1].name)
    return found


def _check(recipe: Recipe, where: str) -> None:
    from metanet.zoo.recipe_checks import problems

    for problem in problems(recipe):
        raise ZooError(f"{where}: {problem}")


# ------------------------------------------------------------ plain data and hashes


def plain(value: Any) -> Any:
    """A recipe as plain data."""
    if isinstance(value, Draw):
        return value.plain()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def factory_of(recipe: Recipe) -> str:
    """``inr`` or ``net``."""
    return "inr" if isinstance(recipe, INRRecipe) else "net"


def key_of(recipe: Recipe) -> str:
    """Hash of all that makes a member what it is: equal for every ``n``."""
    data = {k: v for k, v in plain(recipe).items() if k not in _FRAME}
    return str(recipe_hash({"factory": factory_of(recipe), **data}))
