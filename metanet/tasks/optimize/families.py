"""The tasks that optimizers are trained on, by name. None of them is in the benchmark."""

from __future__ import annotations

from metanet.checkpoint.names import no_such
from metanet.errors import MetanetError
from metanet.tasks.optimize.inner import Characters, Recurrent, Siren, Task, cnn, mlp

TRAINING: dict[str, Task] = {task.name: task for task in (
    Task("mlp-digits", "digits", 8, lambda: mlp(64, (32,), 10)),
    Task("mlp2-digits-tanh", "digits", 8, lambda: mlp(64, (24, 24), 10, "tanh"), batch=32),
    Task("mlp-mnist", "mnist", 8, lambda: mlp(64, (32, 32), 10)),
    Task("mlp-cifar", "cifar10", 8, lambda: mlp(192, (32,), 10), batch=128),
    Task("mlp-norm-mnist", "mnist", 8, lambda: mlp(64, (32, 32), 10, "gelu", norm=True)),
    Task("cnn-digits", "digits", 8, lambda: cnn(1, (8, 16)), batch=32),
    Task("cnn-cifar", "cifar10", 8, lambda: cnn(3, (12, 16)), batch=32),
    Task("rnn-digits", "digits", 8, lambda: Recurrent(8, 24, 10), batch=32),
    Task("text", "tiny-shakespeare", 12, lambda: Characters(65, 16, 2, 1, 12), "next", 16),
    Task("siren-mnist", "mnist", 14, lambda: Siren(16, 2), "image"),
    Task("siren3-mnist", "mnist", 16, lambda: Siren(20, 3), "image"),
)}


def tasks_of(names: tuple[str, ...]) -> tuple[Task, ...]:
    """Tasks by their names.

    Raises:
        MetanetError: for a name that is none.
    """
    strange = [name for name in names if name not in TRAINING]
    if strange:
        raise MetanetError(no_such("training task", strange[0], TRAINING))
    return tuple(TRAINING[name] for name in names)
