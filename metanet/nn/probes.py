"""Probes: learned inputs that are run through the networks themselves.

What a network answers to fixed inputs is the same for every member of its orbit, whatever the
group (ProbeGen, arXiv 2410.10811; neural graphs, arXiv 2403.12143, give the answers of hidden
neurons to those neurons). No data are needed; the code of the network is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod, sqrt
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.graph.pack import join, split
from metanet.nn.unf import check_input, short
from metanet.symmetry import TensorSpec, WeightSpace
from metanet.symmetry.axis import occurrences

_LAST = (nn.Linear,)
_SECOND = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
GIVES = ("outputs", "neurons")

_Answer: TypeAlias = tuple[Tensor, list[Tensor]]


class Probes(nn.Module):
    """Answers of every member of a batch to ``n`` learned inputs.

    Args:
        space: the space of the module; its weights come from the batch (channel 0).
        module: the network, one float input ``[batch, *shape]``, one output ``[batch, …]``. Its
            code is kept, in evaluation mode; its weights and it are in no state dict.
        n: inputs.
        shape: of one input.
        generator: width of a deep linear generator of the inputs (ProbeGen), which keeps them
            smooth; 0: every number of the inputs is a parameter of its own.
        give: ``outputs``: a tensor ``[N, c_out]``; ``neurons``: a WeightBatch of ``space_out``
            with ``n`` channels, the answers of hidden neurons (outputs of linear, convolution and
            batch-norm modules, averaged over places), equivariant.
        chunk: members that run at once; by default all.

    Attributes:
        c_out: width of the answers at the output.
        space_out: one tensor per watched module, named as it, with its neurons' axis.

    Raises:
        SymmetryError: if the module takes no such input, or no member of ``give`` is known.
    """

    coupled = True

    def __init__(self, space: WeightSpace, module: nn.Module, n: int, shape: Sequence[int], *,
                 generator: int = 0, give: str = "outputs", chunk: int | None = None) -> None:
        super().__init__()
        if give not in GIVES or n < 1:
            raise SymmetryError(f"Probes(n={n!r}, give={give!r}): n must be at least 1, give one "
                                f"of {', '.join(GIVES)}")
        self.space, self.c_in, self.n, self.shape = space, 1, n, tuple(shape)
        self.give, self.chunk, size = give, chunk, prod(shape)
        # In a tuple, so that it is no submodule: its weights are the members', not ours.
        self._held = (copy.deepcopy(module).requires_grad_(False).eval(),)
        if generator:
            parts = [torch.randn(n, generator), *(torch.randn(generator, width) / sqrt(generator)
                                                  for width in (generator, size))]
            self.parts = nn.ParameterList(nn.Parameter(part) for part in parts)
        else:
            self.parts = nn.ParameterList([nn.Parameter(torch.randn(n, size))])
        self.watched = _watched(space, self._held[0])
        self.c_out, heard = self._rehearse()
        self.watched = {name: spec for name, spec in self.watched.items() if name in heard}
        self.space_out = _space_of(space, self.watched) if self.watched else None
        if give == "neurons" and self.space_out is None:
            raise SymmetryError("no linear or convolution module of the network has neurons that "
                                "the space permutes; take give='outputs'")

    @property
    def inputs(self) -> Float[Tensor, " n *shape"]:
        """The inputs, as they are now."""
        found: Tensor = self.parts[0]
        for part in list(self.parts)[1:]:
            found = found @ part
        return found.reshape(self.n, *self.shape)

    def forward(self, batch: WeightBatch) -> Any:
        """``[N, *factors, 1 or more]`` → answers ``[N, c_out]``, or those of neurons."""
        outputs, neurons = self.answers(batch)
        return outputs if self.give == "outputs" else neurons

    def answers(self, batch: WeightBatch) -> tuple[Tensor, WeightBatch | None]:
        """Both kinds of answers, in one run.

        Raises:
            SpaceMismatch: if the batch is of another space.
        """
        check_input(self.space, batch.channels, batch)
        tensors = {name: join(self.space, name, batch.blocks, 1)[..., 0]
                   for name in self.space.tensors}
        module, probes = self._module(batch), self.inputs.to(batch.device, batch.dtype)
        with _listening(module, self.watched) as heard:
            def one(state: dict[str, Tensor]) -> _Answer:
                heard.clear()
                found = functional_call(module, state, (probes,))
                return found.flatten(1), [_mean(heard[name]) for name in self.watched]

            outputs, answers = vmap(one, chunk_size=self.chunk)(tensors)
        return outputs.flatten(1), self._batch(batch, answers)

    def _batch(self, batch: WeightBatch, answers: list[Tensor]) -> WeightBatch | None:
        if self.space_out is None:
            return None
        blocks: dict[str, Tensor] = {}
        named = dict(zip(self.watched, answers, strict=True))
        for name in self.space_out.tensors:
            # [N, n, neurons] -> [N, neurons, n]
            blocks.update(split(self.space_out, name, named[name].transpose(1, 2), 1))
        return WeightBatch(self.space_out, blocks, batch.names)

    def _module(self, batch: WeightBatch) -> nn.Module:
        """The module, with what is not in the space (buffers) where the batch is."""
        module = self._held[0]
        like = next((t for t in (*module.parameters(), *module.buffers())
                     if t.is_floating_point()), None)
        if like is not None and (like.dtype, like.device) != (batch.dtype, batch.device):
            module.to(batch.device, batch.dtype)
        return module

    @torch.no_grad()
    def _rehearse(self) -> tuple[int, set[str]]:
        module = self._held[0]
        like = next(iter(module.parameters()), torch.zeros(1))
        with _listening(module, self.watched) as heard:
            try:
                found = module(self.inputs.to(like))
            except (RuntimeError, TypeError, ValueError) as error:
                raise SymmetryError(f"the module takes no input of shape {(self.n, *self.shape)}: "
                                    f"{str(error).splitlines()[0]}") from error
            if not isinstance(found, Tensor) or found.shape[:1] != (self.n,):
                raise SymmetryError("the module must give one tensor with the batch as its first "
                                    "axis; wrap it in a module that does")
            sound = {name for name, values in heard.items()
                     if all(value.shape[0] == self.n for value in values)}
            return found[0].numel() * self.n, sound

    def __repr__(self) -> str:
        return (f"Probes({short(self.space)}, {self.n} inputs of {self.shape} -> {self.c_out} "
                f"answers, {len(self.watched)} modules watched)")


def _watched(space: WeightSpace, module: nn.Module) -> dict[str, TensorSpec]:
    """Modules whose outputs are neurons of the space, each with its axis."""
    found = {}
    for name, child in module.named_modules():
        weight = f"{name}.weight"
        if not isinstance(child, (*_LAST, *_SECOND)) or (weight not in space.tensors
                                                         and weight not in space.aliases):
            continue
        axis = space.normal_axes(weight)[0]
        spec = TensorSpec((space.tensors[space.owner(weight)].shape[0],), (axis,))
        try:
            _space_of(space, {name: spec})
        except SymmetryError:  # fibred over a group that stands on another axis, or all fixed
            continue
        found[name] = spec
    return found


def _space_of(space: WeightSpace, tensors: dict[str, TensorSpec]) -> WeightSpace:
    labels = {found.label for spec in tensors.values() for axis in spec.axes
              for found in occurrences(axis)}
    groups = [group for group in space.normal_groups if group.label in labels]
    if not groups:
        raise SymmetryError("these axes have no group")
    return WeightSpace(groups, tensors)


@contextmanager
def _listening(module: nn.Module, watched: dict[str, TensorSpec]
               ) -> Iterator[dict[str, list[Tensor]]]:
    """Outputs of the watched modules ``[n, …, neurons]``, one entry per call."""
    heard: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def listen(child: nn.Module, inputs: Any, output: Tensor) -> None:
            value = output if isinstance(child, _LAST) else output.movedim(1, -1)
            heard.setdefault(name, []).append(value)
        return listen

    handles = [child.register_forward_hook(hook(name))
               for name, child in module.named_modules() if name in watched]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _mean(values: list[Tensor]) -> Tensor:
    """``[n, neurons]``: over calls and places."""
    flat = [value.reshape(value.shape[0], -1, value.shape[-1]).mean(1) for value in values]
    return flat[0] if len(flat) == 1 else torch.stack(flat).mean(0)
