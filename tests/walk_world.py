"""What the walk through the commands walks on: a good call of each verb, and bad words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cli_runs import network, run_command
from metanet.cli.app import app
from metanet.zoo import Entry, Zoo
from safetensors.torch import save_file
from small_zoos import small, weights
from typer.main import get_command

from metanet import infer
from metanet.tasks.optimize import fresh

RECIPE = "base: inr-digits\nfit: {steps: 2}\nviews: 1\nn: 2\n"
MERGE = "merge_method: linear\nmodels:\n  - model: {mlp}\n  - model: {twin}\n"
FUNCTION = "def size(batch):\n    return [len(batch)] * len(batch)\n"
STREAM = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.LayerNorm(6), nn.Linear(6, 3))
    return body, (torch.randn(5, 4),)
"""
SMALL = "--model deepsets --epochs 1 --width 2 --limit 40"

# One call of every verb that must succeed; {out} is a name that does not exist yet.
GOOD: dict[str, str] = {
    "inspect": "{mlp} --arch mlp --verify --kinds --save-spec {out}",
    "explain": "{mlp} 0.weight 0 --spec {spec}",
    "graph": "{mlp} -o {out}.html --arch mlp",
    "doctor": "{mlp}",
    "convert": "{pt} -o {out}.safetensors",
    "fold": "{stream} --arch {streamcode}:net -o {out}.safetensors --save-spec {out}.space",
    "permute": "{mlp} -o {out}.safetensors --seed 3 --arch mlp",
    "pull": "hf://org/zoo -o {out} --where lr<0.05",
    "align": "{mlp} {twin} --arch mlp -o {out} --method auto --calib {npz} --normalize 0,1 "
             "--restarts 1",
    "barrier": "{mlp} {twin} --data {npz} --arch mlp --points 3 --restarts 1 --plot {out}.svg",
    "distance": "{mlp} {twin} --arch mlp --fail-above 0.5",
    "related": "{mlp} {twin} --arch mlp --budget 1 --by-layer",
    "merge": "{mlp} {twin} -o {out} --method linear -w 1 -w 2 --arch mlp --dtype float32 "
             "--shard-size 1",
    "predict": "{run} {member}",
    "train": f"accuracy {{zoo}} -o {{out}} {SMALL} --split run --lr 0.01 --batch-size 4",
    "evaluate": "{run} {zoo} --limit 40",
    "bench": "seed-only --quick -o {out} --rows mean --epochs 1 --seeds 1 --trials 1 --zoos {out}",
    "report": "{run} -o {out}.html",
    "demo": "--version",  # three minutes: tests/cli/test_demo.py runs it
    "zoo build": "{recipe} -o {out} --n 2 --workers 1 --seed 1 --engine local",
    "zoo info": "{small}",
    "zoo query": "{small} lr<0.03 -c id,lr --limit 2",
    "zoo split": "{small} --by band --column lr --test 0.07,1 --parts train=.8,val=.2",
    "zoo verify": "{small} --shallow",
    "zoo ingest": "{folder} -o {out} --license MIT",
    "zoo export": "{small} -o {out} --where lr<0.03",
    "zoo recipes": "",
    "zoo map": "{function}:size {small} --where lr<0.03 --size 2 --engine local --workers 1",
    "zoo pull": "hf://org/zoo -o {out}",
    "zoo push": "{small} org/walk",
    "optim train": "optim-digits -o {out} --steps 1 --seed 1",
    "optim bench": "-o {out} --net {learned} --tasks deep-mlp-digits --rivals adamw --no-tune "
                   "--seeds 1 --steps 10",
}


def verbs() -> dict[str, Any]:
    """Every command of the app, by its words."""
    return dict(_leaves(get_command(app), ()))


def _leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(words), command
        return
    for name, one in inner.items():
        yield from _leaves(one, (*words, name))


def world(folder: Path) -> dict[str, str]:
    """Files for every placeholder of GOOD."""
    made = {name: folder / name for name in (
        "mlp.safetensors", "twin.safetensors", "net.pt", "data.npz", "net.space", "recipe.yaml",
        "merge.yml", "code.py", "small", "folder", "run", "member.safetensors", "stream.py",
        "stream.safetensors")}
    keys = ("mlp", "twin", "pt", "npz", "spec", "recipe", "merge", "function", "small", "folder",
            "run", "member", "streamcode", "stream")
    at = dict(zip(keys, map(str, made.values()), strict=True))
    save_file(network().state_dict(), at["mlp"])
    torch.save(network().state_dict(), at["pt"])
    for words in (("permute", at["mlp"], "-o", at["twin"], "--arch", "mlp"),
                  ("inspect", at["mlp"], "--arch", "mlp", "--save-spec", at["spec"])):
        assert run_command(*words).code == 0
    rng = np.random.default_rng(0)
    np.savez(at["npz"], x=rng.normal(size=(12, 6)).astype("float32"), y=np.arange(12) % 3)
    Path(at["recipe"]).write_text(RECIPE, encoding="utf-8")
    Path(at["merge"]).write_text(MERGE.format(**at), encoding="utf-8")
    Path(at["function"]).write_text(FUNCTION, encoding="utf-8")
    Path(at["streamcode"]).write_text(STREAM, encoding="utf-8")
    code: dict[str, Any] = {}
    exec(STREAM, code)
    save_file(code["net"]()[0].state_dict(), at["stream"])
    small(Path(at["small"]), license="MIT").close()
    Path(at["folder"]).mkdir()
    for number in range(2):
        save_file(network().state_dict(), Path(at["folder"]) / f"{number}.safetensors")
    at["zoo"] = str(folder / "zoo")
    population(folder / "zoo", Path(at["member"]))
    at["learned"] = str(fresh().save(folder / "learned.safetensors"))
    done = run_command("train", "accuracy", at["zoo"], "-o", at["run"], *SMALL.split())
    assert done.code == 0, done.err
    return at


def population(path: Path, member: Path) -> None:
    """Sixty MLPs of random weights with a score each, and one of them as a file."""
    net = network()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    states = [weights(seed, shapes) for seed in range(60)]
    entries = [Entry(f"m{i:03d}", {"lr": 0.01 * i}, {"test_accuracy": (i * 7 % 60) / 60})
               for i in range(60)]
    made = Zoo.create(path, recipe={"arch": "mlp", "members": {"width": 5}, "data": {"side": 8}})
    made.add_stacked({name: torch.stack([s[name] for s in states]) for name in shapes},
                     entries, infer(net, (torch.zeros(2, 6),)))
    made.close()
    save_file(states[7], member)


def bad_values(folder: Path) -> dict[str, str]:
    """Words to put in the place of a good one."""
    rng = np.random.default_rng(1)
    (folder / "noise.bin").write_bytes(rng.bytes(3000))
    (folder / "empty").write_bytes(b"")
    (folder / "text.txt").write_text("{[(%s \x1b[31m [red]\n" * 5, encoding="utf-8")
    (folder / "hollow").mkdir()
    (folder / "locked").mkdir()
    return {
        "nothing": "",
        "absent": str(folder / "no" / "such.safetensors"),
        "folder": str(folder / "hollow"),
        "noise": str(folder / "noise.bin"),
        "empty": str(folder / "empty"),
        "text": str(folder / "text.txt"),
        "hostile": "\x1b[2J\x1b]0;x\x07\u202e[bold red]{0}%s/..",
        "bytes": "a\udcff\udcfeb",  # what Python makes of bytes that are not UTF-8
        "long": "x" * 5000,
        "huge": "9" * 40,
        "negative": "-1",
        "nan": "nan",
        "hub": "hf://nobody/nothing",
        "odd hub": "hf://../..@\u2028/x",
        "device": "/dev/null",
    }
