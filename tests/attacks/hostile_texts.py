"""Hostile YAML, config.json, text forms and zoos: what is read that is no tensor."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from small_zoos import small

# read(path) must raise a MetanetError; write(path, canary) makes the file or folder.
Read = Callable[[Path], object]
Write = Callable[[Path, Path], None]
TEXTS: dict[str, tuple[Read, Write]] = {}

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True))
YAML = {
    "python_call": "merge_method: !!python/object/apply:os.system ['touch {canary}']\n",
    "python_new": "models: !!python/object/new:os.system ['touch {canary}']\n",
    "python_name": "merge_method: !!python/name:os.system\nmodels: []\n",
    "python_module": "a: !!python/module:os\n",
    "subprocess": "factory: !!python/object/apply:subprocess.Popen [['touch', '{canary}']]\n",
    "laughs": LAUGHS,
    "deep": "a: " + "[" * 20_000 + "]" * 20_000,
    "dashes": "- " * 20_000 + "x",
    "self": "a: &a\n  b: *a\n",
    "merge_key": "<<: [1, 2]\nmodels: x\n",
    "twice": "merge_method: linear\nmerge_method: slerp\nmodels: []\n",
    "controls": "\x1b[31mred: 1\n",
    "binary": "\x00\x01\x02",
    "number_of_a_million_digits": "merge_method: linear\nmodels: " + "9" * 60_000,
    "list": "- a\n- b\n",
    "empty": "",
}


def _yaml(name: str, body: str) -> None:
    def write(path: Path, canary: Path) -> None:
        path.write_text(body.replace("{canary}", str(canary)), encoding="utf-8")

    def merge(path: Path) -> object:
        from metanet.tasks.merge import read_recipe

        return read_recipe(str(path))

    def zoo(path: Path) -> object:
        from metanet.zoo.recipe import load

        return load(path)

    TEXTS[f"merge_yaml_{name}"] = (merge, write)
    TEXTS[f"zoo_yaml_{name}"] = (zoo, write)


for _name, _body in YAML.items():
    _yaml(_name, _body)

CONFIG = {
    "code": {"model_type": "llama", "auto_map": {"AutoModel": "evil--run.Model"},
             "architectures": ["os.system"]},
    "remote": {"auto_map": {"AutoConfig": "org/repo--configuration.Config"},
               "trust_remote_code": True},
    "unknown_type": {"model_type": "../../evil", "architectures": ["Evil"]},
    "a_trillion_wide": {"model_type": "llama", "hidden_size": 10**12, "num_hidden_layers": 10**9,
                        "num_attention_heads": 1, "vocab_size": 10**12},
    "negative": {"model_type": "llama", "hidden_size": -4, "num_attention_heads": 0},
    "words": {"model_type": "llama", "hidden_size": "x" * 1000},
    "timm_code": {"architecture": "os.system", "pretrained_cfg": {"url": "file:///etc/passwd"}},
    "adapter": {"peft_type": "LORA", "base_model_name_or_path": "/etc", "r": -1,
                "target_modules": ["__import__"]},
    "list": [1, 2],
}


def _config(name: str, config: object) -> None:
    def write(path: Path, canary: Path) -> None:
        import torch

        path.mkdir()
        save_file({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)},
                  path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def read(path: Path) -> object:
        from metanet.symmetry import infer, resolve

        found = resolve(str(path))
        return infer(str(path)) if found.space is None else found

    TEXTS[f"config_{name}"] = (read, write)


for _name, _told in CONFIG.items():
    _config(_name, _told)

SPACES = {
    "deep": "space v1\nx: " + "(" * 5000 + "a" + ")" * 5000,
    "wide": "space v1\nx: " + "a " * 200_000,
    "huge_group": "space v1\ngroup a = S(" + "9" * 5000 + ")\nx: a",
    "negative": "space v1\ngroup a = S(-3)\nx: a",
    "cycle": "space v1\ngroup a/b = S(2)\ngroup b/a = S(2)\nx: (a b/a)",
    "controls": "space v1\n\x1b[2J: a",
    "version": "space v999\nx: a",
    "code": "space v1\n__import__('os').system('true'): a!",
    "nul": "space v1\nx\x00: a",
}


def _space(name: str, body: str) -> None:
    def write(path: Path, canary: Path) -> None:
        path.write_text(body, encoding="utf-8")

    def read(path: Path) -> object:
        from metanet import WeightSpace

        return WeightSpace.parse(path.read_text(encoding="utf-8"))

    TEXTS[f"space_{name}"] = (read, write)


for _name, _body in SPACES.items():
    _space(_name, _body)

ROWS = {
    "shard_beyond": "UPDATE members SET shard = 99999",
    "shard_negative": "UPDATE members SET shard = -1",
    "row_beyond": "UPDATE members SET row = 99999999",
    "row_negative": "UPDATE members SET row = -3",
    "row_text": "UPDATE members SET row = 'x'",
    "dropped_table": "DROP TABLE members",
    "trigger": "CREATE TRIGGER t AFTER UPDATE ON members BEGIN DELETE FROM members; END",
    "view": "CREATE VIEW evil AS SELECT load_extension('/tmp/evil.so')",
    "layout": "UPDATE layouts SET signature = '[[\"a\", [9999999999999]]]'",
    "hash_of_controls": "UPDATE shards SET sha256 = char(27) || '[2J'",
}


def _index(name: str, statement: str) -> None:
    def write(path: Path, canary: Path) -> None:
        small(path).close()
        with sqlite3.connect(path / "index.sqlite") as base:
            base.execute(statement)
        base.close()

    def read(path: Path) -> object:
        from metanet.zoo import Zoo

        from metanet import ZooError

        zoo = Zoo.open(path)
        if not zoo.verify(leaks=False).ok:
            raise ZooError("verify says so")
        return [zoo.member(row["id"]) for row in zoo.query(None).rows(["id"])]

    TEXTS[f"index_{name}"] = (read, write)


for _name, _statement in ROWS.items():
    _index(_name, _statement)
