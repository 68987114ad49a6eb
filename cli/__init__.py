"""The command line: imported as ``metanet.cli``. Parse, one public API call, render."""
