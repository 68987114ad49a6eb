"""Populations of networks: imported as ``metanet.zoo``."""
