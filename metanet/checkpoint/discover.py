"""Finding the state dict inside what people save around it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from metanet.checkpoint.content import Path_
from metanet.checkpoint.info import TensorInfo, is_floating, plain
from metanet.checkpoint.names import printable, some
from metanet.checkpoint.problems import refusal
from metanet.errors import CheckpointError

# Under these keys people keep the weights.
WRAPPERS = frozenset({
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module",
    "weights", "params", "parameters", "state", "net_state_dict", "network_state_dict",
    "model_weights", "model_dict", "net_dict",
})
# Second versions of the same weights: beside another candidate the user must choose.
_TWINS = ("ema", "averag", "swa", "teacher", "target", "shadow", "best_")
MOMENTS = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg",
    "acc_delta", "exp_inf", "param_groups",
})
_MAX_NODES = 400_000
_MAX_REPEATS = 1_000  # a container that is met again and again is a bomb, not a network
_MAX_DEPTH = 64
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Found:
    """The state dict of a tree: stored name -> keys from the root, and what lay around it."""

    wrapper: str
    paths: dict[str, Path_]
    infos: dict[str, TensorInfo]
    metadata: dict[str, Any]


def _items(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _is_optimizer(key: Any, node: Any) -> bool:
    """Whether a container is the state of an optimizer, by its key or by what it holds."""
    word = str(key).lower()
    if "optim" in word or word in MOMENTS:
        return isinstance(node, dict | list)
    if not isinstance(node, dict):
        return False
    keys = {k for k in node if isinstance(k, str)}
    return {"state", "param_groups"} <= keys or bool(keys & MOMENTS)


class Search:
    """Walks one tree; every answer per container is kept, so shared containers cost once."""

    def __init__(self, tree: Any, where: object) -> None:
        self.tree, self.where = tree, where
        self.holds: dict[int, bool] = {}
        self.dotted: dict[int, bool] = {}
        self.matrix: dict[int, bool] = {}
        self.saw_optimizer = _is_optimizer("", tree)

    def has_tensors(self, node: Any, key: Any = "") -> bool:
        """Whether tensors that are no optimizer state lie in or under ``node``."""
        if isinstance(node, TensorInfo):
            return True
        if _is_optimizer(key, node):
            self.saw_optimizer = True
            return False
        if id(node) not in self.holds:
            self.holds[id(node)] = any(
                self.has_tensors(v, k) for k, v in _items(node))
        return self.holds[id(node)]

    def has_dots(self, node: Any) -> bool:
        """Whether tensors under ``node`` have dotted keys, as state dicts have."""
        if id(node) not in self.dotted:
            self.dotted[id(node)] = any(
                "." in str(k) if isinstance(v, TensorInfo) else self.has_dots(v)
                for k, v in _items(node))
        return self.dotted[id(node)]

    def has_matrix(self, node: Any) -> bool:
        """Whether a floating tensor of two or more axes lies under ``node``."""
        if isinstance(node, TensorInfo):
            return len(node.shape) > 1 and is_floating(node.dtype)
        if id(node) not in self.matrix:
            self.matrix[id(node)] = any(self.has_matrix(v) for _, v in _items(node))
        return self.matrix[id(node)]

    def descend(self) -> Path_:
        """Keys from the root to the state dict."""
        node: Any = self.tree
        trail: Path_ = ()
        while (step := self.step(node, trail)) is not None:
            trail = (*trail, step)
            node = node[step]
        return trail

    def step(self, node: Any, trail: Path_) -> Any:
        """The key to go on with, or None where ``node`` is the state dict itself."""
        inner = [(k, v) for k, v in _items(node)
                 if not isinstance(v, TensorInfo) and self.has_tensors(v, k)]
        direct = [v for _, v in _items(node) if isinstance(v, TensorInfo)]
        named = [k for k, _ in inner if str(k).lower() in WRAPPERS]
        if not inner:
            return None
        if any(info.numel > 1 for info in direct) and not named:
            return None
        if len(inner) == 1:
            return inner[0][0]
        rivals = [k for k, v in inner if k not in named
                  and (self.has_dots(v) or self.has_matrix(v) or _is_twin(k))]
        if len(named) == 1 and not rivals:
            return named[0]
        if not named and not any(self.has_dots(v) or _is_twin(k) for k, v in inner):
            return None  # a tree of layers: its levels become dots
        raise self.ambiguous(trail, [k for k, _ in inner])

    def ambiguous(self, trail: Path_, keys: list[Any]) -> CheckpointError:
        """The refusal that offers the parts under ``trail`` by name."""
        names = [".".join(map(str, (*trail, key))) for key in keys]
        return refusal(self.where, f"it holds several state dicts: {some(names, 20)}",
                       f"Choose one: open(src, key={printable(names[0], 80)!r})")

    def flatten(self, node: Any, trail: Path_) -> Iterator[tuple[str, Path_, TensorInfo]]:
        """(dotted name, keys, info) for every tensor under ``node``."""
        budget, repeats, seen = _MAX_NODES, _MAX_REPEATS, set[int]()
        todo: list[tuple[tuple[str, ...], Path_, Any]] = [((), trail, node)]
        while todo:
            words, keys, item = todo.pop()
            budget -= 1
            repeats -= id(item) in seen
            if budget < 0 or repeats < 0 or len(words) > _MAX_DEPTH:
                raise refusal(self.where, "its data is too large or too deeply nested",
                              "Save a flat state dict")
            if isinstance(item, TensorInfo):
                yield ".".join(words), keys, item
            elif self.has_tensors(item, keys[-1] if keys else ""):
                seen.add(id(item))
                todo.extend(((*words, str(k)), (*keys, k), v) for k, v in _items(item))

    def offers(self) -> list[str]:
        """Names of the containers with tensors, for messages."""
        out: list[str] = []
        todo: list[tuple[Path_, Any]] = [((), self.tree)]
        while todo and len(out) < 200:
            trail, node = todo.pop(0)
            for key, item in _items(node):
                if not isinstance(item, TensorInfo) and self.has_tensors(item, key):
                    out.append(".".join(map(str, (*trail, key))))
                    if len(trail) < 4:
                        todo.append(((*trail, key), item))
        return out

    def follow(self, key: str) -> Path_:
        """The keys of a container that the user named, dots between the levels."""
        todo: list[tuple[Path_, str, Any]] = [((), key, self.tree)]
        while todo:
            trail, rest, node = todo.pop()
            if not rest:
                return trail
            for step, item in _items(node):
                word = str(step)
                if isinstance(item, TensorInfo) or not rest.startswith(word):
                    continue
                tail = rest[len(word):]
                if not tail or tail.startswith("."):
                    todo.append(((*trail, step), tail[1:], item))
        offers = self.offers()
        near = difflib.get_close_matches(key, offers, 1, 0.4)
        raise refusal(self.where, f"it has no part {printable(key, 80)!r}",
                      f"It offers: {some(near + [o for o in offers if o not in near])}"
                      if offers else "It is one flat state dict; leave key away")

    def nothing(self) -> CheckpointError:
        """The refusal for a tree without weights."""
        if self.saw_optimizer:
            return refusal(self.where, "it is the state of an optimizer, not weights",
                           "Open the file of the model")
        if isinstance(self.tree, dict | list) and not self.tree:
            return refusal(self.where, "it is an empty state dict", "Save the weights again")
        keys = [str(k) for k, _ in _items(self.tree)]
        holds = f"its keys are {some(keys)}" if keys else f"it holds {printable(self.tree, 80)}"
        return refusal(self.where, f"it holds no tensors; {holds}", "Open the file with weights")


def _is_twin(key: Any) -> bool:
    word = str(key).lower()
    return any(word.startswith(twin) or f"_{twin}" in word for twin in _TWINS)


def _without(node: Any, trail: Path_) -> Any:
    """What lies around the state dict: ``node`` without the container at ``trail``."""
    if not trail:
        return {k: v for k, v in _items(node) if not isinstance(v, TensorInfo | dict | list)}
    rest: dict[Any, Any] = {}
    for key, item in _items(node):
        if key == trail[0] and len(trail) == 1:
            rest.update({k: v for k, v in _items(item)
                         if not isinstance(v, TensorInfo | dict | list)})
        elif key == trail[0]:
            inner = _without(item, trail[1:])
            rest.update({key: inner} if inner else {})
        else:
            rest[key] = "<optimizer state>" if _is_optimizer(key, item) else item
    return rest


def _node(tree: Any, trail: Path_) -> Any:
    for key in trail:
        tree = tree[key]
    return tree


def find(tree: Any, where: object, key: str | None = None) -> Found:
    """The state dict of ``tree``; ``key`` picks a part of it by name.

    Raises CheckpointError: no tensors, an optimizer's state, or several candidates.
    """
    search = Search(tree, where)
    if isinstance(tree, TensorInfo):
        raise refusal(where, f"it holds one bare tensor {tree} without a name",
                      "Save a dict: {'weight': tensor}")
    if not isinstance(tree, dict | list) or not search.has_tensors(tree):
        raise search.nothing()
    trail = search.follow(key) if key is not None else search.descend()
    paths: dict[str, Path_] = {}
    infos: dict[str, TensorInfo] = {}
    for name, keys, info in search.flatten(_node(tree, trail), trail):
        if name in paths:
            raise refusal(where, f"two tensors have the name {printable(name, 80)!r}",
                          "Rename one of them")
        paths[name], infos[name] = keys, info
    if not paths:
        raise refusal(where, f"its part {printable(key, 80)!r} holds no tensors of a model",
                      f"It offers: {some(search.offers())}")
    return Found(".".join(map(str, trail)), paths, infos, plain(_without(tree, trail)))


def strip_prefixes(names: list[str]) -> dict[str, str]:
    """stored name -> name without the ``module.``/``_orig_mod.`` that all of them carry."""
    stripped = list(names)
    while True:
        prefix = next((p for p in PREFIXES if all(
            n.startswith(p) and len(n) > len(p) for n in stripped)), None)
        if prefix is None or not stripped:
            return dict(zip(names, stripped, strict=True))
        stripped = [name.removeprefix(prefix) for name in stripped]


def has_weights(infos: dict[str, TensorInfo]) -> bool:
    """Whether any tensor is of a floating dtype."""
    return any(is_floating(info.dtype) for info in infos.values())
