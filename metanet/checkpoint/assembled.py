"""A checkpoint whose tensors are put together from those of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from metanet.checkpoint.checkpoint import Checkpoint
from metanet.checkpoint.content import Content, Path_
from metanet.checkpoint.info import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor


class Assembled(Checkpoint):
    """Some tensors of ``base`` as they are, and some that ``read`` makes from it when asked.

    Args:
        base: where all bytes come from; provenance and metadata are its own.
        kept: names of ``base`` that stay.
        made: name → shape and dtype of the tensors that ``read`` makes.
        read: name of a made tensor → its values.
    """

    def __init__(
        self, base: Checkpoint, kept: Iterable[str], made: Mapping[str, TensorInfo],
        read: Callable[[str], Tensor],
    ) -> None:
        def one(where: Path_) -> Tensor:
            name = str(where[0])
            return read(name) if name in made else base.view(name)

        tree = {name: base.info(name) for name in kept} | dict(made)
        source = base.source
        content = Content(tree, one, source.files, source.format, base.metadata, base._fetch)
        super().__init__(content, source.uri, source.revision)
        self.base, self.source = base, source
        self.wrapper, self.metadata = base.wrapper, base.metadata
