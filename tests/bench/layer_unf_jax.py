"""UNF in JAX, its authors' layers: ``PYTHON layer_unf_jax.py CASE CHECKOUT`` (needs jax, flax).

Every axis may be permuted, as in their specification of an MLP; kernel taps are input channels.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import pairwise
from typing import Any

os.environ["XLA_FLAGS"] = ("--xla_cpu_multi_thread_eigen=false "
                           "intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from measure import peak_mb, report

CASES = {"inr": ([2, 32, 32, 1], 64, 1, 10), "wide": ([2, 128, 128, 128, 3], 16, 1, 10),
         "cnn": ([1, 16, 16, 16, 10], 64, 9, 1)}


def main() -> None:
    case, checkout = sys.argv[1:3]
    sys.path.insert(0, checkout)
    from layers import BatchUNFLayer, nf_relu

    layout, n, taps, outputs = CASES[case]
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    for i, (a, b) in enumerate(pairwise(layout)):
        params[f"l{i}"] = {"w": jnp.asarray(rng.normal(size=(n, a, b, taps)), jnp.float32),
                           "b": jnp.asarray(rng.normal(size=(n, b, taps)), jnp.float32)}
        spec[f"l{i}"] = {"w": (i, i + 1), "b": (i + 1,)}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, p: Any) -> Any:
            for c_in in (taps, 32, 32):
                p = nf_relu(BatchUNFLayer(32, c_in)(p, spec))
            pooled = [x.mean(axis=tuple(range(1, x.ndim - 1))) for x in jtu.tree_leaves(p)]
            return nn.Dense(outputs)(nn.relu(nn.Dense(128)(jnp.concatenate(pooled, -1))))

    def loss(theta: Any, p: Any) -> Any:
        return jnp.mean(net.apply(theta, p) ** 2)

    base, start, net = peak_mb(), time.process_time(), Net()
    theta = net.init(jax.random.PRNGKey(0), params)
    forward, gradient = jax.jit(net.apply), jax.jit(jax.grad(loss))
    jax.block_until_ready((forward(theta, params), gradient(theta, params)))
    started = time.process_time() - start
    report(n, lambda: jax.block_until_ready(forward(theta, params)),
           lambda: jax.block_until_ready(gradient(theta, params)), base, start=started,
           parameters=int(sum(x.size for x in jtu.tree_leaves(theta))),
           versions=f"jax {jax.__version__}")


main()
