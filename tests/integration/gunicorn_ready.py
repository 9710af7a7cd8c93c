"""gunicorn's configuration: its workers say when they have come so far that they serve, and heed signals."""

from __future__ import annotations

from typing import Any


def post_worker_init(worker: Any) -> None:
    print(f"process {worker.pid} is ready to serve", flush=True)
