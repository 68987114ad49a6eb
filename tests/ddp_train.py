"""A program for torchrun: a small model trained on a zoo by every rank, stopped and resumed.

Arguments: the zoo, a folder for what it writes, batches to train on before it stops (0: all).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from metanet.zoo import Zoo
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

EPOCHS = 2


def main(folder: Path, out: Path, stop: int) -> None:
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = DistributedDataParallel(torch.nn.Linear(15, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stream = Zoo.open(folder).stream(size=7, seed=5, columns=["test_accuracy"])
    saved = out / "checkpoint.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        stream.load_state_dict(state["stream"])
    seen, done = [], 0
    while stream.epoch < EPOCHS and not (stop and done == stop):
        for batch in stream.loader(1):
            target = torch.from_numpy(batch.columns["test_accuracy"]).float()[:, None]
            loss = (model(batch.tensors["0.weight"].flatten(1)) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch = stream.epoch - (stream.position == 0)
            seen += [[epoch, name] for name in batch.ids]
            done += 1
            if done == stop:
                break
    with (out / f"seen-{stream.rank}.jsonl").open("a") as handle:
        handle.write(json.dumps(seen) + "\n")
    distributed.barrier()
    if stream.rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "stream": stream.state_dict()}, saved)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
