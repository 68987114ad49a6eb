"""More real pairs: ``python -m tests.bench.merge_pairs --split --resnet --gpt --planted``.

Everything is fixed here before it is run: how the parents are trained (on CPU, in minutes), which
unlabelled inputs calibrate, what is scored. Parents, the naive average and the ensemble stand in
every table. Trained nets are kept in ``--nets`` so that a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from metanet.zoo.data import load
from torch import Tensor, nn

import metanet
from metanet.tasks.merge import Runner, Samples
from metanet.trace.archs.resnet import CifarResNet, Widths
from tests.bench.merge import MLP, flat, midpoint, mnist, summary, train
from tests.bench.merge_gpt import CONTEXT, GPT, GPTS, gpt_pair, text
from tests.bench.merge_planted import planted_table

State = dict[str, Tensor]
Row = dict[str, tuple[float, float]]


def kept(path: Path, make: Callable[[], State]) -> State:
    """A trained net, made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        metanet.checkpoint.write_safetensors(make(), path)
    return metanet.open(path).state_dict()


# ---------------------------------------------------------------- split data


def parts(samples: Samples, how: str) -> list[Samples]:
    """Two disjoint parts of a training set: halves, classes skewed 80 to 20, classes apart."""
    low = samples.y < 5
    if how == "halves":
        chosen = torch.arange(len(samples)) % 2 == 0
    elif how == "80 : 20":
        draw = torch.rand(len(samples), generator=torch.Generator().manual_seed(0))
        chosen = draw < torch.where(low, 0.8, 0.2)
    else:
        chosen = low
    return [Samples(samples.x[m], samples.y[m]) for m in (chosen, ~chosen)]


def split_table(data: Path, folder: Path, how: str, pairs: int) -> Iterator[dict]:
    """Parents that never saw an image in common."""
    calib, training, test = (flat(s) for s in mnist(data, (0.1307, 0.3081)))
    runner = Runner(MLP(), example_inputs=torch.randn(3, 784))

    def net(seed: int, seen: Samples) -> State:
        torch.manual_seed(seed)
        return train(MLP(), seen, 6, seed)

    for pair in range(pairs):
        states = [kept(folder / f"split_{how.replace(' ', '')}_{pair}_{i}.safetensors",
                       lambda seed=2 * pair + i, seen=seen: net(seed, seen))
                  for i, seen in enumerate(parts(training, how))]
        start = time.process_time()
        row = midpoint(runner, *states, calib, test)
        yield {"seconds": time.process_time() - start, "scores": row}


# ---------------------------------------------------------------- ResNet-20


def resnet20(width: int) -> CifarResNet:
    """ResNet-20 with BatchNorm and option-A shortcuts, ``width`` times as wide."""
    sizes = [16 * width, 32 * width, 64 * width]
    stages = []
    for i, size in enumerate(sizes):
        ins = sizes[max(i - 1, 0)]
        first = Widths(ins, size, size, 1 if i == 0 else 2, "")
        stages.append([first, *[Widths(size, size, size, 1, "")] * 2])
    return CifarResNet(3, stages, "linear", 10)


def cifar(data: Path, part: str) -> Samples:
    """Normalised images."""
    found = load("cifar10", data, part=part)
    x = torch.from_numpy(np.ascontiguousarray(found.x)).float() / 255
    if x.shape[-1] == 3:
        x = x.permute(0, 3, 1, 2).contiguous()
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1)
                       for v in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
    return Samples((x - mean) / deviation, torch.from_numpy(found.y.astype(np.int64)))


def train_resnet(net: nn.Module, seen: Samples, epochs: int, seed: int) -> State:
    """SGD with Nesterov momentum, one-cycle schedule, flips and shifts."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(seen) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, steps, pct_start=0.3)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(seen))[: len(seen) // 128 * 128].split(128):
            x = seen.x[index]
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
            x = torch.roll(x, (int(torch.randint(-3, 4, ())), int(torch.randint(-3, 4, ()))),
                           (-2, -1))
            optimizer.zero_grad()
            F.cross_entropy(net(x), seen.y[index]).backward()
            optimizer.step()
            schedule.step()
    return {name: tensor.detach().clone() for name, tensor in net.eval().state_dict().items()}


def resnet_pair(data: Path, folder: Path, width: int, epochs: int) -> dict:
    """Two seeds of ResNet-20."""
    training, test = (cifar(data, part) for part in ("train", "test"))
    states = [kept(folder / f"resnet20_x{width}_{seed}_{epochs}.safetensors",
                   lambda seed=seed: train_resnet(resnet20(width), training, epochs, seed))
              for seed in (0, 1)]
    runner = Runner(resnet20(width).eval(), example_inputs=torch.randn(2, 3, 32, 32))
    start = time.process_time()
    row = midpoint(runner, *states, Samples(training.x[:2000]), test)
    return {"seconds": time.process_time() - start, "scores": row}


# ---------------------------------------------------------------- transformers


def gpt_table(data: Path, folder: Path, kind: str, steps: int) -> tuple[dict, dict]:
    """Two seeds of a small character GPT: scores of midpoints, and what weights alone reach."""
    train_text, val = text(data, "train"), text(data, "test")
    states = [kept(folder / f"gpt_{kind}_{seed}_{steps}.safetensors",
                   lambda seed=seed: gpt_pair(kind, train_text, steps, seed)) for seed in (0, 1)]
    x = torch.stack([val[i * (CONTEXT + 1):(i + 1) * (CONTEXT + 1)] for i in range(200)])
    test = Samples(x[:, :-1], x[:, 1:])
    calib = torch.stack([train_text[i * CONTEXT:(i + 1) * CONTEXT] for i in range(100)])
    module: GPT = GPTS[kind]().eval()
    runner = Runner(module, example_inputs=torch.zeros(2, CONTEXT, dtype=torch.long))
    start = time.process_time()
    row = midpoint(runner, *states, Samples(calib), test)
    return {"seconds": time.process_time() - start, "scores": row}, row


def shares(row: Row) -> list[str]:
    """Barriers at the middle, in nats and as a share of the naive one."""
    ends = (row["parent A"][0] + row["parent B"][0]) / 2
    whole = row["naive"][0] - ends
    return ["| | barrier at the middle, nats | share of naive |", "|---|---|---|"] + [
        f"| {name} | {loss - ends:.3f} | {(loss - ends) / whole:.1%} |"
        for name, (loss, _) in row.items() if not name.startswith("parent")] + [""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("split", "resnet", "gpt", "planted"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--nets", type=Path, default=Path("/tmp/metanet-merge-nets"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of ResNet-20")
    parser.add_argument("--widths", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=1200, help="of the character GPTs")
    told = parser.parse_args()
    torch.set_num_threads(1)

    def say(line: str) -> None:
        print(line, flush=True)

    for how in ("halves", "80 : 20", "classes apart") if told.split else ():
        rows = list(split_table(told.data, told.nets, how, told.pairs))
        say("\n".join(summary(f"MNIST MLPs on split data, {how}", rows)))
    for width in told.widths if told.resnet else ():
        row = resnet_pair(told.data, told.nets, width, told.epochs)
        say("\n".join(summary(f"CIFAR-10 ResNet-20, width {width}, {told.epochs} epochs of 10,000 "
                              "images", [row])))
    for kind in GPTS if told.gpt else ():
        row, scores = gpt_table(told.data, told.nets, kind, told.steps)
        say("\n".join([*summary(f"Character GPT, {kind}, {told.steps} steps", [row]),
                       *shares(scores)]))
    if told.planted:
        planted_table(say)


if __name__ == "__main__":
    main()
