"""realtime: hosted by gunicorn's gevent worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.peers.announce import announce, free_port
from benchmarks.peers.realtime_kernel import make_kernel
from realtime.integrations.wsgi import RealtimeMiddleware


def nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer 404."""
    start_response("404 Not Found", [("Content-Length", "0")])
    return ()


application = RealtimeMiddleware(nothing, make_kernel())

if __name__ == "__main__":
    port = free_port()
    announce(port)
    options = ["-k", "gevent", "--log-level", "warning", "-b", f"127.0.0.1:{port}", "--no-control-socket"]
    command = [sys.executable, "-m", "gunicorn", *options, "benchmarks.peers.realtime_hosted:application"]
    os.execv(sys.executable, command)
