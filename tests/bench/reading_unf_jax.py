"""UNF of its authors in ``reading``: ``PYTHON reading_unf_jax.py DATA SECONDS CHECKOUT``."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = ("--xla_cpu_multi_thread_eigen=false "
                           "intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from clock import Array, Race

BATCH = 64


def main() -> None:
    data, seconds, checkout = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    sys.path.insert(0, checkout)
    from layers import BatchUNFLayer, nf_relu

    arrays, race = dict(np.load(data)), Race(seconds)
    spec = {f"l{i}": {"w": (i, i + 1), "b": (i + 1,)} for i in range(3)}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, p: Any) -> Any:
            for c_in in (1, 32, 32):
                p = nf_relu(BatchUNFLayer(32, c_in)(p, spec))
            pooled = [x.mean(axis=tuple(range(1, x.ndim - 1))) for x in jtu.tree_leaves(p)]
            return nn.Dense(10)(nn.relu(nn.Dense(128)(jnp.concatenate(pooled, -1))))

    def members(part: str, rows: Array) -> Any:
        return {f"l{i}": {k: arrays[f"{part}/{k}{i}"][rows][..., None] for k in "wb"}
                for i in range(3)}

    net, optimiser = Net(), optax.adamw(1e-3)
    theta = net.init(jax.random.PRNGKey(0), members("train", np.arange(BATCH)))
    state = optimiser.init(theta)

    @jax.jit
    def step(theta: Any, state: Any, p: Any, y: Any) -> Any:
        def loss(theta: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(net.apply(theta, p), y).mean()

        update, state = optimiser.update(jax.grad(loss)(theta), state, theta)
        return optax.apply_updates(theta, update), state

    apply = jax.jit(net.apply)

    def accuracy(part: str) -> float:
        y = arrays[f"{part}/y"]
        found = [np.asarray(apply(theta, members(part, np.arange(i, i + BATCH) % len(y))).argmax(1))
                 for i in range(0, len(y), BATCH)]
        return float((np.concatenate(found)[:len(y)] == y).mean())

    first = members("train", np.arange(BATCH))
    jax.block_until_ready((step(theta, state, first, arrays["train/y"][:BATCH]),
                           apply(theta, first)))  # compiled before the clock starts
    epochs = 0.0
    for rows, epochs in race.batches(len(arrays["train/y"]), BATCH):
        theta, state = step(theta, state, members("train", rows), arrays["train/y"][rows])
        jax.block_until_ready(theta)
        if race.due():
            race.score(epochs, accuracy)
    race.score(epochs, accuracy)
    print(json.dumps(race.points))


main()
