"""Layout: the names, shapes and dtypes that members of one shard share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from metanet.checkpoint.info import TensorInfo
from metanet.checkpoint.names import natural_sorted, printable
from metanet.checkpoint.safetensors_file import DTYPES
from metanet.errors import ZooError

if TYPE_CHECKING:
    from torch import Tensor

_STORED = frozenset(DTYPES.values())


@dataclass(frozen=True)
class Layout:
    """What a state dict looks like, and the space it belongs to.

    Attributes:
        tensors: (name, shape, dtype) of every tensor, tied ones once, in natural order.
        aliases: (alias, owner) of tied tensors, in natural order.
        space: digest of the WeightSpace, or None where it is not known.
    """

    tensors: tuple[tuple[str, tuple[int, ...], str], ...]
    aliases: tuple[tuple[str, str], ...] = ()
    space: str | None = None

    @cached_property
    def signature(self) -> str:
        """JSON of names, shapes, dtypes and ties; equal for equal state-dict layouts."""
        tensors = [[name, list(shape), dtype] for name, shape, dtype in self.tensors]
        return json.dumps({"tensors": tensors, "aliases": [list(pair) for pair in self.aliases]},
                          separators=(",", ":"), ensure_ascii=True)

    @cached_property
    def key(self) -> str:
        """Hex sha256 of signature and space: members of equal key stand in the same shards."""
        return hashlib.sha256(f"{self.signature}\n{self.space or ''}".encode()).hexdigest()

    @property
    def n_parameters(self) -> int:
        """Elements of one member, buffers included, tied ones once."""
        return sum(TensorInfo(shape, dtype).numel for _, shape, dtype in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of one member."""
        return sum(TensorInfo(shape, dtype).nbytes for _, shape, dtype in self.tensors)

    @classmethod
    def parse(cls, signature: str, space: str | None) -> Layout:
        """The layout of a stored signature.

        Raises:
            ZooError: if the text is not one.
        """
        try:
            found = json.loads(signature)
            tensors = tuple((str(n), tuple(int(d) for d in s), str(t))
                            for n, s, t in found["tensors"])
            aliases = tuple((str(a), str(o)) for a, o in found["aliases"])
        except (ValueError, TypeError, KeyError) as error:
            raise ZooError(f"the index holds a layout that cannot be read ({error}); "
                           "the zoo is damaged: pull or build it again") from None
        names = {name for name, _, _ in tensors}
        if (any(dtype not in _STORED for _, _, dtype in tensors)
                or any(o not in names or a in names for a, o in aliases)):
            raise ZooError("the index holds a layout with an unknown dtype or a loose alias; "
                           "the zoo is damaged: pull or build it again")
        return cls(tensors, aliases, space)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], space: str | None = None, lead: int = 0) -> Layout:
        """Layout of a state dict; with ``lead=1`` of stacked tensors ``[n, …]``.

        Tensors that share their memory are ties; the owner is the first name in natural order.
        """
        owners: dict[tuple[Any, ...], str] = {}
        tensors, aliases = [], []
        for name in natural_sorted(weights):
            tensor = weights[name]
            owner = owners.setdefault(_place(tensor), name) if tensor.numel() else name
            if owner != name:
                aliases.append((name, owner))
                continue
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in _STORED:
                raise ZooError(f"tensor {printable(name, 80)!r} has dtype {dtype}, which a zoo "
                               "cannot hold; convert it first")
            tensors.append((name, tuple(tensor.shape[lead:]), dtype))
        if not tensors:
            raise ZooError("a member without a tensor cannot be added; give its state dict")
        return cls(tuple(tensors), tuple(aliases), space)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
