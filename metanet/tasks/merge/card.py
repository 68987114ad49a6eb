"""The model card of a merged model: where it comes from and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metanet.checkpoint import printable
from metanet.tasks.merge.plan import Plan
from metanet.tasks.merge.sources import address


def _hub_names(plan: Plan) -> list[str]:
    found = [c.source.uri for c in plan.models.values() if c.source.revision is not None]
    return [uri.removeprefix("hf://").partition("@")[0] for uri in found]


def card(plan: Plan, told: Mapping[str, Any] | None) -> str:
    """README.md with the recipe, the models at their revisions, and the alignment."""
    import yaml

    head: dict[str, Any] = {"tags": ["merge", "metanet"]}
    if _hub_names(plan):
        head["base_model"] = _hub_names(plan)
    recipe = "".join(f"    {line}\n" for line in plan.recipe.to_yaml().splitlines())
    lines = ["---", yaml.safe_dump(head, sort_keys=True).strip(), "---", "",
             "# A merged model", "",
             f"Made by `metanet merge` with the method `{plan.recipe.method}` "
             f"({plan.method.source}): {len(plan.jobs)} tensors, {plan.bytes} bytes.", "",
             "## Recipe", "", recipe.rstrip("\n"), "", "## Models", "",
             "| Model | Revision | Tensors |", "|---|---|---|"]
    for name, checkpoint in plan.models.items():
        shown = printable(address(name), 200).replace("|", "\\|").replace("`", "'")
        lines.append(f"| `{shown}` | {checkpoint.source.revision or '-'} | "
                     f"{len(checkpoint.names)} |")
    if told is not None:
        lines += ["", "## Alignment", "", "The models were first brought into the order of "
                  f"neurons of `{printable(told['to'], 200)}`.", ""]
        lines += [f"- `{printable(n, 200)}`: {m['method']}, objective {m['objective']:.6g}"
                  for n, m in told["models"].items()]
    lines += [*(["", "## Notes", ""] if plan.notes else []), *(f"- {note}" for note in plan.notes)]
    return "\n".join(lines) + "\n"
