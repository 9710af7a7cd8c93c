"""The conformance suite over gunicorn, from inside: test_gunicorn.py starts a worker of it that runs this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent.monkey import is_module_patched
from gunicorn_host import application, worker
from test_hosts import HostConformance, ServerTransport

from realtime import RealtimeKernel
from realtime.integrations.wsgi_gunicorn import meeting_place
from realtime.testing.peers import wait_until
from realtime.transports.mesh_siblings import join_siblings

SIBLINGS = worker.cfg.workers - 1


class GunicornServer(ServerTransport):
    """Takes the requests of the server that is there already, for as long as the kernel runs."""

    def on_start(self) -> None:
        self.port = application.port
        application.application = self.middleware

    def on_drain(self) -> None:
        application.application = None

    def on_stop(self) -> None:
        application.application = None


class TestInGunicorn(HostConformance):
    @pytest.fixture(autouse=True)
    def _native_threads(self, in_thread: Callable[..., Any]) -> None:
        """Where all is patched, blocking clients wait in greenlets like everything else."""
        self._in_thread = _here if is_module_patched("threading") else in_thread

    def make_kernel(self, transport: Any, **options: Any) -> RealtimeKernel:
        kernel = super().make_kernel(transport, **options)
        if SIBLINGS:  # as before the first request, which comes when the tests' kernels run already
            join_siblings(kernel, meeting_place(worker.ppid))
        return kernel

    def make_transport(self) -> GunicornServer:
        return GunicornServer()

    def test_the_other_workers_are_nodes(self) -> None:
        with self.serving() as serving:
            wait_until(lambda: len(serving.kernel.hub.cluster.node_ids()) == SIBLINGS)


def _here(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)
