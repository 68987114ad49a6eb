"""Where to start, and examples for every verb: what ``metanet`` and ``--help`` show."""

from __future__ import annotations

START = """\
metanet: networks as data

  metanet demo                        see it work: three minutes, offline, one page
  metanet inspect FILE                what a checkpoint holds, and its symmetry
  metanet permute FILE -o TWIN        other weights, the same function
  metanet related A B                 is one of them made from the other?
  metanet align A B -o BACK           which neuron is which
  metanet merge A B -o OUT            two models become one
  metanet zoo build inr-digits -o Z   a population of networks, to learn from
  metanet doctor                      is this installation well?

metanet --help lists all commands; metanet COMMAND --help has examples of each."""

# One line each: how it is called, and what for.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "inspect": (
        "metanet inspect model.safetensors",
        "metanet inspect net.pt --arch resnet20-cifar --verify",
        "metanet inspect hf://openai-community/gpt2 --save-spec gpt2.space",
    ),
    "explain": ("metanet explain net.safetensors fc1.weight 1 --arch mlp",),
    "graph": (
        "metanet graph net.safetensors --arch mlp -o net.html",
        "metanet graph hf://openai-community/gpt2 -o gpt2.html",
        "metanet graph net.safetensors --spec net.space -o net.pt",
    ),
    "doctor": ("metanet doctor", "metanet doctor net.pt"),
    "convert": ("metanet convert net.pt -o net.safetensors",),
    "fold": ("metanet fold a.pt --arch gpt.py:net -o a1.safetensors --save-spec gpt.space",),
    "permute": ("metanet permute net.safetensors --arch mlp --seed 7 -o twin.safetensors",),
    "pull": (
        "metanet pull hf://org/zoo -o zoo",
        "metanet pull hf://org/model@main -o part.safetensors --tensor 'lm_head*'",
    ),
    "align": (
        "metanet align a.pt b.pt --arch lenet -o b.alignment",
        "metanet align a.pt b.pt --arch lenet --calib images.npz --json",
        "metanet align a1.safetensors b1.safetensors --spec gpt.space -o b.alignment",
    ),
    "barrier": ("metanet barrier a.pt b.pt --arch lenet --data test.npz --calib images.npz",),
    "distance": (
        "metanet distance a.safetensors b.safetensors --arch mlp",
        "metanet distance a.safetensors b.safetensors --fail-above 0.1",
    ),
    "related": (
        "metanet related base.safetensors tuned.safetensors",
        "metanet related a.pt b.pt --arch lenet --by-layer",
    ),
    "merge": (
        "metanet merge a.pt b.pt --arch lenet -o merged",
        "metanet merge a b --method ties --base base -p density=0.5 -o merged",
        "metanet merge recipe.yml --plan",
    ),
    "predict": ("metanet predict run net.safetensors folder/of/nets --json",),
    "train": (
        "metanet train accuracy zoo -o run",
        "metanet train label zoo -o run --model unf --split image",
    ),
    "evaluate": ("metanet evaluate run zoo",),
    "bench": ("metanet bench small-cnn --quick -o results",),
    "report": ("metanet report run", "metanet report results -o page.html"),
    "demo": ("metanet demo", "metanet demo --quick -o page.html"),
    "zoo build": (
        "metanet zoo build inr-digits -o digits --n 100",
        "metanet zoo build my-recipe.yaml -o zoo --workers 8",
    ),
    "zoo info": ("metanet zoo info digits",),
    "zoo query": ("metanet zoo query digits \"split = 'test' and psnr > 30\" -c id,label,psnr",),
    "zoo split": (
        "metanet zoo split digits --by image",
        "metanet zoo split zoo --by band --column lr --test 0.01,0.05",
    ),
    "zoo verify": ("metanet zoo verify digits", "metanet zoo verify digits --shallow --json"),
    "zoo ingest": ("metanet zoo ingest folder --table metrics.csv --arch lenet -o zoo",),
    "zoo export": (
        "metanet zoo export digits -o folder --where \"split = 'test'\"",
        "metanet zoo export digits -o index.parquet",
    ),
    "zoo recipes": ("metanet zoo recipes",),
    "zoo map": ("metanet zoo map norms.py:norm digits --workers 2",),
    "zoo pull": ("metanet zoo pull hf://org/zoo -o zoo --where \"split = 'test'\"",),
    "zoo push": ("metanet zoo push digits org/digits --dataset",),
    "optim train": ("metanet optim train optim-digits -o run",),
    "optim bench": (
        "metanet optim bench -o results --net run/net.safetensors --data folder",
        "metanet optim bench -o results --tasks deep-mlp-digits --rivals adamw --no-tune",
    ),
}


def epilog(verb: str) -> str | None:
    """The examples of a verb as the last paragraph of its help; None where it has none."""
    lines = EXAMPLES.get(verb)
    return None if lines is None else "\n".join(["Examples:", *(f"  $ {line}" for line in lines)])
