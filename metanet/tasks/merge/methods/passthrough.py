"""One model as it is, for recipes that stack layers of several models."""

from __future__ import annotations

from collections.abc import Iterator

from metanet.tasks.merge.methods.base import Block, Method, Parameter, Stack, Values


def _passthrough(stack: Stack, values: Values) -> Iterator[Block]:
    scale = values.of("scale")[0]
    for (block,) in stack.blocks():
        yield block if scale == 1.0 else block.mul_(scale)


PASSTHROUGH = Method("passthrough", _passthrough, (Parameter("scale", 1.0, each=True),),
                     models=(1, 1), source="layers of several models stacked")
