"""torchrun with two gloo ranks: no member twice or missed, and a run that resumes in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from metanet.zoo import Zoo
from small_zoos import member

PROGRAM = Path(__file__).resolve().parent.parent / "ddp_train.py"


def train(zoo: Path, out: Path, stop: int = 0) -> dict[str, torch.Tensor]:
    """Run two ranks for ``stop`` batches each (0: to the end); the weights of the model."""
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
         str(PROGRAM), str(zoo), str(out), str(stop)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"})
    assert done.returncode == 0, done.stderr[-3000:]
    state: dict[str, torch.Tensor] = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    return state


def seen(out: Path, rank: int) -> list[tuple[int, str]]:
    lines = (out / f"seen-{rank}.jsonl").read_text().splitlines()
    return [(epoch, name) for line in lines for epoch, name in json.loads(line)]


def by_hand(zoo: Zoo) -> dict[str, torch.Tensor]:
    """What two ranks should come to: one process that averages the gradients of both."""
    torch.manual_seed(0)
    model = torch.nn.Linear(15, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    streams = [zoo.stream(size=7, seed=5, columns=["test_accuracy"], rank=r, world=2)
               for r in range(2)]
    for _ in range(2):
        for batches in zip(*streams, strict=True):
            optimizer.zero_grad()
            for batch in batches:
                target = torch.from_numpy(batch.columns["test_accuracy"]).float()[:, None]
                found = model(batch.tensors["0.weight"].flatten(1))
                ((found - target).square().mean() / 2).backward()
            optimizer.step()
    return model.state_dict()


def test_two_ranks_train_and_resume(tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "zoo")
    for start in range(0, 53, 11):
        zoo.add([member(i) for i in range(start, min(start + 11, 53))])
    zoo.close()
    out = tmp_path / "out"
    train(zoo.path, out, 3)  # three of four steps of the first epoch
    found = train(zoo.path, out)
    names = Counter(seen(out, 0) + seen(out, 1))
    assert names == {(epoch, f"m{i:03d}"): 1 for epoch in (0, 1) for i in range(53)}
    for rank in (0, 1):
        stream = zoo.stream(size=7, seed=5, rank=rank, world=2)
        want = [(epoch, name) for epoch in (0, 1) for batch in stream for name in batch.ids]
        assert seen(out, rank) == want
    for name, tensor in by_hand(zoo).items():
        assert torch.allclose(found[f"module.{name}"], tensor, rtol=1e-5, atol=1e-7)
