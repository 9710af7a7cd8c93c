"""What gunicorn serves for test_gunicorn.py: whichever middleware the suite tests, which runs in the same process.

The suite needs the kernel at hand and gunicorn makes the process, so it is gunicorn's worker that runs pytest: in a
greenlet or a native thread beside the requests, as ``threading`` is patched or not. Then the server is told to end.
Of several workers the first does; the others take no requests, as their kernels are not at hand, and are the other
nodes of the suite's.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from realtime import RealtimeKernel
from realtime.integrations.wsgi_gunicorn import adapt, current_worker

SUITE = Path(__file__).with_name("suite_in_gunicorn.py")
ENDED = "the suite ended with"


class Mount:
    """A WSGI application that stands for another, or says that there is none."""

    def __init__(self) -> None:
        self.application: Callable[..., Iterable[bytes]] | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.application is None:
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return ()
        return self.application(environ, start_response)

    @property
    def port(self) -> int:
        """Where gunicorn listens."""
        return int(current_worker().sockets[0].getsockname()[1])


application = Mount()


def run_suite() -> None:
    """Run pytest, tell how it ended, and end the server."""
    import pytest  # not before it is known whether everything is patched

    code: Any = "an error"
    try:
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", str(SUITE)]))
    finally:
        print(f"{ENDED} {code}", flush=True)
        os.kill(os.getppid(), signal.SIGTERM)


def be_a_sibling() -> None:
    """Run a kernel as the middleware would, for as long as the worker lives."""
    kernel = RealtimeKernel()
    adapt(kernel)
    kernel.start()
    kernel.wait()


worker = current_worker()
if worker.age == 1:
    threading.Thread(target=run_suite, daemon=True).start()
else:
    worker.sockets = []
    threading.Thread(target=be_a_sibling, daemon=True).start()
