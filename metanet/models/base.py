"""What every metanet shares: plain-data configurations, saving and loading without code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from torch import nn

from metanet.errors import CheckpointError, SymmetryError
from metanet.symmetry import WeightSpace

CODERS: dict[type, Any] = {WeightSpace: (WeightSpace.to_json, WeightSpace.from_json)}
LIMITS = {"outputs": 65536, "channels": 64, "width": 4096, "depth": 64, "head": 65536,
          "probes": 4096}
_MAY_BE_ZERO = ("depth", "probes")

Self = TypeVar("Self", bound="Saved")


class Saved(nn.Module, PyTorchModelHubMixin, library_name="metanet", coders=CODERS):
    """A metanet that is described by plain data and stored as config.json and safetensors."""

    space: WeightSpace

    @classmethod
    def from_config(cls: type[Self], config: Mapping[str, Any], **more: Any) -> Self:
        """Build from plain data: the arguments of the class by name.

        Args:
            config: plain data, as ``config`` gives it.
            more: arguments that are not plain data (``module``).

        Raises:
            SymmetryError: for an unknown argument or a value out of range.
        """
        known = set(cls._hub_mixin_init_parameters) - {"self"}
        unknown = sorted(set(config) - known)
        if unknown or ("space" in known and "space" not in config):
            raise SymmetryError(f"config: {unknown[0]!r} is not known" if unknown
                                else "config: 'space' is missing")
        return cls(**{**config, **more})

    @classmethod
    def from_pretrained(
        cls: type[Self], pretrained_model_name_or_path: str | Path, **options: Any
    ) -> Self:
        """Load what ``save_pretrained`` wrote, from a folder or the Hub (config.json and
        safetensors; no code is run).

        Args:
            pretrained_model_name_or_path: the folder, or the name of a repository.
            options: of PyTorchModelHubMixin, and arguments that are not plain data (``module``).

        Raises:
            CheckpointError: if there is no such net, or its files do not belong together.
            SymmetryError: for a configuration out of range.
        """
        source = pretrained_model_name_or_path
        try:
            net: Self = super().from_pretrained(source, **options)
        except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{source}: cannot be loaded as a {cls.__name__}: {error}. "
                                  f"Name a folder that save_pretrained wrote") from error
        return net.eval()

    @property
    def config(self) -> dict[str, Any]:
        """Plain data that ``from_config`` builds an equal architecture from."""
        known: Any = self._hub_mixin_config or {}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()
                 if k != "module"}
        if "space" in plain:
            plain["space"] = self.space.to_json()
        return plain


def read_space(space: WeightSpace | Mapping[str, Any] | str) -> WeightSpace:
    """A space from itself, its JSON or its text."""
    if isinstance(space, WeightSpace):
        return space
    return WeightSpace.parse(space) if isinstance(space, str) else WeightSpace.from_json(space)


def check_sizes(**sizes: int) -> None:
    """Whether sizes are integers in their limits: a file may not ask for all memory.

    Raises:
        SymmetryError: naming the first that is not.
    """
    for name, value in sizes.items():
        least = 0 if name in _MAY_BE_ZERO else 1
        if type(value) is not int or not least <= value <= LIMITS[name]:
            raise SymmetryError(f"{name}={value!r} is not an integer in "
                                f"{least} … {LIMITS[name]}")
