"""More real pairs: ``python -m tests.bench.merge_pairs --split --resnet --gpt --planted``.

Everything is fixed here before it is run: how the parents are trained (on CPU, in minutes), which
unlabelled inputs calibrate, what is scored. Parents, the naive average and the ensemble stand in
every table. Trained nets are kept in ``--nets`` so that a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from metanet.zoo.data import load
from torch import Tensor, nn

import metanet
from metanet.tasks.merge import Runner, Samples, repair
from metanet.tasks.merge.repair import mix
from metanet.tasks.merge.scores import scored
from tests.bench.merge import MLP, flat, midpoint, mnist, summary, train
from tests.bench.merge_gpt import GPTS, SIZES, gpt_tables, kept
from tests.bench.merge_planted import planted_table
from tests.bench.resnet20 import resnet20

State = dict[str, Tensor]


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


def rebasin(told: argparse.Namespace, width: int, a: State, b: State) -> State:
    """``b`` as snimu/rebasin moves it."""
    with tempfile.TemporaryDirectory() as name:
        for file, state in (("a", a), ("b", b)):
            metanet.checkpoint.write_safetensors(state, Path(name) / f"{file}.safetensors")
        subprocess.run([told.python, Path(__file__).with_name("matching_peer.py"), "snimu",
                        f"cifar20x{width} trained", told.peers, name, "1"], check=True,
                       capture_output=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
        return metanet.open(Path(name) / "snimu.safetensors").state_dict()


def resnet_pair(told: argparse.Namespace, width: int) -> dict:
    """Two seeds of ResNet-20."""
    data, folder, epochs = told.data, told.nets, told.epochs
    training, test = (cifar(data, part) for part in ("train", "test"))
    states = [kept(folder / f"resnet20_x{width}_{seed}_{epochs}.safetensors",
                   lambda seed=seed: train_resnet(resnet20(width), training, epochs, seed))
              for seed in (0, 1)]
    runner = Runner(resnet20(width).eval(), example_inputs=torch.randn(2, 3, 32, 32))
    start = time.process_time()
    calib = Samples(training.x[:2000])
    row = midpoint(runner, *states, calib, test)
    seconds = time.process_time() - start
    if told.peers:
        moved = rebasin(told, width, *states)
        middle = mix(states[0], moved, 0.5)
        fixed = repair(runner, states[0], moved, middle, calib.x, method="bn")
        for name, outputs in (("rebasin", runner.outputs(middle, test.x)),
                              ("rebasin, BatchNorm recomputed", fixed.outputs(runner, test.x))):
            found = scored(outputs, test.y)
            row[name] = found.loss, found.accuracy
    return {"seconds": seconds, "scores": row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("split", "resnet", "gpt", "planted"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--nets", type=Path, default=Path("/tmp/metanet-merge-nets"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of ResNet-20")
    parser.add_argument("--widths", type=int, nargs="+", default=[1])
    parser.add_argument("--size", choices=SIZES, default="full", help="of the character GPTs")
    parser.add_argument("--kinds", choices=GPTS, nargs="+", default=[*GPTS], help="of these GPTs")
    parser.add_argument("--peers", type=Path, help="checkouts, for ResNet-20: snimu/rebasin")
    parser.add_argument("--python", default=sys.executable, help="with torch and torchview")
    told = parser.parse_args()
    torch.set_num_threads(1)

    def say(line: str) -> None:
        print(line, flush=True)

    for how in ("halves", "80 : 20", "classes apart") if told.split else ():
        rows = list(split_table(told.data, told.nets, how, told.pairs))
        say("\n".join(summary(f"MNIST MLPs on split data, {how}", rows)))
    for width in told.widths if told.resnet else ():
        row = resnet_pair(told, width)
        say("\n".join(summary(f"CIFAR-10 ResNet-20, width {width}, {told.epochs} epochs of 10,000 "
                              "images", [row])))
    if told.gpt:
        gpt_tables(told.data, told.nets, told.size, told.kinds, say)
    if told.planted:
        planted_table(say)


if __name__ == "__main__":
    main()
