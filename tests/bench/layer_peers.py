"""One peer of ours in PyTorch: ``python -m tests.bench.layer_peers PEER CASE CHECKOUT``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from tests.bench.measure import peak_mb, report

LAYOUTS = {"inr": [2, 32, 32, 1], "cnn": [1, 16, 16, 16, 10], "wide": [2, 128, 128, 128, 3]}
Pair = tuple[nn.Module, Callable[[], Tensor]]


def inputs(case: str, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights ``[n, in, out, taps]`` and biases ``[n, out, 1]``."""
    layout = LAYOUTS[case]
    pairs = list(pairwise(layout))
    taps = [9 if case == "cnn" and i < len(pairs) - 1 else 1 for i in range(len(pairs))]
    ws = [torch.randn(n, a, b, k) * .1 for (a, b), k in zip(pairs, taps, strict=True)]
    return ws, [torch.randn(n, b, 1) * .1 for b in layout[1:]]


def dws(case: str, n: int, sab: bool) -> Pair:
    """The configuration of its trainer; or with means, without attention and batch norm."""
    from nn.models import DWSModelForClassification

    ws, bs = inputs(case, n)
    net = DWSModelForClassification(
        weight_shapes=tuple(w.shape[1:3] for w in ws), bias_shapes=tuple(b.shape[1:2] for b in bs),
        input_features=1, hidden_dim=32, n_hidden=4, reduction="max" if sab else "mean",
        n_fc_layers=1,
        set_layer="sab" if sab else "ds", n_out_fc=1, dropout_rate=0.0, bn=sab, diagonal=False)
    return net, lambda: net((tuple(ws), tuple(bs)))


def nfn(case: str, n: int) -> Pair:
    """HNP with the channels of its predictor of generalisation."""
    from functools import partial

    from experiments.models import InvariantNFN, MlpHead
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat

    ws, bs = inputs(case, n)
    square = [w.permute(0, 3, 2, 1).contiguous() if w.shape[-1] == 1 else
              w.permute(0, 2, 1, 3).reshape(n, 1, w.shape[2], w.shape[1], 3, 3) for w in ws]
    x = WeightSpaceFeatures(square, [b.permute(0, 2, 1).contiguous() for b in bs])
    net = InvariantNFN(network_spec_from_wsfeat(x, set_all_dims=True), [16, 16, 5],
                       partial(MlpHead, sigmoid=True, num_out=1), mode="HNP", normalize=False)
    return net, lambda: net(x)


def neural_graph(case: str, n: int, checkout: Path, model: str) -> Pair:
    """Its configuration of INR classification: PNA of width 32 or NG-T of width 64, 4 layers."""
    import hydra

    _shims()
    if case == "cnn":
        return _ng_cnn(n, checkout)
    folder = checkout / "experiments/inr_classification/configs"
    with hydra.initialize_config_dir(version_base=None, config_dir=str(folder)):
        config = hydra.compose(config_name="base", overrides=[f"model={model}"])
    config.data.stats = None
    net = hydra.utils.instantiate(config.model, layer_layout=list(LAYOUTS[case]))
    ws, bs = inputs(case, n)
    return net, lambda: net((tuple(ws), tuple(bs)))


def _ng_cnn(n: int, checkout: Path) -> Pair:
    """The same backbone from its configuration of CNN generalisation, on graphs made beforehand."""
    import hydra
    from omegaconf import OmegaConf
    from torch_geometric.data import Batch, Data

    OmegaConf.register_new_resolver("prod", lambda a, b: a * b)
    folder = checkout / "experiments/cnn_generalization/configs"
    with hydra.initialize_config_dir(version_base=None, config_dir=str(folder)):
        config = hydra.compose(config_name="base", overrides=["model=pna"])
    net = hydra.utils.instantiate(config.model)
    layout = LAYOUTS["cnn"]
    ws, bs = inputs("cnn", n)
    starts = [sum(layout[:i]) for i in range(len(layout) + 1)]
    edges = torch.cat([torch.cartesian_prod(torch.arange(a, b), torch.arange(b, c)).T
                       for a, b, c in zip(starts, starts[1:], starts[2:], strict=False)], 1)
    features = torch.cat([nn.functional.pad(w, (0, 9 - w.shape[-1])).flatten(1, 2) for w in ws], 1)
    nodes = torch.cat([torch.zeros(n, layout[0], 1), *bs], 1)
    graphs = Batch.from_data_list([
        Data(x=x, edge_index=edges, edge_attr=e, layer_layout=layout, conv_mask=[1, 1, 1, 0],
             fmap_size=1) for x, e in zip(nodes, features, strict=True)])
    return net, lambda: net(graphs)


def scalegmn(case: str, n: int, checkout: Path) -> Pair:
    """Its own configuration of MNIST INRs: width 128, 4 layers; graphs are made beforehand."""
    _shims()
    import yaml
    from src.data.data_utils import get_edge_types, get_node_types, nn_to_edge_index, to_pyg_batch
    from src.scalegmn.models import ScaleGMN
    from torch_geometric.data import Batch

    layout = LAYOUTS[case]
    text = (checkout / "configs/mnist_cls/scalegmn.yml").read_text(encoding="utf-8")
    options = yaml.safe_load(text)["scalegmn_args"] | {"layer_layout": layout}
    ws, bs = inputs(case, n)
    starts = [sum(layout[:i]) for i in range(len(layout) + 1)]
    hidden = torch.zeros(starts[-1], 1, dtype=torch.bool)
    hidden[layout[0]:-layout[-1]] = True
    nodes = torch.cat([torch.ones(n, layout[0], 1), *bs], 1)
    edges = torch.zeros(n, starts[-1], starts[-1], 1)
    for a, b, c, w in zip(starts, starts[1:], starts[2:], ws, strict=False):
        edges[:, a:b, b:c] = w
    graphs = Batch.from_data_list([
        to_pyg_batch(x, e, nn_to_edge_index(layout, "cpu"), node2type=get_node_types(layout),
                     edge2type=get_edge_types(layout), direction=options["direction"], label=0,
                     hidden_nodes=hidden)[0] for x, e in zip(nodes, edges, strict=True)])
    net = ScaleGMN(options)
    return net, lambda: net(graphs.clone())


def _shims() -> None:
    """Stand-ins for what its package imports beside the layers, none of it on a timed path."""
    import importlib
    from importlib.machinery import ModuleSpec
    from unittest.mock import MagicMock

    for name in ("torchvision", "torchvision.transforms", "torchvision.utils",
                 "torchvision.datasets"):
        sys.modules[name] = MagicMock(name=name, __path__=[], __spec__=ModuleSpec(name, None))
    try:
        import torch_geometric.utils.trim_to_layer  # noqa: F401
    except ImportError:
        moved = importlib.import_module("torch_geometric.utils._trim_to_layer")
        sys.modules["torch_geometric.utils.trim_to_layer"] = moved


def main() -> None:
    peer, case, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.path[:0] = [str(place), str(place / "experiments" / "perceiver-pytorch"),
                    str(place.parent / "AllanYangZhou+nfn")]  # ScaleGMN imports it
    n = 4 if case == "wide" else 16 if peer == "ng_t" else 64
    base, start = peak_mb(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        makers = {"dws": lambda: dws(case, n, False), "dws_sab": lambda: dws(case, n, True),
                  "nfn": lambda: nfn(case, n), "scalegmn": lambda: scalegmn(case, n, place),
                  "ng_gnn": lambda: neural_graph(case, n, place, "pna"),
                  "ng_t": lambda: neural_graph(case, n, place, "rtransformer")}
        net, forward = makers[peer]()
        with torch.no_grad():
            forward()
    started = time.process_time() - start

    def step() -> None:
        net.zero_grad(set_to_none=True)
        forward().square().mean().backward()

    @torch.no_grad()
    def infer() -> None:
        forward()

    report(n, infer, step, base, start=started,
           parameters=sum(p.numel() for p in net.parameters()),
           versions=f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
