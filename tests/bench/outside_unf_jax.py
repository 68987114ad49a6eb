"""The published UNF basis as matrices: ``PYTHON outside_unf_jax.py CHECKOUT OUT.npz`` (needs jax).

Every term of their ``gen_basis``, for each pair of axis specifications, applied to all unit
vectors; and one of their layers with random weights applied to random inputs. The specifications
are read from standard input, as JSON.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_X64"] = "1"

import jax
import jax.numpy as jnp
import numpy as np


def terms(gen_basis, out, inp, sizes):
    shape_in, shape_out = ([sizes[g] for g in spec] for spec in (inp, out))
    count = int(np.prod(shape_in))
    rows = []
    for unit in np.eye(count):
        found = gen_basis(tuple(out), tuple(inp), tuple(shape_out),
                          jnp.asarray(unit.reshape(shape_in)))
        rows.append([np.broadcast_to(np.asarray(t), shape_out).ravel() for t in found])
    # [inputs, terms, outputs] -> [terms, outputs * inputs]
    return np.transpose(np.asarray(rows), (1, 2, 0)).reshape(len(rows[0]), -1)


def main() -> None:
    checkout, place = sys.argv[1:3]
    sys.path.insert(0, checkout)
    from algorithm import gen_basis
    from layers import UNFLayer

    cases = json.load(sys.stdin)
    found, rng = {}, np.random.default_rng(0)
    for i, case in enumerate(cases):
        sizes = case["sizes"]
        specs = case["specs"]
        for a, out in enumerate(specs):
            for b, inp in enumerate(specs):
                found[f"terms_{i}_{a}_{b}"] = terms(gen_basis, out, inp, sizes)
        x = {f"t{k}": jnp.asarray(rng.normal(size=[*(sizes[g] for g in spec), 2]))
             for k, spec in enumerate(specs)}
        spec = {f"t{k}": tuple(spec) for k, spec in enumerate(specs)}
        layer = UNFLayer(3, 2)
        theta = layer.init(jax.random.PRNGKey(i), x, spec)
        out = layer.apply(theta, x, spec)
        for k in range(len(specs)):
            found[f"x_{i}_{k}"], found[f"y_{i}_{k}"] = np.asarray(x[f"t{k}"]), np.asarray(
                out[f"t{k}"])
            found[f"theta_{i}_{k}"] = np.asarray(theta["params"][f"theta_{k}"])
    np.savez(place, **found)


main()
