"""Every hostile text is refused with a clear MetanetError, fast, and nothing is run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from attacks.hostile_texts import TEXTS

from metanet.errors import MetanetError


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str, tmp_path: Path) -> None:
    read, write = TEXTS[name]
    path, canary = tmp_path / "thing.yml", tmp_path.parent / f"{tmp_path.name}.canary"
    write(path, canary)
    before = sorted(map(str, tmp_path.iterdir()))
    begin = time.process_time()
    with pytest.raises(MetanetError) as caught:
        read(path)
    assert time.process_time() - begin < 10  # two on a calm machine; the first one imports
    assert all(line.isprintable() for line in str(caught.value).split("\n")), caught.value
    assert not canary.exists()
    assert sorted(map(str, tmp_path.iterdir())) == before
