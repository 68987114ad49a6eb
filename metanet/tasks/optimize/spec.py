"""Learned nets as plain data: what they read, how many weights they have, files and hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import log, sqrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metanet.checkpoint.names import printable
from metanet.errors import MetanetError

WEIGHT_NETS = ("unf", "gmn", "mlp")
KINDS = ("element", "context", *WEIGHT_NETS)
FORMAT = "metanet.optimizer"
BASE = 1e-3
LEAST = 0.05
DESIGNS = (1, 2)
_BASIC, _POOLED, _CONTEXT, _SCALE = 10, 2, 6, 7
_ENTRY, _WEIGHT = (0.9, 0.99, 0.999), (0.9, 0.1, 0.5, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Spec:
    """What a learned net is.

    Attributes:
        kind: ``element`` (per-entry MLP, after Celo2, arXiv 2602.19142), ``context`` (the same
            with the statistics of the neurons that an entry touches), ``unf`` or ``gmn`` (a
            network over the weights, arXiv 2402.05232 and 2403.12143), ``mlp`` (what these are
            held against: the same inputs and outputs, each entry on its own).
        hidden: width of the hidden layers.
        depth: layers of ``unf``, ``gmn`` and ``mlp``.
        base: what these three are residuals on: ``adam`` or ``momentum``.
        space: digest of the space that such a net belongs to, else empty.
        design: what ``context`` reads of a neuron: 1, how large v is over what enters it and over
            what leaves it, and how steady its gradients are; 2, how steady they are over a short
            and over a long span, and whether its weights grow; read also by the net of lengths.
        width: of the widest matrix that it was trained on (entries that one output reads); steps
            on wider ones shrink in proportion (after arXiv 2203.03466 and 2406.00153). 0: never.
        reach: longest step of a tensor as a share of the root mean square of its entries, which
            counts as ``LEAST`` where it is less (after arXiv 1904.00962). 0: any.
    """

    kind: str = "element"
    hidden: int = 8
    depth: int = 3
    base: str = "adam"
    space: str = ""
    design: int = 1
    width: int = 0
    reach: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MetanetError(f"no learned net of kind {self.kind!r}; there are "
                               f"{', '.join(KINDS)}")
        if self.base not in ("adam", "momentum"):
            raise MetanetError(f"base={self.base!r} is not known; known are adam and momentum")
        if self.design not in DESIGNS:
            raise MetanetError(f"design={self.design} is not known; known are 1 and 2")
        if not self.reach >= 0:
            raise MetanetError(f"reach={self.reach} must not be negative")
        if not 1 <= self.hidden <= 256 or not 1 <= self.depth <= 16:
            raise MetanetError(f"hidden={self.hidden}, depth={self.depth} is out of range: at "
                               "most 256 and 16")

    @property
    def decays(self) -> tuple[float, ...]:
        """Decays of the momenta; the first one is that of Adam."""
        return _WEIGHT if self.structured else _ENTRY

    @property
    def square(self) -> float:
        """Decay of the mean square of the gradient."""
        return 0.999

    @property
    def structured(self) -> bool:
        """Whether the net is a network over the weights, and so belongs to one space."""
        return self.kind in WEIGHT_NETS

    @property
    def inputs(self) -> int:
        """Features of an entry."""
        return _BASIC + _POOLED + (_CONTEXT if self.kind == "context" else 0)

    @property
    def messages(self) -> bool:
        """Whether the net of lengths reads the neurons of a tensor."""
        return self.kind == "context" and self.design == 2

    @cached_property
    def pieces(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the weights of a per-entry net, in the order of the vector."""
        h, facts = self.hidden, _SCALE + (_CONTEXT if self.messages else 0)
        return {"w1": (h, self.inputs), "b1": (h, 1), "w2": (h, h), "b2": (h, 1), "w3": (2, h),
                "b3": (2, 1), "s1": (h, facts), "c1": (h, 1), "s2": (1, h), "c2": (1, 1)}

    def start(self, seed: int = 0) -> Float[Tensor, " n"]:
        """Weights of a per-entry net that is Adam at a step size of 0.001."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for name, shape in self.pieces.items():
            value = torch.zeros(shape)
            if name in ("w1", "w2", "s1"):
                value = torch.randn(shape, generator=generator) / sqrt(shape[1])
            found.append(value.flatten())
        return torch.cat(found)

    def unpack(self, theta: Float[Tensor, "R n"]) -> dict[str, Tensor]:
        """``[R, n]`` → name → ``[R, *shape]``."""
        found, at = {}, 0
        for name, shape in self.pieces.items():
            size = shape[0] * shape[1]
            found[name] = theta[:, at:at + size].view(-1, *shape)
            at += size
        if at != theta.shape[1]:
            raise MetanetError(f"a net of kind {self.kind} and width {self.hidden} has {at} "
                               f"weights, not {theta.shape[1]}")
        return found


@dataclass(frozen=True, eq=False)
class Net:
    """A learned net: its description, its weights, and what is known of its training.

    Attributes:
        spec: what it is.
        theta: all weights as one float32 vector.
        about: plain data: recipe, steps, seeds. Does not count in the hash.
    """

    spec: Spec
    theta: Float[Tensor, " n"]
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """Hex sha256 of description and weights; what has its usual value is not told, so that
        options can be added."""
        told = {k: v for k, v in asdict(self.spec).items() if v != getattr(Spec, k)}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        digest.update(self.theta.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def with_theta(self, theta: Tensor) -> Net:
        """The same net with other weights."""
        return replace(self, theta=theta.detach().clone().float())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file."""
        told = {"format": FORMAT, "spec": json.dumps(asdict(self.spec)),
                "about": json.dumps(dict(self.about))}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        save_file({"theta": self.theta.detach().cpu().float().contiguous()}, part, told)
        os.replace(part, target)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Net:
        """Read what ``save`` wrote.

        Raises:
            MetanetError: if it is something else.
        """
        shown = printable(str(path))
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                if told.get("format") != FORMAT:
                    raise MetanetError(f"{shown}: is no learned optimizer of metanet")
                spec = Spec(**json.loads(told["spec"]))
                net = cls(spec, file.get_tensor("theta").float(), json.loads(told["about"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise MetanetError(f"{shown}: cannot be read as a learned optimizer ({error})") \
                from error
        if not spec.structured:
            spec.unpack(net.theta[None])
        if not bool(net.theta.isfinite().all()):
            raise MetanetError(f"{shown}: has weights that are not finite")
        return net


def fresh(kind: str = "element", hidden: int = 8, seed: int = 0, design: int = 1) -> Net:
    """An untrained per-entry net: it steps as Adam does."""
    spec = Spec(kind, hidden, design=design)
    return Net(spec, spec.start(seed), {"trained": False})


LOG_MOST = log(30.0)
"""Logarithm of the largest factor by which a net may change the length of Adam's step."""
