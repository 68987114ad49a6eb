"""Which tensors a prediction rests on."""

from __future__ import annotations

import torch

from metanet.tasks.predict import metrics
from metanet.tasks.predict.data import Task
from metanet.tasks.predict.rows.base import Fitted


def attribution(fitted: Fitted, task: Task, seed: int = 0) -> dict[str, float]:
    """Tensor → how much of the lead score is lost when members swap that tensor among them.

    Measured on the calibration part, which is neither trained on nor tested on.
    """
    part = task.parts["calib"]
    whole = metrics.lead(fitted.predict(part), part.y, part.strata)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    found = {}
    for name in task.space.tensors:
        own = {block.name for block in task.space.blocks(name)}
        blocks = {k: x[order] if k in own else x for k, x in part.batch.blocks.items()}
        swapped = part.with_batch(part.batch.with_blocks(blocks))
        found[name] = whole - metrics.lead(fitted.predict(swapped), part.y, part.strata)
    return found
