"""ParameterGraph: bit-exact way back, ends, edge lists against the tensors, budgets, files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import networkx
import pytest
import torch
from hand_spaces import SPACES, random_state

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import ParameterGraph, export
from metanet.graph.edges import edge_lists, node_features
from metanet.graph.files import html
from metanet.symmetry import WeightSpace


def graph_of(name: str, dtype: torch.dtype = torch.float32) -> ParameterGraph:
    return ParameterGraph.from_checkpoint(SPACES[name], random_state(SPACES[name], 0, dtype))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_dict_bit_exact(name: str, dtype: torch.dtype) -> None:
    state = random_state(SPACES[name], 3, dtype) | {"steps": torch.tensor(4)}
    back = ParameterGraph.from_checkpoint(SPACES[name], state).state_dict()
    assert list(back) == list(state)
    assert all(torch.equal(back[k], state[k]) and back[k].dtype == state[k].dtype for k in state)


def test_node_sets_and_ends_of_an_mlp() -> None:
    graph = graph_of("mlp")
    assert {n.name: n.shape for n in graph.node_sets.values()} == {
        "a": (4,), "b": (5,), "fc1:in": (3,), "fc3:out": (2,)}
    ends = {name: [(e.nodes, e.out) for e in edge.ends] for name, edge in graph.edge_sets.items()}
    assert ends["fc1.weight"] == [("a", True), ("fc1:in", False)]
    assert ends["fc3.weight"] == [("fc3:out", True), ("b", False)]
    assert ends["fc3.bias"] == [("fc3:out", True)]
    assert (graph.n_nodes, graph.n_edges) == (14, 12 + 20 + 10)


def test_bases_are_part_of_the_nodes_and_kernels_are_features() -> None:
    attention = graph_of("attention")
    assert attention.node_sets["d"].shape == (3, 2)
    edge = attention.edge_sets["in_proj#0.0"]
    assert [(e.nodes, e.digits) for e in edge.ends] == [("d", (1, 2)), ("m", (3,))]
    assert edge.features == (0,) and edge.n_edges == 30
    conv = graph_of("conv").edge_sets["conv1.weight"]
    assert [e.nodes for e in conv.ends] == ["a", "conv1:in"] and conv.features == (2, 3)


def test_edge_lists_hold_every_number_at_its_place() -> None:
    state = random_state(SPACES["mlp"])
    graph = ParameterGraph.from_checkpoint(SPACES["mlp"], state)
    lists = {edges.block: edges for edges in edge_lists(graph)}
    found = lists["fc2.weight"]
    assert (found.source, found.target) == ("a", "b")
    source, target = found.index
    assert torch.equal(state["fc2.weight"][target, source], found.values[:, 0])
    assert torch.equal(node_features(graph)["a"][:, 0], state["fc1.bias"])


def test_edge_lists_of_fibres_and_taps() -> None:
    state = random_state(SPACES["attention"])
    lists = {e.block: e for e in edge_lists(ParameterGraph.from_checkpoint(
        SPACES["attention"], state))}
    found = lists["in_proj#0.0"]
    source, target = found.index  # m -> (h, d); the rows are (q or k, h, d)
    assert torch.equal(found.values[:, 1], state["in_proj"][6 + target, source])
    conv = random_state(SPACES["conv"])
    graph = ParameterGraph.from_checkpoint(SPACES["conv"], conv)
    found = {e.block: e for e in edge_lists(graph)}["conv2.weight"]
    source, target = found.index
    assert torch.equal(found.values, conv["conv2.weight"][target, source].flatten(1))


@pytest.mark.parametrize("name", SPACES)
def test_pyg_holds_every_number_once(name: str) -> None:
    state = random_state(SPACES[name])
    graph = ParameterGraph.from_checkpoint(SPACES[name], state)
    data = graph.to_pyg()
    assert data.num_edges == graph.n_edges and data.validate()
    total = sum(float(state[k].abs().double().sum()) for k in SPACES[name].tensors)
    times = {"triple": 3}.get(name, 1)  # a hyperedge carries its number on each of its edges
    held = data.x.abs().double().sum() + data.u.abs().double().sum()
    hyper = [i for i, e in enumerate(graph.edge_sets.values()) if len(e.ends) > 2]
    weight = torch.tensor([1 / times if i in hyper else 1.0 for i in data.edge_set.tolist()])
    held = held + (data.edge_attr.abs().double().sum(1) * weight).sum()
    assert float(held) == pytest.approx(total, rel=1e-6)


def test_hetero() -> None:
    data = graph_of("attention").to_hetero()
    assert data["d"].x.shape == (6, 2) and data["v"].x.shape == (12, 1)
    assert data["m", "in_proj#1.0", "v"].edge_index.shape == (2, 60)
    assert data["v", "out_proj", "m"].edge_attr.shape == (60, 1)


def test_networkx_levels() -> None:
    graph = graph_of("mlp")
    groups = graph.to_networkx("group")
    assert set(groups.edges(keys=True)) == {
        ("fc1:in", "a", "fc1.weight"), ("a", "b", "fc2.weight"), ("b", "fc3:out", "fc3.weight")}
    tensors = graph.to_networkx("tensor")
    assert tensors.has_edge("a", "tensor fc2.weight") and tensors.has_edge("tensor fc2.weight", "b")
    neurons = graph.to_networkx("neuron")
    assert neurons.number_of_edges() == graph.n_edges and len(neurons) == graph.n_nodes
    assert networkx.is_directed_acyclic_graph(neurons)
    with pytest.raises(SymmetryError, match="level"):
        graph.to_networkx("layer")


def test_the_budget_is_told() -> None:
    graph = graph_of("mlp")
    for call in (lambda: graph.to_networkx("neuron", max_edges=41),
                 lambda: graph.to_pyg(max_edges=41), lambda: graph.to_hetero(max_edges=41)):
        with pytest.raises(SymmetryError, match=r"42 edges.*budget of 41.*level='tensor'"):
            call()
    assert graph.to_networkx("neuron", max_edges=42).number_of_edges() == 42


@pytest.mark.parametrize("name", SPACES)
def test_files(name: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    for suffix in (".pt", ".graphml", ".svg", ".html"):
        export(graph, tmp_path / f"x{suffix}")
    held = torch.load(tmp_path / "x.pt", weights_only=True)
    assert set(held["blocks"]) == set(graph.edge_sets)
    assert torch.equal(held["arrays"]["edge_index"], graph.to_pyg().edge_index)
    neurons = networkx.read_graphml(tmp_path / "x.graphml")
    assert len(neurons) >= graph.n_nodes and neurons.number_of_edges() == graph.n_edges
    ElementTree.parse(tmp_path / "x.svg")
    assert "<svg" in (tmp_path / "x.html").read_text(encoding="utf-8")
    first = (tmp_path / "x.svg").read_bytes()
    export(graph, tmp_path / "x.svg")
    assert first == (tmp_path / "x.svg").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"x.pt", "x.graphml", "x.svg", "x.html"}


def test_large_graphs_are_written_coarsely(tmp_path: Path) -> None:
    graph = graph_of("mlp")
    export(graph, tmp_path / "x.graphml", max_edges=10)
    assert "tensor fc1.weight" in networkx.read_graphml(tmp_path / "x.graphml")
    export(graph, tmp_path / "x.pt", max_edges=10)
    assert "arrays" not in torch.load(tmp_path / "x.pt", weights_only=True)


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("$x^2$")</script>\x1b[31m'
    space = WeightSpace.from_json({**SPACES["mlp"].to_json(), "tensors": {
        evil: {"shape": [2, 2], "axes": "a b", "dtype": None}},
        "groups": [{"label": x, "size": 2, "kind": "S", "over": [], "reason": None, "dead": False}
                   for x in "ab"]})
    graph = ParameterGraph.from_checkpoint(space, {evil: torch.ones(2, 2)})
    page = html(graph)
    assert page.count("<script") == 1 and "\x1b" not in page and "$x^2$" in page
    export(graph, tmp_path / "x.graphml", max_edges=0)
    ElementTree.parse(tmp_path / "x.graphml")
    export(graph, tmp_path / "x.svg")
    ElementTree.parse(tmp_path / "x.svg")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SymmetryError, match=r"written as .*not \.png"):
        export(graph_of("mlp"), tmp_path / "x.png")
    with pytest.raises(SpaceMismatch, match="missing"):
        ParameterGraph.from_checkpoint(SPACES["mlp"], {})
    assert not list(tmp_path.iterdir())


def test_torch_geometric_is_loaded_only_when_asked() -> None:
    code = ("import sys, torch, metanet as mn\n"
            "s = mn.WeightSpace.parse('space v1\\ngroup a = S(2)\\nw: a a')\n"
            "g = mn.ParameterGraph.from_checkpoint(s, {'w': torch.ones(2, 2)})\n"
            "g.to_networkx()\nassert 'torch_geometric' not in sys.modules\n"
            "g.to_pyg()\nassert 'torch_geometric' in sys.modules\n")
    subprocess.run([sys.executable, "-c", code], check=True)
