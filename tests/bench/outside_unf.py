"""UNFLinear beside the published one: ``python -m tests.bench.outside_unf --peers DIR --jax PY``.

For every pair of axis specifications that the published code takes (it fails where an axis stands
three times in a tensor, or where two diagonals follow one another), the matrices of its basis terms
and of ours must span the same space; and a published layer with random weights must be one of
ours: the same outputs, once its weights are copied term by term.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metanet.graph import WeightBatch
from metanet.nn import UNFLinear
from metanet.symmetry import WeightSpace
from tests.bench.layers import UNF

HERE = Path(__file__).resolve().parent
# Tensors of a space: the group of each axis; sizes by group, at least the index slots they fill.
CASES = {
    "mlp, all axes": {"specs": [[1, 0], [1], [2, 1], [2]], "sizes": [3, 4, 5]},
    "recurrent": {"specs": [[0, 0], [0, 1], [0]], "sizes": [4, 3]},
    "convolution": {"specs": [[0, 1, 2, 3], [0]], "sizes": [3, 2, 2, 3]},
    "square kernel": {"specs": [[0, 1, 2, 2], [1]], "sizes": [2, 2, 4]},
    "two diagonals apart": {"specs": [[0, 0, 1], [1, 0], [0, 1, 0]], "sizes": [4, 2]},
    "attention": {"specs": [[0, 1], [1, 0], [0]], "sizes": [4, 3]},
}


def matrices(layer: UNFLinear, out: str, inp: str) -> Tensor:
    """One matrix per term from a block to a block, ``[terms, outputs * inputs]``."""
    sizes = {name: grid.sizes for name, grid in layer.basis.grids.items()}
    rows = []
    for term in layer.terms():
        if (term.out, term.inp) == (out, inp):
            shape = (*sizes[out], *sizes[inp])
            at, classes = np.indices(shape), (*term.out_classes, *term.in_classes)
            mask = np.ones(shape)
            for i in range(len(classes)):
                for j in range(i):
                    mask *= (at[i] == at[j]) | (classes[i] != classes[j])
            alone = {c: n for c, n in zip(term.in_classes, sizes[inp], strict=True)
                     if c not in term.out_classes}
            rows.append(mask.ravel() / prod(alone.values()))
    return torch.as_tensor(np.array(rows))


def rank(rows: Tensor) -> int:
    return int(torch.linalg.matrix_rank(rows, atol=1e-9, rtol=1e-9))


def space_of(case: dict[str, list[list[int]]]) -> WeightSpace:
    groups = [f"group g{i} = S({n})" for i, n in enumerate(case["sizes"])]
    tensors = [f"t{k}: " + " ".join(f"g{g}" for g in spec)
               for k, spec in enumerate(case["specs"])]
    return WeightSpace.parse("\n".join(["space v1", *groups, *tensors]))


@torch.no_grad()
def copied(layer: UNFLinear, found: dict[str, np.ndarray], case: int, n: int) -> float:
    """Weights of the published layer copied into ours; the largest difference of outputs."""
    ours = {(t.out, t.inp): [] for t in layer.terms()}
    for term in layer.terms():
        ours[term.out, term.inp].append(term.weight)
    for a in range(n):
        start = 0
        for b in range(n):
            theirs = torch.as_tensor(found[f"terms_{case}_{a}_{b}"])
            mine = matrices(layer, f"t{a}", f"t{b}")
            change = torch.linalg.lstsq(mine.T, theirs.T, driver="gelsd").solution
            theta = torch.as_tensor(found[f"theta_{case}_{a}"][start:start + len(theirs)])
            start += len(theirs)
            for weight, row in zip(ours[f"t{a}", f"t{b}"], change, strict=True):
                weight.copy_(torch.einsum("t,tio->io", row, theta.double()))
    batch = WeightBatch(layer.space, {
        f"t{k}": torch.as_tensor(found[f"x_{case}_{k}"])[None] for k in range(n)})
    out = layer(batch)
    return max(float((out.blocks[f"t{k}"][0] - torch.as_tensor(found[f"y_{case}_{k}"])).abs().max())
               for k in range(n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--jax", required=True, help="interpreter with jax and flax")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/basis.npz"
        subprocess.run([options.jax, str(HERE / "outside_unf_jax.py"),
                        str((options.peers / UNF).resolve()), place], text=True, check=True,
                       input=json.dumps(list(CASES.values())))
        found = dict(np.load(place))
    for i, (name, case) in enumerate(CASES.items()):
        n = len(case["specs"])
        layer = UNFLinear(space_of(case), 2, 3, bias=False).double()
        same = terms = 0
        for a in range(n):
            for b in range(n):
                theirs = torch.as_tensor(found[f"terms_{i}_{a}_{b}"])
                mine = matrices(layer, f"t{a}", f"t{b}")
                ranks = {rank(theirs), rank(mine), rank(torch.cat([theirs, mine])), len(mine),
                         len(theirs)}
                same, terms = same + (len(ranks) == 1), terms + len(theirs)
        print(f"{name}: {terms} terms, spans equal for {same} of {n * n} pairs of tensors; outputs "
              f"with copied weights differ by {copied(layer, found, i, n):.1e}")


if __name__ == "__main__":
    main()
