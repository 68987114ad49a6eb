"""What a merge will do, from headers alone: which tensors, of what, how large, how much memory."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.checkpoint import Checkpoint, natural_sorted, printable
from metanet.checkpoint.info import TensorInfo, is_floating
from metanet.checkpoint.names import some
from metanet.errors import MetanetError
from metanet.tasks.merge.methods import METHODS, Method, Values
from metanet.tasks.merge.methods.base import BLOCK
from metanet.tasks.merge.recipe import Part, Recipe, Setting, Slice, evaluate
from metanet.tasks.merge.sources import config_of, identity, is_tied, open_models
from metanet.tasks.merge.vocabulary import Vocabulary, embeds, vocabulary

if TYPE_CHECKING:
    from metanet.symmetry import Resolved, WeightSpace

_LAYER = re.compile(r"((?:[^.]*[^.\d][^.]*\.)*)(\d+)\.(.+)")
_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_INPUTS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_EARLY = ("embed", "wte", "wpe", "cls_token", "stem", "patch")
# Tables that models compute anew; old files hold them, new ones do not.
_COMPUTED = ("rotary_emb.inv_freq", ".attn.masked_bias")


@dataclass(frozen=True)
class Origin:
    """A tensor of a model."""

    model: str
    name: str


@dataclass(frozen=True)
class Job:
    """One tensor of the result. ``values`` is None where ``parts[0]`` is copied as it is."""

    name: str
    info: TensorInfo
    parts: tuple[Origin, ...]
    base: Origin | None = None
    values: Values | None = None
    by_token: bool = False

    @property
    def origins(self) -> tuple[Origin, ...]:
        """All that is read for it."""
        return self.parts if self.base is None else (*self.parts, self.base)


@dataclass(frozen=True)
class Layers:
    """The repeated part of a network: tensors ``PREFIX.NUMBER.rest``."""

    prefix: str
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Layers:
        """The prefix with most tensors; numbers in order."""
        found = [m for m in map(_LAYER.fullmatch, names) if m]
        if not found:
            return cls("", ())
        prefix = Counter(m[1] for m in found).most_common(1)[0][0]
        return cls(prefix, tuple(sorted({int(m[2]) for m in found if m[1] == prefix})))

    def split(self, name: str) -> tuple[int, str] | None:
        """(number of the layer, rest of the name), or None outside of the layers."""
        found = _LAYER.fullmatch(name)
        if found is None or found[1] != self.prefix or not self.numbers:
            return None
        return int(found[2]), found[3]

    def depth(self, name: str) -> float:
        """From 0 to 1, as gradients of parameters see it."""
        place = self.split(name)
        if place is None:
            return 0.0 if any(word in name for word in _EARLY) else 1.0
        return self.numbers.index(place[0]) / max(len(self.numbers) - 1, 1)


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about a merge but its numbers.

    ``aliases`` are ties of the result (alias -> owner). ``layers`` is the number of layers where
    the recipe changes it. ``untied``: some model had its output embedding apart, so the result has.
    """

    recipe: Recipe
    models: Mapping[str, Checkpoint]
    jobs: tuple[Job, ...]
    aliases: Mapping[str, str]
    vocabulary: Vocabulary | None
    layers: int | None
    untied: bool
    notes: tuple[str, ...]

    @property
    def method(self) -> Method:
        """How tensors are merged."""
        return METHODS[self.recipe.method]

    @property
    def bytes(self) -> int:
        """Of the result's tensors."""
        return sum(job.info.nbytes for job in self.jobs)

    @property
    def download(self) -> int:
        """Most bytes that would come from the Hub (files in its cache do not count)."""
        return sum(c.info(n).nbytes for c in self.models.values() if remote(c)
                   for n in c.names if n not in c.aliases)

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor of the result in float32."""
        return max((4 * job.info.numel for job in self.jobs), default=0)

    @property
    def peak_memory(self) -> int:
        """Bytes above ``import torch``, estimated; mapped files are not counted, aligned models
        are held whole."""
        buffer = max((job.info.nbytes for job in self.jobs), default=0)
        blocks = 4 * BLOCK * (3 * len(self.models) + 4)
        held = 0
        if self.recipe.align is not None:
            held = sum(c.info(n).nbytes for c in self.models.values() for n in c.names)
        return buffer + blocks + held + max(map(self._copies, self.jobs), default=0)

    def _copies(self, job: Job) -> int:
        sizes = [(self.models[o.model], self.models[o.model].info(o.name)) for o in job.origins]
        if job.by_token or self.recipe.align is not None:
            return sum(2 * info.nbytes for _, info in sizes) + 8 * job.info.numel
        return sum(info.nbytes for ckpt, info in sizes if remote(ckpt) or not mapped(ckpt))

    @property
    def digest(self) -> str:
        """sha256 of the recipe and of what identifies its models."""
        return self.recipe.digest({name: identity(c) for name, c in self.models.items()})

    def resolved(self) -> Resolved | None:
        """The reference and the space in which the models are aligned, if they are and the recipe
        names the architecture or the space. Names and shapes are enough for it.

        Raises:
            MetanetError: it does not fit the reference, or is unknown.
        """
        options = self.recipe.align
        if options is None or (options.arch is None and options.spec is None):
            return None
        from metanet.symmetry import resolve

        spec = None if options.spec is None else Path(options.spec)
        return resolve(self.models[self.recipe.reference], arch=options.arch, spec=spec)

    def space(self) -> WeightSpace | None:
        """The space of ``resolved``. Raises MetanetError."""
        found = self.resolved()
        return None if found is None else found.space

    def to_json(self) -> dict[str, Any]:
        """Plain data: what ``metanet merge --plan`` prints."""
        v = self.vocabulary
        return {
            "method": self.recipe.method, "n_tensors": len(self.jobs), "bytes": self.bytes,
            "download_bytes": self.download, "peak_memory": self.peak_memory,
            "largest_tensor": self.largest, "reference": self.recipe.reference,
            "models": [{"model": name, "tensors": len(c.names), "dtypes": sorted(
                {c.dtype(n) for n in c.names}), "remote": remote(c)}
                for name, c in self.models.items()],
            "tensors": [{"name": job.name, "shape": list(job.info.shape), "dtype": job.info.dtype,
                         "from": len(job.origins), "copied": job.values is None}
                        for job in self.jobs],
            "ties": dict(self.aliases), "layers": self.layers, "notes": list(self.notes),
            "vocabulary": None if v is None else {"source": v.source, "size": v.size,
                                                  "added": v.added, "of": v.reference},
        }


def remote(checkpoint: Checkpoint) -> bool:
    """Whether its tensors are elsewhere."""
    return checkpoint.source.revision is not None and not checkpoint.source.files


def mapped(checkpoint: Checkpoint) -> bool:
    """Whether reading a tensor takes no memory of its own."""
    return "safetensors" in checkpoint.source.format or "shards" in checkpoint.source.format


def plan(recipe: Recipe, given: Mapping[str, Any] | None = None) -> Plan:
    """Open the headers of all models and lay out the merge; nothing else is read.

    Args:
        recipe: what to do.
        given: models that are in memory, by their name in the recipe.

    Raises:
        MetanetError: models that do not fit each other, with the tensor and the model.
    """
    return _Planner(recipe, open_models(recipe.models, given or {})).plan()


class _Planner:
    def __init__(self, recipe: Recipe, models: Mapping[str, Checkpoint]) -> None:
        self.recipe, self.models = recipe, models
        self.method = METHODS[recipe.method]
        self.reference = models[recipe.reference]
        self.notes: list[str] = []
        self.untied = False
        wanted = recipe.tokenizer_source
        self.vocabulary = None if wanted is None else vocabulary(wanted, models, recipe.reference)

    def plan(self) -> Plan:
        jobs: dict[str, Job] = {}
        for start, slices in self.recipe.modules.items():
            for job in self._module(start, slices):
                jobs[job.name] = job
        if not jobs:
            raise MetanetError("no tensor is left to merge: see the modules of the recipe")
        aliases = self._aliases(jobs)
        order = [n for n in natural_sorted(jobs) if n not in aliases]
        sliced = any(part.layers for cut in self.recipe.slices for part in cut.parts)
        count = len(Layers.of(jobs).numbers) if sliced else None
        return Plan(self.recipe, self.models, tuple(jobs[n] for n in order), aliases,
                    self.vocabulary, count, self.untied, tuple(dict.fromkeys(self.notes)))

    # ------------------------------------------------------------ which tensors

    def _belongs(self, start: str, name: str) -> bool:
        if start:
            return name.startswith(f"{start}.")
        return not any(s and name.startswith(f"{s}.") for s in self.recipe.modules)

    def _names(self, model: str, start: str) -> list[str]:
        return [n for n in self.models[model].names
                if self._belongs(start, n) and not n.endswith(_COMPUTED)]

    def _module(self, start: str, slices: Sequence[Slice]) -> Iterator[Job]:
        models = dict.fromkeys(part.model for cut in slices for part in cut.parts)
        layers = {m: Layers.of(self._names(m, start)) for m in (*models, self.recipe.reference)}
        for cut in slices:
            self._check_models(cut)
        if all(part.layers is None for cut in slices for part in cut.parts):
            if len(slices) != 1:
                raise MetanetError("several slices need layer_range in every source")
            yield from self._whole(start, slices[0], layers)
        else:
            yield from self._sliced(start, slices, layers)

    def _check_models(self, cut: Slice) -> None:
        base, method = self.recipe.base, self.method
        if method.base is True and base is None:
            raise MetanetError(f"method {method.name!r} needs base_model")
        count = len(self._parts(cut))
        if not method.models[0] <= count <= method.models[1]:
            least, most = method.models
            told = str(least) if least == most else f"at least {least}"
            raise MetanetError(f"method {method.name!r} takes {told} models"
                               f"{' beside the base' if method.base else ''}, not {count}")

    def _parts(self, cut: Slice) -> list[Part]:
        """The models that are merged: a base of task vectors is not one of them; for slerp the
        base is the end at t = 0."""
        base = self.recipe.base
        if base is None or self.method.base is False:
            parts = list(cut.parts)
            if self.method.name == "slerp" and base is not None:
                if base not in [p.model for p in parts] and len(parts) == 1:
                    parts.append(Part(base, parts[0].layers))
                parts.sort(key=lambda part: part.model != base)
            return parts
        return [part for part in cut.parts if part.model != base]

    def _whole(self, start: str, cut: Slice, layers: Mapping[str, Layers]) -> Iterator[Job]:
        parts = self._parts(cut)
        names = dict.fromkeys(n for m in (self.recipe.reference, *(p.model for p in parts))
                              for n in self._names(m, start))
        base = self.recipe.base if self.method.base is not False else None
        for name in natural_sorted(names):
            origins = [self._origin(part.model, name) for part in parts]
            root = None if base is None else self._origin(base, name)
            depth = layers[self.recipe.reference].depth(name)
            yield self._job(name, cut, parts, origins, root, depth)

    def _sliced(self, start: str, slices: Sequence[Slice], layers: Mapping[str, Layers]
                ) -> Iterator[Job]:
        at = 0
        head = layers[self.recipe.reference].prefix
        for cut in slices:
            parts, base = self._parts(cut), self._base_part(cut)
            every = [*parts, *([base] if base is not None else [])]
            if any(part.layers is None for part in every):
                raise MetanetError("either all sources of a module have layer_range, or none")
            first, last = every[0].layers or (0, 0)
            for part in every:
                self._check_range(part, layers[part.model])
            for k in range(last - first):
                number = first + k
                for name in self._names(every[0].model, start):
                    place = layers[every[0].model].split(name)
                    if place is None or place[0] != number:
                        continue
                    found = [self._layer(part, layers, k, place[1]) for part in every]
                    root = found.pop() if base is not None else None
                    depth = k / max(last - first - 1, 1)
                    yield self._job(f"{head}{at + k}.{place[1]}", cut, parts, found, root, depth)
            at += last - first
        yield from self._around(start, slices, layers)

    def _around(self, start: str, slices: Sequence[Slice], layers: Mapping[str, Layers]
                ) -> Iterator[Job]:
        """Tensors before the layers come from the first slice, those after from the last."""
        for name in self._names(self.recipe.reference, start):
            if layers[self.recipe.reference].split(name) is None:
                depth = layers[self.recipe.reference].depth(name)
                cut = slices[0] if depth == 0.0 else slices[-1]
                parts, base = self._parts(cut), self._base_part(cut)
                yield self._job(name, cut, parts, [self._origin(p.model, name) for p in parts],
                                None if base is None else self._origin(base.model, name), depth)

    def _base_part(self, cut: Slice) -> Part | None:
        base = self.recipe.base
        if base is None or self.method.base is False:
            return None
        found = next((part for part in cut.parts if part.model == base), None)
        if found is None:
            raise MetanetError(f"a slice says nothing about the base model {printable(base, 80)}: "
                               "add it to the sources, with the layer_range that is its own")
        return found

    def _check_range(self, part: Part, layers: Layers) -> None:
        last = (part.layers or (0, 0))[1]
        if layers.numbers != tuple(range(len(layers.numbers))) or last > len(layers.numbers):
            raise MetanetError(f"{printable(part.model, 100)}: layer_range ends at {last}, the "
                               f"model has {len(layers.numbers)} layers")

    def _layer(self, part: Part, layers: Mapping[str, Layers], k: int, rest: str) -> Origin:
        number = (part.layers or (0, 0))[0] + k
        return self._origin(part.model, f"{layers[part.model].prefix}{number}.{rest}")

    # ------------------------------------------------------------ one tensor

    def _origin(self, model: str, name: str) -> Origin:
        """Where a model has that tensor; a tied output embedding is its input embedding."""
        checkpoint = self.models[model]
        if name in checkpoint:
            return Origin(model, name)
        if name.endswith(_OUTPUTS) and is_tied(checkpoint):
            found = [n for n in checkpoint.names if n.endswith(_INPUTS)]
            if len(found) == 1:
                self.untied = True
                self.notes.append(f"{printable(name)} is tied in some models and apart in others: "
                                  "it is apart in the result")
                return Origin(model, found[0])
        raise MetanetError(
            f"{printable(model, 100)}: it has no tensor {printable(name, 80)!r}, which another "
            "model has. Merge models of one architecture; name modules to merge a part of them.")

    def _job(self, name: str, cut: Slice, parts: Sequence[Part], origins: Sequence[Origin],
             base: Origin | None, depth: float) -> Job:
        lead = base or origins[0]
        info = self._info(lead)
        if not is_floating(info.dtype):
            self.notes.append(f"{info.dtype} tensors are copied from {printable(lead.model, 80)}")
            return Job(name, TensorInfo(info.shape, info.dtype), (lead,))
        every = [*origins, *([base] if base is not None else [])]
        shape, by_token = self._shape(name, every)
        dtype = self.recipe.out_dtype or self.recipe.dtype or info.dtype
        values = self._values(name, cut, parts, depth)
        return Job(name, TensorInfo(shape, dtype), tuple(origins), base, values, by_token)

    def _info(self, origin: Origin) -> TensorInfo:
        info = self.models[origin.model].info(origin.name)
        if info.dtype.startswith(("float8", "complex")):
            raise MetanetError(f"{printable(origin.model, 100)}: tensor "
                               f"{printable(origin.name, 80)!r} is {info.dtype}, which cannot be "
                               "averaged. Merge the weights before quantisation.")
        return info

    def _shape(self, name: str, origins: Sequence[Origin]) -> tuple[tuple[int, ...], bool]:
        shapes = {o: self._info(o).shape for o in origins}
        first = shapes[origins[0]]
        if self.vocabulary is not None and embeds(name):
            sizes = {o: (len(s), *s[1:]) for o, s in shapes.items()}
            if len(set(sizes.values())) == 1 and first:
                return (self.vocabulary.size, *first[1:]), True
        if len(set(shapes.values())) > 1:
            told = some(f"{o.model}: {list(s)}" for o, s in shapes.items())
            hint = ("Its rows are tokens: add tokenizer_source: union or base" if embeds(name)
                    else "Merge models of one architecture and size")
            raise MetanetError(f"tensor {printable(name, 80)!r} has different shapes ({told}). "
                               f"{hint}.")
        return first, False

    def _values(self, name: str, cut: Slice, parts: Sequence[Part], depth: float) -> Values:
        def found(*levels: Mapping[str, Setting]) -> dict[str, object]:
            out: dict[str, object] = {}
            for level in levels:  # weakest first
                for key, setting in level.items():
                    value = evaluate(setting, name, depth)
                    if value is not None:
                        out[key] = value
            return out

        shared = (self.recipe.parameters, cut.parameters)
        try:
            return self.method.values(found(*shared, *(p.parameters for p in parts)),
                                      [found(*shared, p.parameters) for p in parts])
        except MetanetError as error:
            raise MetanetError(f"tensor {printable(name, 80)!r}: {error}") from None

    def _aliases(self, jobs: Mapping[str, Job]) -> dict[str, str]:
        """Ties that all models have; where one has not, both tensors are written."""
        out: dict[str, str] = {}
        for alias, owner in self.reference.aliases.items():
            if alias in jobs and owner in jobs:
                tied = all(self.models[o.model].aliases.get(alias) == owner
                           for o in jobs[alias].origins)
                if tied:
                    out[alias] = owner
        return out


def result_config(plan: Plan) -> dict[str, Any]:
    """config.json of the result: the reference's, with what has changed."""
    config = copy.deepcopy(config_of(plan.models[plan.recipe.reference]))
    if not config:
        return {}
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if plan.vocabulary is not None:
        inner["vocab_size"] = plan.vocabulary.size
    if plan.layers is not None:
        key = next((k for k in ("num_hidden_layers", "n_layer", "num_layers") if k in inner),
                   "num_hidden_layers")
        inner[key] = plan.layers
    dtype = plan.recipe.out_dtype or plan.recipe.dtype
    for key in ("torch_dtype", "dtype"):
        if dtype is not None and key in config:
            config[key] = dtype
    if plan.untied:
        config["tie_word_embeddings"] = False
    return config
