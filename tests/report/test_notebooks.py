"""What notebooks show: HTML of the types that people look at, with names escaped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import metanet as mn
from metanet.tasks.predict.predictor import Prediction

EVIL = "<img src=x onerror=alert(1)>"


class Named(nn.Module):
    """A network whose tensors are named like markup."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"<b>": nn.Linear(3, 4), "</b>": nn.Linear(4, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["</b>"](torch.relu(self.inner["<b>"](x)))


def shown() -> dict[str, Any]:
    net, x = Named(), (torch.randn(2, 3),)
    space = mn.infer(net, x)
    report = mn.merge([net.state_dict(), net.state_dict()])
    return {"WeightSpace": space, "Verification": mn.verify(net, space, x),
            "ParameterGraph": mn.ParameterGraph.from_checkpoint(space, net.state_dict()),
            "MergeReport": report,
            "Prediction": Prediction(EVIL, 0.5, (0.4, 0.6), False, 1.0, 2.0, note=EVIL)}


@pytest.fixture(scope="module")
def things() -> dict[str, Any]:
    return shown()


@pytest.mark.parametrize("name", ["WeightSpace", "Verification", "ParameterGraph", "MergeReport",
                                  "Prediction"])
def test_html(things: dict[str, Any], name: str) -> None:
    text = things[name]._repr_html_()
    assert text.startswith("<") and len(text) > 40
    assert "<b>" not in text and "<img" not in text and "<script" not in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_the_page_of_a_graph(things: dict[str, Any]) -> None:
    """Self-contained, without the network, and every group of the table is in the drawing."""
    from metanet.graph.files import html

    page = html(things["ParameterGraph"])
    assert "src=" not in page and "<b>" not in page and "url(http" not in page
    assert 'data-row="' in page
    for row in page.split('data-row="')[1:]:
        assert f'id="group-{row.partition(chr(34))[0]}"' in page
