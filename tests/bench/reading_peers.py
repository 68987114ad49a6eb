"""A PyTorch peer of ``reading``: ``python -m tests.bench.reading_peers PEER DATA SECONDS DIR``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch

from tests.bench.clock import Array, Race
from tests.bench.layer_peers import dws, neural_graph


def main() -> None:
    name, data, seconds, place = sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.path[:0] = [str(place), str(place / "experiments" / "perceiver-pytorch")]
    arrays = {key: torch.from_numpy(value) for key, value in np.load(data).items()}
    race = Race(seconds)
    with contextlib.redirect_stdout(io.StringIO()):
        # Sizes, step sizes and batches of their own trainers.
        net, lr, batch = {
            "peer_dws": lambda: (dws("inr", 1, True)[0], 1e-2, 32),
            "peer_dws_mean": lambda: (dws("inr", 1, False)[0], 1e-2, 32),
            "peer_ng": lambda: (neural_graph("inr", 1, place, "pna")[0], 1e-3, 128)}[name]()

    def logits(part: str, rows: Array) -> torch.Tensor:
        pick = torch.from_numpy(rows)
        ws, bs = (tuple(arrays[f"{part}/{k}{i}"][pick].unsqueeze(-1) for i in range(3))
                  for k in "wb")
        found: torch.Tensor = net((ws, bs))
        return found

    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=5e-4, amsgrad=True)
    y = {part: arrays[f"{part}/y"].numpy() for part in ("train", "val", "test")}
    print(json.dumps(race.torch(net, optimiser, logits, y, batch)))


main()
