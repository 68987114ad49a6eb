"""Vocabularies that differ: rows of embeddings are matched by token, not by number.

``union`` keeps the numbers of the reference and appends what the other models have beside;
``base``, or the name of a model, takes that model's tokens. A row that a model does not have is
taken from the reference, or is the mean of the models that have it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metanet.checkpoint import Checkpoint, printable
from metanet.checkpoint.folder import read_json
from metanet.errors import MetanetError
from metanet.tasks.merge.sources import SMALL_FILES, beside, choose

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight",
         "embed_in.weight")
_OUTPUT = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "predictions.bias",
           "predictions.decoder.weight", "predictions.decoder.bias")


def embeds(name: str) -> bool:
    """Whether a tensor has one row per token, by its name."""
    return name.endswith(_ROWS + _OUTPUT)


def rows_of(checkpoint: Checkpoint) -> int | None:
    """Rows of the input embedding, or None where there is none."""
    found = [name for name in checkpoint.names if name.endswith(_ROWS)]
    return checkpoint.shape(found[0])[0] if found else None


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer.json says: token -> number, and its whole document."""

    ids: Mapping[str, int]
    document: Mapping[str, Any]
    added: frozenset[str]


def tokens_of(name: str, checkpoint: Checkpoint) -> Tokens:
    """Tokens of a model. Raises MetanetError where no tokenizer.json can be read."""
    path = beside(checkpoint, "tokenizer.json")
    if path is None:
        raise MetanetError(f"{printable(name, 100)}: there is no tokenizer.json, so rows of its "
                           "embedding cannot be matched by token. Save its fast tokenizer beside "
                           "it, or leave tokenizer_source out where the vocabularies are equal.")
    document = read_json(path)
    try:
        model = document["model"]["vocab"]
        pairs = model.items() if isinstance(model, dict) else (
            (entry[0], i) for i, entry in enumerate(model))
        extra = {str(entry["content"]): int(entry["id"])
                 for entry in document.get("added_tokens") or ()}
        ids = {str(token): int(i) for token, i in pairs} | extra
        rows = rows_of(checkpoint) or 0
        if not ids or min(ids.values()) < 0 or max(ids.values()) >= rows:
            raise ValueError(f"its numbers do not fit an embedding of {rows} rows")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise MetanetError(f"{printable(path)}: is no tokenizer that can be matched ({error!r:.200}"
                           "). Use a model of the same vocabulary.") from error
    return Tokens(ids, document, frozenset(extra))


@dataclass(frozen=True)
class Vocabulary:
    """Rows of the result: ``rows[model][i]`` is the row of that model that is row ``i``, or -1.

    ``files`` are what the tokenizer of the result is written as; ``added`` counts tokens that the
    reference does not have.
    """

    source: str
    reference: str
    size: int
    rows: Mapping[str, Sequence[int]]
    files: Mapping[str, bytes]
    added: int

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A tensor of every model, with the rows of the result."""
        import torch

        found, have = {}, {}
        for model, tensor in tensors.items():
            index = torch.tensor(self.rows[model])
            have[model] = index >= 0
            found[model] = tensor[index.clamp(min=0)]
        count = sum(mask.to(torch.float32) for mask in have.values())
        for name, mask in have.items():
            if bool(mask.all()):
                continue
            fill = self._mean(found, have, ~mask, count)  # type: ignore[arg-type]
            found[name] = found[name].clone()
            found[name][~mask] = fill.to(found[name].dtype)
        return found

    def _mean(self, found: Mapping[str, Tensor], have: Mapping[str, Tensor], want: Tensor,
              count: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (next(iter(found.values())).dim() - 1)
        total = sum(t[want].float() * have[m][want].float().view(shape) for m, t in found.items())
        mean: Tensor = total / count[want].clamp(min=1).view(shape)
        if self.reference in found:
            own = have[self.reference][want]
            mean[own] = found[self.reference][want][own].float()
        return mean


def vocabulary(
    wanted: str, models: Mapping[str, Checkpoint], reference: str
) -> Vocabulary | None:
    """How the models' vocabularies fit together; None where they are the same.

    Raises:
        MetanetError: an unknown source, or a tokenizer that cannot be read.
    """
    leader = reference if wanted in ("union", "base") else choose(models, models, wanted)
    tokens = {name: tokens_of(name, ckpt) for name, ckpt in models.items()}
    sizes = {name: rows_of(ckpt) or 0 for name, ckpt in models.items()}
    if len(set(sizes.values())) == 1 and all(t.ids == tokens[leader].ids for t in tokens.values()):
        return None
    order = dict(tokens[leader].ids)
    if wanted == "union":
        for each in tokens.values():
            for token, _ in sorted(each.ids.items(), key=lambda item: item[1]):
                if token not in order:
                    order[token] = max(order.values()) + 1
    size = max(sizes[leader], max(order.values()) + 1)
    rows: dict[str, list[int]] = {name: [-1] * size for name in models}
    rows[leader] = [i if i < sizes[leader] else -1 for i in range(size)]
    for token, place in order.items():
        for name, each in tokens.items():
            rows[name][place] = each.ids.get(token, -1)
    added = len(order) - len(tokens[leader].ids)
    files = _files(models[leader], tokens, leader, order)
    return Vocabulary(wanted, leader, size, rows, files, added)


def _files(checkpoint: Checkpoint, tokens: Mapping[str, Tokens], leader: str,
           order: Mapping[str, int]) -> dict[str, bytes]:
    """The leader's tokenizer, with the tokens that are new in it."""
    new = [token for token in order if token not in tokens[leader].ids]
    left = {} if not new else {"vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
                               "spiece.model", "added_tokens.json"}
    out: dict[str, bytes] = {}
    for name in SMALL_FILES:
        path = None if name in left else beside(checkpoint, name)
        if path is not None:
            out[name] = path.read_bytes()
    if new:
        document = _extended(tokens, leader, new, order)
        out["tokenizer.json"] = json.dumps(document, ensure_ascii=False, indent=2).encode()
    return out


def _extended(tokens: Mapping[str, Tokens], leader: str, new: Sequence[str],
              order: Mapping[str, int]) -> dict[str, Any]:
    """Words of another vocabulary go into the vocabulary (with their merges), added tokens stay
    added tokens."""
    document = json.loads(json.dumps(tokens[leader].document))
    model, extra = document["model"], document.setdefault("added_tokens", [])
    wanted, done = set(new), set[str]()
    for name, each in tokens.items():
        if name == leader:
            continue
        entries = {str(e["content"]): e for e in each.document.get("added_tokens") or ()}
        for token in sorted((wanted & each.ids.keys()) - done, key=order.__getitem__):
            if token in entries:
                extra.append({**entries[token], "id": order[token]})
            elif isinstance(model["vocab"], dict):
                model["vocab"][token] = order[token]
            else:
                raise MetanetError("a union of unigram vocabularies would change their scores; "
                                   "use tokenizer_source: base")
            done.add(token)
        _merges(model, each.document.get("model", {}), wanted)
    return dict(document)


def _merges(model: dict[str, Any], other: Mapping[str, Any], wanted: set[str]) -> None:
    """Append the merges that make tokens which are new."""
    if not model.get("merges") or not other.get("merges"):
        return
    known = {_pair(merge) for merge in model["merges"]}
    flat = isinstance(model["merges"][0], str)
    for merge in other["merges"]:
        pair = _pair(merge)
        if pair not in known and "".join(pair) in wanted and all(p in model["vocab"] for p in pair):
            model["merges"].append(" ".join(pair) if flat else list(pair))
            known.add(pair)


def _pair(merge: Any) -> tuple[str, ...]:
    return tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
