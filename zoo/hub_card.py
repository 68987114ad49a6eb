"""The README of a zoo on the Hub: what it holds, its licence, and where it comes from."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from metanet.checkpoint.names import printable

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo

# Names of licences that the Hub knows; any other is `other` with a name.
_KNOWN = frozenset({
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-3.0", "agpl-3.0",
    "mpl-2.0", "isc", "unlicense", "openrail", "odbl", "pddl", "unknown", "other",
})
_MANY = 20


def readme(zoo: Zoo) -> str:
    """The text of README.md: front matter that the Hub reads, then what a person wants to know."""
    found = zoo.stats()
    return "\n".join(["---", _front(found["license"]).rstrip(), "---", "", *_body(found)]) + "\n"


def _front(license_: str) -> str:
    known = license_.lower() in _KNOWN
    front: dict[str, Any] = {"license": license_.lower() if known else "other"}
    if not known:
        front["license_name"] = re.sub(r"[^a-z0-9.-]+", "-", license_.lower()).strip("-") or "named"
    front["library_name"] = "metanet"
    front["tags"] = ["metanet", "weight-space", "model-zoo"]
    return str(yaml.safe_dump(front, sort_keys=False))


def _body(found: dict[str, Any]) -> list[str]:
    state = "complete" if found["complete"] else "incomplete"
    out = ["# A zoo of networks", "",
           f"{found['members']} networks in {found['shards']} shards, {found['bytes']} bytes; "
           f"{len(found['spaces'])} architectures; {state}. Licence: {_text(found['license'])}.",
           "", "```python", "import metanet as mn", "",
           'zoo = mn.zoo.Zoo.open(mn.zoo.pull("hf://ORG/NAME", "zoo").out)',
           "for batch in zoo.batches(\"split = 'train'\"):", "    batch.tensors", "```", "",
           "## Architectures", "", "| space | members | parameters |", "|---|---:|---:|"]
    out += [f"| {_text((s['space'] or s['layout'])[:16])} | {s['members']} | {s['parameters']} |"
            for s in found["spaces"][:_MANY]]
    if len(found["spaces"]) > _MANY:
        out.append(f"| and {len(found['spaces']) - _MANY} more | | |")
    parts = found["splits"]["parts"]
    if parts:
        out += ["", "## Split", "", "| part | members |", "|---|---:|"]
        out += [f"| {_text(name)} | {n} |" for name, n in parts.items()]
    out += ["", "## Provenance", "", *_fenced(found["provenance"])]
    if found["recipe"] is not None:
        out += ["", "## Recipe", "", f"sha256 `{found['recipe_hash']}`", "",
                *_fenced(found["recipe"])]
    return out


def _text(value: object) -> str:
    """A text from a zoo inside Markdown: shown, never obeyed."""
    return re.sub(r"([\\`*_{}\[\]()<>#|!~&])", r"\\\1", printable(value, 200))


def _fenced(value: Any) -> list[str]:
    """Plain data as a block of JSON that nothing in it can close."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}json", text, fence]
