"""``python -m metanet`` is the command ``metanet``."""

from __future__ import annotations

from metanet.cli.app import main

if __name__ == "__main__":
    main()
