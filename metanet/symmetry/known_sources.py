"""Making the table of known spaces: architectures are built, traced and proved.

``python -m metanet.symmetry.cache [-o FILE] [--only REGEX]``. Entries of FILE that are not asked
for are kept, so that the table can be made in parts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metanet.errors import MetanetError
from metanet.symmetry.cache import FILE, Entry, packed
from metanet.symmetry.infer import infer_program, record
from metanet.symmetry.verify import verify_program
from metanet.trace.archs.real import meta_parameters
from metanet.trace.archs.registry import build
from metanet.trace.archs.vision import prepare_torchvision
from metanet.trace.inputs import batch_of

_TORCHVISION = {
    "widths": ("alexnet vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg16_bn squeezenet1_0 squeezenet1_1 "
               "mobilenet_v2 mnasnet1_0 efficientnet_b0 convnext_tiny"),
    "classes": "densenet121 mobilenet_v3_small mobilenet_v3_large regnet_y_400mf",
}
_TIMM = {
    "widths": ("resnet18 resnet34 resnet50 resnet101 resnet152 convnext_tiny efficientnet_b0 "
               "mobilenetv3_small_100"),
    "classes": "resnext50_32x4d",
    "exact": "vit_tiny_patch16_224 vit_small_patch16_224",
}
_TRANSFORMERS = {
    "gpt2": ("gpt2", "GPT2Model", {}), "gpt2 with a head": ("gpt2", "GPT2LMHeadModel", {}),
    "bert-base": ("bert", "BertModel", {}),
    "bert-base with a head": ("bert", "BertForMaskedLM", {}),
    "bert-base-cased": ("bert", "BertModel", {"vocab_size": 28996}),
    "distilbert-base": ("distilbert", "DistilBertModel", {}),
    "roberta-base": ("roberta", "RobertaModel", {
        "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
}
_CNN = {"conv1": (10, 1, 5, 5), "conv2": (20, 10, 5, 5), "fc1": (50, 320), "fc2": (10, 50)}
_LENET = {"conv1": (8, 1, 5, 5), "conv2": (16, 8, 5, 5), "fc1": (128, 256), "fc2": (64, 128),
          "fc3": (10, 64)}
_LENET5 = {"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 256), "fc2": (84, 120),
           "fc3": (10, 84)}
_LENET5_CIFAR = {"conv1": (6, 3, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 400),
                 "fc2": (84, 120), "fc3": (10, 84)}
_SMALL = {"mnist-cnn21k": _CNN, "mnist-lenet45k": _LENET, "lenet": _LENET5,
          "lenet:32": _LENET5_CIFAR}
_DEPTHS = (20, 32, 44, 56)
_IMAGE = (64, 96)
"""Small, so that proofs are quick: no width depends on it."""


@dataclass(frozen=True)
class Source:
    """An architecture: its name, what ``--arch`` calls it, how sizes may differ, how it is made."""

    name: str
    arch: str | None
    fit: str
    make: Callable[[], tuple[nn.Module, Any]]


def sources() -> Iterator[Source]:
    """All architectures of the table."""
    for arch, layers in _SMALL.items():
        yield Source(arch, arch, "exact", lambda a=arch, la=layers: _solved(a, la))  # type: ignore[misc]
    for depth in _DEPTHS:
        arch = f"resnet{depth}-cifar"
        yield Source(arch, arch, "classes", lambda n=depth: _cifar(n))  # type: ignore[misc]
    for fit, names in _TIMM.items():
        for name in names.split():
            yield Source(f"timm's {name}", f"timm:{name}", fit,
                         lambda n=name: _timm(n))  # type: ignore[misc]
    for fit, names in _TORCHVISION.items():
        for name in names.split():
            yield Source(f"torchvision's {name}", None, fit,
                         lambda n=name: _torchvision(n))  # type: ignore[misc]
    for label, (kind, cls, changes) in _TRANSFORMERS.items():
        yield Source(label, None, "exact",
                     lambda k=kind, c=cls, o=changes: _transformers(k, c, o))  # type: ignore[misc]


def entry_of(source: Source) -> Entry:
    """Build, trace and prove.

    Raises:
        MetanetError: the space could not be proved.
    """
    module, inputs = source.make()
    program = record(module, inputs)
    space = infer_program(program)
    proof = verify_program(program, space, samples=1)
    if not proof.ok or space.meta.unsupported:
        raise MetanetError(f"{source.name}: {proof.report()}; operations without a rule: "
                           f"{len(space.meta.unsupported)}")
    return Entry.of(source.name, source.arch, source.fit, proof.max_error, space)


# ---------------------------------------------------------------- modules


def _solved(arch: str, layers: dict[str, tuple[int, ...]]) -> tuple[nn.Module, Any]:
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    made = build(arch, shapes)
    return made.module, made.example_inputs


def _cifar(depth: int) -> tuple[nn.Module, Any]:
    """The shapes of He et al. 2015, section 4.2: widths 16, 32, 64."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3), "linear.weight": (10, 64),
                                          "linear.bias": (10,)}
    ins = 16

    def norm(prefix: str, width: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.{leaf}"] = (width,)

    norm("bn1", 16)
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range((depth - 2) // 6):
            path = f"layer{stage}.{block}"
            shapes[f"{path}.conv1.weight"] = (width, ins, 3, 3)
            shapes[f"{path}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{path}.bn1", width)
            norm(f"{path}.bn2", width)
            ins = width
    made = build(f"resnet{depth}-cifar", shapes)
    return made.module, made.example_inputs


def _timm(name: str) -> tuple[nn.Module, Any]:
    made = build(f"timm:{name}")
    inputs = made.example_inputs if name.startswith("vit") else (batch_of(3, *_IMAGE),)
    return made.module, inputs


def _torchvision(name: str) -> tuple[nn.Module, Any]:
    prepare_torchvision()
    from torchvision.models import get_model

    with meta_parameters():
        module: nn.Module = get_model(name, weights=None)
    if any(buffer.is_meta for buffer in module.buffers()):
        module = get_model(name, weights=None)
    return module.eval(), (batch_of(3, *_IMAGE),)


def _transformers(kind: str, cls: str, changes: dict[str, int]) -> tuple[nn.Module, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config = {"model_type": kind, "architectures": [cls], **changes}
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        made = build(f"hf:{folder}")
    return made.module, made.example_inputs


# ---------------------------------------------------------------- the command


def make(arguments: list[str] | None = None) -> int:
    """Write the table; 1 where a space could not be proved, which is then left out."""
    parser = argparse.ArgumentParser(prog="python -m metanet.symmetry.cache",
                                     description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_name(FILE))
    parser.add_argument("--only", default="", metavar="REGEX", help="architectures to make anew")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done, failed = _kept(given.out), 0
    order = [source.name for source in sources()]
    for source in sources():
        if not re.search(given.only, source.name):
            continue
        started = time.perf_counter()
        try:
            done[source.name] = entry_of(source)
            told = f"{done[source.name].error:.0e}"
        except MetanetError as error:
            done.pop(source.name, None)
            failed, told = failed + 1, str(error)
        sys.stdout.write(f"{source.name}: {told} ({time.perf_counter() - started:.0f} s)\n")
        sys.stdout.flush()
        given.out.write_bytes(packed(done[name] for name in order if name in done))
    sys.stdout.write(f"{len(done)} spaces, {given.out.stat().st_size} bytes\n")
    return int(failed > 0)


def _kept(path: Path) -> dict[str, Entry]:
    """Entries of a table that is there, by name."""
    if not path.is_file():
        return {}
    told = json.loads(gzip.decompress(path.read_bytes()))["entries"]
    found: dict[str, Entry] = {}
    for entries in told.values():
        for one in entries:
            entry = Entry(**one)
            kept = found.setdefault(entry.name, entry)
            if len(entry.space) > len(kept.space):  # the one that knows the ties
                found[entry.name] = entry
    return found
