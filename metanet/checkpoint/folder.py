"""Hugging Face folders: one file, or shards behind an index that is not believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from metanet.checkpoint import sniff
from metanet.checkpoint.content import Content, Path_
from metanet.checkpoint.info import TensorInfo
from metanet.checkpoint.names import natural_sorted, printable, some
from metanet.checkpoint.problems import guarded, refusal
from metanet.checkpoint.safetensors_file import open_safetensors
from metanet.checkpoint.torch_file import open_pickle, open_torch_zip

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON = 50_000_000
# What a folder may be read by, best first; each is a suffix of a file name.
_PREFERENCE = (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin", ".pt", ".pth",
               ".ckpt", ".th")
_USUAL = frozenset({
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
})
_NOT_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt",
                          "scheduler.bin", "random_states_0.pkl", "scaler.pt"})
_OPENERS = {sniff.SAFETENSORS: open_safetensors, sniff.TORCH_ZIP: open_torch_zip,
            sniff.PICKLE: open_pickle}
CONFIGS = {"config": "config.json", "adapter_config": "adapter_config.json"}
"""Key in the metadata of a checkpoint → file beside the weights: transformers, timm; PEFT."""
_MAKE = "Give the file itself, or a folder with model.safetensors or an index"


def choose(names: Iterable[str], where: object) -> str:
    """The file that stands for a folder, out of the names in it. Raises CheckpointError."""
    present = [name for name in names if name not in _NOT_WEIGHTS]
    for suffix in _PREFERENCE:
        fitting = [n for n in present if n.endswith(suffix) and "/" not in n
                   and "-of-" not in n]
        usual = [n for n in fitting if n in _USUAL]
        if len(usual) == 1 or len(fitting) == 1:
            return (usual if len(usual) == 1 else fitting)[0]
        if fitting:
            raise refusal(where, f"it holds several checkpoints: {some(natural_sorted(fitting))}",
                          "Choose one by its name")
    held = some(natural_sorted(present)) or "nothing"
    raise refusal(where, f"it holds no checkpoint and no index; it holds {held}", _MAKE)


def read_json(path: Path) -> Any:
    """A JSON file of bounded size as plain data. Raises CheckpointError."""
    with guarded(path, "reading the JSON", "The file is damaged; download it again"):
        size = path.stat().st_size
        if size > MAX_JSON:
            raise refusal(path, f"it has {size} bytes; the limit is {MAX_JSON}",
                          "Download it again")
        with path.open("rb") as handle:
            return json.loads(handle.read(MAX_JSON + 1).decode("utf-8"), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice in one JSON object")
    return out


def open_file(path: Path) -> Content:
    """One file as Content, by its bytes. Raises CheckpointError."""
    if path.exists() and not path.is_file():
        raise refusal(path, "it is neither a file nor a folder", "Give a regular file")
    kind = sniff.sniff(path)
    if kind == sniff.INDEX:
        return open_index(path)
    return _OPENERS[kind](path)


def shard_names(index: Path) -> dict[str, str]:
    """tensor name -> shard file name of an index, every name checked as a plain file name."""
    told = read_json(index)
    mapping = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise refusal(index, "it is JSON but no shard index: it has no weight_map",
                      "Open the file that holds the weights")
    for shard in mapping.values():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise refusal(index, f"it names the shard {printable(shard, 80)!r}, which is not a "
                          "plain file name beside it", "The index is damaged or made to deceive")
    return mapping


def _is_plain_name(name: str) -> bool:
    """No separators, drives, parents or devices, by the rules of POSIX and of Windows."""
    windows = PureWindowsPath(name)
    return (bool(name) and name.isprintable() and name not in (".", "..") and "/" not in name
            and "\\" not in name and ":" not in name and not windows.is_absolute()
            and windows.name == name)


def _open_shard(index: Path, name: str) -> Content:
    path = index.parent / name
    if not path.is_file():
        raise refusal(index, f"its shard {printable(name, 80)!r} is missing",
                      "Download all shards into one folder")
    kind = sniff.sniff(path)
    wanted = ".safetensors" if kind == sniff.SAFETENSORS else ".bin"
    if kind == sniff.INDEX or not index.name.endswith(f"{wanted}.index.json"):
        raise refusal(path, f"it is {kind}, which {index.name} does not promise",
                      "Download the shards again")
    return _OPENERS[kind](path)


def _check_names(index: Path, shard: str, told: set[str], content: Content) -> None:
    held = {k for k, v in content.tree.items() if isinstance(v, TensorInfo)} if isinstance(
        content.tree, dict) else set()
    for missing in natural_sorted(map(str, told - held))[:1]:
        raise refusal(index, f"it puts tensor {printable(missing, 80)!r} into {shard!r}, which "
                      "does not hold it", "The index and the shards are of different versions")
    for extra in natural_sorted(map(str, held - told))[:1]:
        raise refusal(index, f"shard {shard!r} holds tensor {printable(extra, 80)!r}, which the "
                      "index does not put there",
                      "The index and the shards are of different versions")


def open_index(index: Path, open_shard: Callable[[str], Content] | None = None) -> Content:
    """A sharded checkpoint as Content, through its index file.

    Args:
        index: the index file.
        open_shard: how to open a shard by its name; by default the file beside the index.

    Raises:
        CheckpointError: if index and shards do not fit each other.
    """
    mapping = shard_names(index)
    shards: dict[str, Content] = {}
    for name in natural_sorted(set(mapping.values())):
        shards[name] = open_shard(name) if open_shard else _open_shard(index, name)
        told = {tensor for tensor, shard in mapping.items() if shard == name}
        _check_names(index, name, told, shards[name])
    tree = {tensor: _placed(shards[shard].tree[tensor], shard)
            for tensor, shard in mapping.items()}

    def read(where: Path_) -> Tensor:
        return shards[mapping[where[0]]].read(where)

    metadata: dict[str, Any] = {}
    for content in shards.values():
        metadata.update(content.metadata)
    files = tuple(path for content in shards.values() for path in content.files)
    return Content(tree, read, files, f"{len(shards)} shards", metadata, _fetch_of(shards))


def _fetch_of(shards: dict[str, Content]) -> Callable[[], tuple[Path, ...]] | None:
    """One fetch for all shards, where one of them has to be fetched."""
    if all(content.fetch is None for content in shards.values()):
        return None
    return lambda: tuple(path for content in shards.values()
                         for path in (content.fetch() if content.fetch else content.files))


def _placed(info: TensorInfo, shard: str) -> TensorInfo:
    """Places are unique within a file only: add the file."""
    place = None if info.place is None else (shard, info.place)
    return TensorInfo(info.shape, info.dtype, place)


def open_folder(folder: Path) -> Content:
    """A folder as Content, with the configs beside it (if any) as metadata, see ``CONFIGS``."""
    with guarded(folder, "listing it", "Check that the folder can be read"):
        names = [path.name for path in folder.iterdir() if path.is_file()]
    content = open_file(folder / choose(names, folder))
    told = {key: read_json(folder / name) for key, name in CONFIGS.items() if name in names}
    return replace(content, metadata={**content.metadata, **told})


def with_configs(content: Content, path: Path) -> Content:
    """A file of a folder as Content, with the configs beside it if its name is that of all models.

    Raises:
        CheckpointError: a config is damaged.
    """
    key = "adapter_config" if path.name.startswith("adapter_model.") else "config"
    beside = path.with_name(CONFIGS[key])
    if (key == "config" and path.name not in _USUAL) or not beside.is_file():
        return content
    return replace(content, metadata={**content.metadata, key: read_json(beside)})
