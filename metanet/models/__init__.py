"""Metanets: networks over weights, ready to train, save and load."""

from __future__ import annotations

from metanet.models.editor import Editor
from metanet.models.metanet import Metanet
from metanet.models.mixed import MixedMetanet
from metanet.models.train import Fit, fit

__all__ = ["Editor", "Fit", "Metanet", "MixedMetanet", "fit"]
