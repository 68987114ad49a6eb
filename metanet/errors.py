"""One root, few leaves. A message says what, which value, where, and what to do next."""


class MetanetError(Exception):
    """Root of all errors that metanet raises on purpose."""


class CheckpointError(MetanetError):
    """A file, folder or mapping cannot be used as a checkpoint."""


class TraceError(MetanetError):
    """A module or configuration cannot be turned into a stream of operations."""


class SymmetryError(MetanetError):
    """A space, group element or text form is malformed, or an action is undefined."""


class SpaceMismatch(SymmetryError):
    """Tensors and a WeightSpace do not fit each other."""


class ZooError(MetanetError):
    """A zoo is damaged, leaks, or is asked for what it does not hold."""


class HubError(MetanetError):
    """The Hub, or the network on the way to it, failed."""
