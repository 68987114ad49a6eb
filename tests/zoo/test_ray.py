"""Ray: a local cluster of two workers, one killed on the way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import engine_jobs as jobs
import pytest
from metanet.zoo import Zoo
from metanet.zoo.build import build
from metanet.zoo.engine import engine
from metanet.zoo.recipe import parse

pytestmark = pytest.mark.filterwarnings("default")
RECIPE = parse("about: x\nfactory: inr\nn: 12\ndata: {name: digits}\nchunk: 4\ncommit: 8\n"
               "model: {sizes: [2, 5, 5, 1]}\nfit: {steps: 4}\n", "tiny")


@pytest.fixture(scope="module")
def cluster():  # type: ignore[no-untyped-def]
    import ray

    here = Path(__file__).resolve().parent.parent
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(
                 [str(here), os.environ.get("PYTHONPATH", "")])}})
    yield ray
    ray.shutdown()


def test_order_errors_and_a_killed_worker(cluster, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    crew = engine("ray", 2)
    assert list(crew.map(jobs.square, range(30))) == [i * i for i in range(30)]
    assert list(crew.map(jobs.die_once, [(i, str(tmp_path)) for i in range(12)])) == list(range(12))
    assert (tmp_path / "died").exists()
    with pytest.raises(ValueError, match="item two"):
        list(crew.map(jobs.fail, range(4)))


def test_a_build_has_the_bytes_of_a_local_one(cluster, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    build(RECIPE, tmp_path / "ray", engine="ray", workers=2)
    build(RECIPE, tmp_path / "local", workers=1)
    assert Zoo.open(tmp_path / "ray").digest() == Zoo.open(tmp_path / "local").digest()


def wait_for(port: int) -> None:
    """Until something listens there."""
    end = time.monotonic() + 90
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.5)


@pytest.mark.slow
def test_a_running_cluster_is_used(tmp_path: Path) -> None:
    """As ``ray start --head`` and then ``metanet zoo build --engine ray`` elsewhere."""
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "out"
    recipe.write_text("base: inr-digits\nfit: {steps: 4}\nviews: 1\nn: 16\n", encoding="utf-8")
    port, short = 6388, tempfile.mkdtemp(prefix="ray")  # sockets want short paths
    here = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
         f"--port={port}", "--include-dashboard=false", f"--temp-dir={short}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=here)
    try:
        wait_for(port)
        done = subprocess.run(
            [sys.executable, "-m", "metanet", "zoo", "build", str(recipe), "-o", str(out),
             "--engine", "ray"], env={**here, "RAY_ADDRESS": f"127.0.0.1:{port}"},
            capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        assert "existing Ray cluster" in done.stderr
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(90)
        shutil.rmtree(short, ignore_errors=True)
    build(str(recipe), tmp_path / "local", workers=1)
    assert Zoo.open(out).digest() == Zoo.open(tmp_path / "local").digest()
