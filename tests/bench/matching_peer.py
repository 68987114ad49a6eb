"""One peer's weight matching: ``python tests/bench/matching_peer.py PEER CASE DIR FOLDER REPEAT``.

Imports the peer's own code from DIR; stands alone, so that any interpreter with torch runs it.
Prints CPU seconds and ratio; what it moved is FOLDER/PEER.safetensors.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
PT, SNIMU = "themrzmaster+git-re-basin-pytorch", "snimu+rebasin"


class MLP(nn.Module):
    """The names of the first peer's specification."""

    def __init__(self) -> None:
        super().__init__()
        widths = [784, 512, 512, 512, 10]
        for i in range(4):
            setattr(self, f"layer{i}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for i in range(3):
            x = getattr(self, f"layer{i}")(x).relu()
        return self.layer3(x)


def load(path: Path, name: str) -> Any:
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(arch: str, peers: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """A fresh network and the shape of one input."""
    with contextlib.redirect_stdout(io.StringIO()):
        if arch == "mlp":
            return MLP(), (1, 28, 28)
        if arch == "vgg16":
            return load(peers / PT / "models" / "vgg.py", "pt_vgg").VGG("VGG16"), (3, 32, 32)
        wide = int(arch.partition("x")[2])
        if arch.startswith("cifar20"):
            return load(Path(__file__).with_name("resnet20.py"), "own").resnet20(wide), (3, 32, 32)
        net = load(peers / PT / "models" / "resnet.py", "pt_resnet").ResNet(22, wide, 0, 10)
        return net, (3, 32, 32)


def pt(case: str, peers: Path, a: State, b: State, repeat: int) -> dict[str, Any]:
    """themrzmaster/git-re-basin-pytorch, with its own specification."""
    code = load(peers / PT / "utils" / "weight_matching.py", "pt_matching")
    arch = case.split()[0]
    spec = {"mlp": lambda: code.mlp_permutation_spec(3), "vgg16": code.vgg16_permutation_spec}.get(
        arch, code.resnet20_permutation_spec)()
    absent = [k for k in spec.axes_to_perm if k not in a]
    if absent:
        return {"failed": f"its spec names {len(absent)} absent tensors"}
    seconds, found = [], {}
    for _ in range(repeat):
        torch.manual_seed(0)
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            found = code.weight_matching(spec, a, b)
        seconds.append(time.process_time() - start)
    perm = {k: v.long() for k, v in found.items()}
    moved = {k: code.get_permuted_param(spec, perm, k, b) if k in spec.axes_to_perm else v
             for k, v in b.items()}
    return {"cpu": statistics.median(seconds), "moved": moved}


def snimu(case: str, peers: Path, a: State, b: State, repeat: int) -> dict[str, Any]:
    """snimu/rebasin, with its tracing."""
    sys.path.insert(0, str(peers / SNIMU))
    from rebasin import PermutationCoordinateDescent

    one, shape = network(case.split()[0], peers)
    other = copy.deepcopy(one)
    one.load_state_dict(a)
    seconds = []
    for _ in range(repeat):
        other.load_state_dict(b)
        moved = copy.deepcopy(other.eval())
        torch.manual_seed(0)
        start = time.process_time()
        PermutationCoordinateDescent(one.eval(), moved, torch.randn(2, *shape)).rebasin()
        seconds.append(time.process_time() - start)
    return {"cpu": statistics.median(seconds), "moved": moved.state_dict()}


def ratio(a: State, b: State, moved: State) -> float:
    """Squared distance after and before, over learned tensors."""
    names = [n for n in a if a[n].is_floating_point() and "running" not in n]
    total = sum(float((a[n] - b[n]).double().square().sum()) for n in names)
    return sum(float((a[n] - moved[n]).double().square().sum()) for n in names) / total


def main() -> None:
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    who, case, peers, folder, repeat = sys.argv[1:6]
    a, b = (load_file(Path(folder) / f"{name}.safetensors") for name in "ab")
    run = {"pt": pt, "snimu": snimu}[who]
    row = run(case, Path(peers), a, b, int(repeat))
    if "moved" in row:
        moved = {name: tensor.contiguous() for name, tensor in row.pop("moved").items()}
        save_file(moved, Path(folder) / f"{who}.safetensors")
        row["ratio"] = ratio(a, b, moved)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
