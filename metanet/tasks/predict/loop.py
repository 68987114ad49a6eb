"""The one training loop: every network of every table goes through it.

AdamW, warm-up and cosine, an average of the weights (EMA), early stopping on validation, gradient
accumulation, bfloat16 on CUDA, several processes through torchrun, a JSONL log. A run that is
stopped and resumed on a CPU ends with the same bits as one that was not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from metanet.errors import MetanetError
from metanet.graph import WeightBatch

STATE = "state.safetensors"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        epochs: at most. batch_size: members per step. accumulate: gradients per step.
        lr: the greatest step size. weight_decay: of AdamW. warmup: share of the steps.
        ema: decay per step of the averaged weights, which are what is kept; 0: none.
        patience: epochs without a better validation loss before it stops; None: never.
        clip: norm of the gradient, at most. smooth: label smoothing of classes.
        seed: of the order of members, of dropout and of augmentation.
    """

    epochs: int = 40
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 3e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05
    ema: float = 0.98
    patience: int | None = 15
    clip: float = 1.0
    smooth: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1e6:  # not a number is not in between either
            raise MetanetError(f"a step size (lr) of {self.lr:g} makes no training; try 0.001")

    def rate(self, done: float) -> float:
        """Step size when this share of the training is over: warm-up, then a cosine to zero."""
        return self.lr * min(done / self.warmup if self.warmup else 1.0, 1.0) \
            * (1 + cos(pi * min(done, 1.0))) / 2


@dataclass(frozen=True, eq=False)
class Examples:
    """Members with targets: classes (int64 ``[N]``) or standardised numbers ``[N, outputs]``."""

    batch: WeightBatch
    context: Float[Tensor, "N a"]
    y: Shaped[Tensor, "N ..."]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor) -> Examples:
        return Examples(self.batch[rows], self.context[rows], self.y[rows])

    def to(self, device: torch.device) -> Examples:
        """On a device."""
        return Examples(self.batch.to(device), self.context.to(device), self.y.to(device))


@dataclass
class Progress:
    """Where a training stands; all of it is in the state file."""

    epoch: int = 0
    best: float = float("inf")
    best_epoch: int = -1
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def loss_of(found: Tensor, y: Tensor, smooth: float = 0.0) -> Tensor:
    """Cross-entropy of classes, mean squared error of numbers."""
    if y.dtype == torch.int64:
        return F.cross_entropy(found.float(), y, label_smoothing=smooth)
    return F.mse_loss(found.float(), y)


def train(net: nn.Module, examples: Examples, val: Examples, plan: Plan,
          folder: Path | None = None, stop_after: int | None = None,
          progress: Callable[[int, int], None] | None = None) -> Progress:
    """Train in place; the net ends with the (averaged) weights of the best validation epoch.

    Args:
        net: a ``Reader``, on the device of the examples.
        folder: for the log and the state; a state that lies there is resumed.
        stop_after: epochs after which this call returns, for a training in several calls.
        progress: called with (epochs done, epochs at most).

    Raises:
        MetanetError: if the loss is not finite, or the state in the folder is of another plan.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        measured: Any = net
        measured.measure(examples.batch, examples.context)
        run = _Run(net, plan, folder)
        run.resume()
        started = run.at.epoch
        while run.at.epoch < plan.epochs and not run.tired():
            if progress is not None and not run.rank:
                progress(run.at.epoch, plan.epochs)
            if stop_after is not None and run.at.epoch - started >= stop_after:
                return run.at
            run.one_epoch(examples, val)
        net.load_state_dict(run.kept)
    net.eval()
    return run.at


class _Run:
    """State of one training."""

    def __init__(self, net: nn.Module, plan: Plan, folder: Path | None) -> None:
        self.net, self.plan, self.folder = net, plan, folder
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimiser = torch.optim.AdamW(self.parameters, lr=plan.lr,
                                           weight_decay=plan.weight_decay)
        self.average = _copy(net.state_dict())
        self.kept = _copy(self.average)
        self.at, self.steps = Progress(), 0
        self.size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def tired(self) -> bool:
        """Whether validation has not improved for too long."""
        patience = self.plan.patience
        return patience is not None and self.at.epoch - 1 - self.at.best_epoch >= patience

    def one_epoch(self, examples: Examples, val: Examples) -> None:
        """All members once, then validation of the averaged weights, log and state."""
        start = time.monotonic()
        loss = self._train(examples)
        held = self._validate(val)
        self.at.seconds += time.monotonic() - start
        self.at.curve.append({"epoch": self.at.epoch, "train": loss, "val": held,
                              "seconds": self.at.seconds})
        if held < self.at.best:
            self.at.best, self.at.best_epoch = held, self.at.epoch
            self.kept = _copy(self.average)
        self.at.epoch += 1
        self._store()

    def _train(self, examples: Examples) -> float:
        self.net.train()
        total, seen = 0.0, 0
        groups = list(self._groups(len(examples)))
        for i, group in enumerate(groups):
            for options in self.optimiser.param_groups:
                options["lr"] = self.plan.rate((self.at.epoch + (i + 1) / len(groups))
                                               / self.plan.epochs)
            self.optimiser.zero_grad()
            n = sum(len(rows) for rows in group)
            for rows in group:
                part = examples[rows.to(self.device)]
                with self._cast():
                    loss = loss_of(self.net(part.batch, part.context), part.y, self.plan.smooth)
                (loss * (len(rows) / n)).backward()
                total, seen = total + float(loss.detach()) * len(rows), seen + len(rows)
            self._step()
        if not total < float("inf"):
            raise MetanetError(f"the training loss is {total / max(seen, 1)} in epoch "
                               f"{self.at.epoch}; lower the step size (lr={self.plan.lr})")
        return total / seen

    def _groups(self, n: int) -> Iterator[list[Tensor]]:
        """Rows of this process, as many batches as are accumulated at a time."""
        order = torch.randperm(n)
        order = order[:n - n % self.size] if self.size > 1 else order
        batches = list(order[self.rank::self.size].split(self.plan.batch_size))
        for i in range(0, len(batches), self.plan.accumulate):
            yield batches[i:i + self.plan.accumulate]

    def _step(self) -> None:
        if self.size > 1:
            for p in self.parameters:
                if p.grad is None:  # every process must take part in every sum
                    p.grad = torch.zeros_like(p)
                dist.all_reduce(p.grad)
                p.grad /= self.size
        nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        self.optimiser.step()
        self.steps += 1
        decay = min(self.plan.ema, self.steps / (self.steps + 9)) if self.plan.ema else 0.0
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                kept = self.average[name]
                if value.is_floating_point():
                    kept.lerp_(value, 1 - decay)
                else:
                    kept.copy_(value)

    @torch.no_grad()
    def _validate(self, val: Examples) -> float:
        """Loss of the averaged weights; the same in every process."""
        now = _copy(self.net.state_dict())
        self.net.load_state_dict(self.average)
        self.net.eval()
        total = 0.0
        for rows in torch.arange(len(val), device=self.device).split(256):
            part = val[rows]
            with self._cast():
                total += float(loss_of(self.net(part.batch, part.context), part.y)) * len(rows)
        self.net.load_state_dict(now)
        return total / len(val)

    def _cast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" \
            else nullcontext()

    # ------------------------------------------------------------ state and log

    def resume(self) -> None:
        """Go on from the state in the folder, if there is one."""
        if self.folder is None or not (self.folder / STATE).exists():
            return
        path = self.folder / STATE
        try:
            told, found = _read(path)
            if told["plan"] != self._plan():
                raise MetanetError(f"{path}: is of another training plan; name another folder, or "
                                   "replace it with --force")
            self.net.load_state_dict(found["net"])
            self.average = {name: v.to(self.device) for name, v in found["average"].items()}
            self.kept = {name: v.to(self.device) for name, v in found["kept"].items()}
            self._resume_optimiser(found.get("optimiser", {}))
            self.steps, self.at = int(told["steps"]), Progress(**json.loads(told["at"]))
            torch.set_rng_state(found["rng"]["cpu"])
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise MetanetError(f"{path}: cannot be read as the state of this training ({error}); "
                               "name another folder, or replace it with --force") from error

    def _plan(self) -> str:
        return json.dumps(asdict(self.plan), sort_keys=True)

    def _resume_optimiser(self, found: dict[str, Tensor]) -> None:
        """``NUMBER/WHAT`` → the state of each parameter; the groups follow from the plan."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in found.items():
            number, _, what = key.partition("/")
            state.setdefault(int(number), {})[what] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})

    def _store(self) -> None:
        if self.folder is None or self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        moments = {f"{number}/{what}": value
                   for number, state in self.optimiser.state_dict()["state"].items()
                   for what, value in state.items()}
        every = {"net": self.net.state_dict(), "average": self.average, "kept": self.kept,
                 "optimiser": moments, "rng": {"cpu": torch.get_rng_state()}}
        flat = {f"{part}/{name}": value.detach().clone().contiguous()
                for part, values in every.items() for name, value in values.items()}
        told = {"plan": self._plan(), "steps": str(self.steps), "at": json.dumps(asdict(self.at))}
        part = self.folder / f"{STATE}.part"
        save_file(flat, part, told)
        os.replace(part, self.folder / STATE)
        lines = "".join(json.dumps(point) + "\n" for point in self.at.curve)
        (self.folder / LOG).write_text(lines, encoding="utf-8")


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own memory for every name, also for those that share it."""
    return {name: value.detach().clone() for name, value in state.items()}


def _read(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Tensor]]]:
    """What a state file tells in words, and its tensors by ``PART/NAME``."""
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            part, _, name = key.partition("/")
            found.setdefault(part, {})[name] = file.get_tensor(key)
        return dict(file.metadata() or {}), found


def start_processes() -> tuple[int, int]:
    """Join the process group that torchrun describes, if it does. Returns rank and size."""
    if "RANK" not in os.environ or dist.is_initialized():
        return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()
