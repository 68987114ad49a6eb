"""One tensor after the other: from the models, through the method, into shards.

Tensors of local safetensors files are mapped, not copied; the result of one tensor is put together
in a buffer that is used again for the next one.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metanet.checkpoint import Checkpoint, natural_sorted, printable
from metanet.checkpoint.info import TensorInfo
from metanet.checkpoint.problems import guarded
from metanet.checkpoint.write import write_safetensors_stream
from metanet.errors import MetanetError
from metanet.tasks.merge.methods import Stack
from metanet.tasks.merge.plan import Job, Origin, Plan

if TYPE_CHECKING:
    from metanet.tasks.merge.alignment import Alignment

SHARD_BYTES = 5_000_000_000
Progress = Callable[[int, int], None]


def anonymous() -> int:
    """Bytes of memory of this process that no file stands behind; 0 where the system is silent."""
    try:
        with open("/proc/self/status", encoding="ascii") as handle:
            lines = handle.read().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def peak() -> int:
    """The most memory that this process has ever held, mapped files included, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(eq=False)
class Stream:
    """Computes tensors of a plan, one at a time.

    ``moves`` brings models into the order of the reference; ``moved`` are models that are in it
    already. ``working`` is the highest anonymous memory seen, in bytes above that at the start.
    """

    plan: Plan
    moves: Mapping[str, Alignment] = field(default_factory=dict)
    moved: Mapping[str, Checkpoint] = field(default_factory=dict)
    working: int = 0

    def __post_init__(self) -> None:
        largest = max((job.info.nbytes for job in self.plan.jobs), default=0)
        self._start = anonymous()
        self._buffer = torch.empty(largest, dtype=torch.uint8)

    def tensor(self, job: Job) -> Tensor:
        """One tensor of the result. It is valid until the next one is computed."""
        if job.values is None:
            return self._read(job.parts[0])
        read = [self._read(origin) for origin in job.parts]
        base = None if job.base is None else self._read(job.base)
        if job.by_token:
            read, base = self._by_token(job, read, base)
        stack = Stack(read, base, job.name, self.plan.recipe.seed)
        out = self._buffer[:job.info.nbytes].view(getattr(torch, job.info.dtype))
        at = 0
        for block in self.plan.method.run(stack, job.values):
            out[at:at + len(block)].copy_(block)
            at += len(block)
        self.working = max(self.working, anonymous() - self._start)
        return out.view(job.info.shape)

    def _read(self, origin: Origin) -> Tensor:
        if origin.model in self.moved:
            return self.moved[origin.model].view(origin.name)
        model = self.plan.models[origin.model]
        move = self.moves.get(origin.model)
        if move is None:
            return model.view(origin.name)
        return move.act(origin.name, model.view(origin.name)).contiguous()

    def _by_token(self, job: Job, read: list[Tensor], base: Tensor | None
                  ) -> tuple[list[Tensor], Tensor | None]:
        if self.plan.vocabulary is None:
            raise MetanetError("no vocabulary to match by")
        # Models may be named twice in a recipe: their tensors are the same one.
        tensors = {o.model: t for o, t in zip(job.parts, read, strict=True)}
        if job.base is not None and base is not None:
            tensors[job.base.model] = base
        fitted = self.plan.vocabulary.gather(tensors)
        root = fitted[job.base.model] if job.base is not None else None
        return [fitted[o.model] for o in job.parts], root


def shards(plan: Plan, limit: int) -> list[list[Job]]:
    """The jobs in natural order, cut where a shard would grow beyond ``limit`` bytes."""
    out: list[list[Job]] = [[]]
    size = 0
    for job in plan.jobs:
        if out[-1] and size + job.info.nbytes > limit:
            out.append([])
            size = 0
        out[-1].append(job)
        size += job.info.nbytes
    return out


def write_weights(stream: Stream, folder: Path, limit: int, metadata: Mapping[str, str],
                  progress: Progress | None = None) -> None:
    """Write ``model.safetensors``, or shards and then their index, into a folder."""
    groups = shards(stream.plan, limit)
    names = ["model.safetensors"] if len(groups) == 1 else [
        f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    done, weight_map = 0, dict[str, str]()
    for name, jobs in zip(names, groups, strict=True):
        held = {job.name: job for job in jobs}
        ties = {a: o for a, o in stream.plan.aliases.items() if o in held}
        infos: dict[str, TensorInfo] = {n: job.info for n, job in held.items()}

        def read(tensor: str, held: Mapping[str, Job] = held) -> Tensor:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, len(stream.plan.jobs))
            return stream.tensor(held[tensor])

        write_safetensors_stream(folder / name, infos, read, metadata, ties)
        weight_map |= dict.fromkeys([*held, *ties], name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": stream.plan.bytes},
                 "weight_map": {n: weight_map[n] for n in natural_sorted(weight_map)}}
        write_small(folder / "model.safetensors.index.json", to_json(index))


def to_json(document: Any) -> bytes:
    """JSON for a file."""
    return (json.dumps(document, indent=2) + "\n").encode("utf-8", "backslashreplace")


def write_small(path: Path, content: bytes) -> None:
    """A small file of a folder that nobody sees yet."""
    with guarded(path, "writing it", "Write to another path, or free the disk"), \
            path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that is gone afterwards, as are those of runs that died."""
    mark = f".{out.name[:64]}.merge-{socket.gethostname()[:32]}-"
    if not out.parent.is_dir():
        raise MetanetError(f"{printable(out)}: the folder {printable(out.parent)} does not exist. "
                           "Create it first.")
    for old in out.parent.glob(f"{_escaped(mark)}*"):
        if not _alive(old.name.removeprefix(mark)):
            shutil.rmtree(old, ignore_errors=True)
    folder = out.parent / f"{mark}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    with guarded(folder, "creating a folder there", "Check that its folder is writable"):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _escaped(text: str) -> str:
    import glob

    return glob.escape(text)


def _alive(number: str) -> bool:
    """Whether a process of this machine runs; what is no number is left alone."""
    if not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def place(fresh: Path, out: Path, force: bool) -> None:
    """Give a finished file or folder its name, in one step where there is none of that name."""
    if not os.path.lexists(out):
        os.rename(fresh, out)
        return
    if not force:
        raise MetanetError(f"{printable(out)}: exists and holds something else. Name another "
                           "output, or add --force (force=True).")
    if fresh.is_file() and not out.is_dir():
        os.replace(fresh, out)
        return
    old = fresh.parent / f"{fresh.name}.old"
    os.rename(out, old)
    os.rename(fresh, out)
