"""The conformance suite over gunicorn's workers: the real server in a process of its own, which runs the suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from requirements import module

HERE = Path(__file__).parent
PATIENCE = 240.0  # seconds for one worker's suite, which takes six when the machine is idle
WORKERS = {
    "gevent": ["gevent"],
    "four of gevent": ["gevent", "-w", "4"],
    "gevent-websocket": ["geventwebsocket.gunicorn.workers.GeventWebSocketWorker"],
    "threads": ["gthread", "--threads", "200"],
}


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_of_gunicorn_passes_the_suite(worker: str) -> None:
    module("gunicorn")
    module("geventwebsocket")
    command = [sys.executable, "-m", "gunicorn", "-k", *WORKERS[worker], "-b", "127.0.0.1:0", "--timeout", "120"]
    done = subprocess.run(
        [*command, "--no-control-socket", "gunicorn_host:application"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "the suite ended with 0" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
