"""The conformance suite over gunicorn, from inside: test_gunicorn.py starts a worker of it that runs this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent.monkey import is_module_patched
from gunicorn_host import application
from test_hosts import HostConformance, ServerTransport


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

    def make_transport(self) -> GunicornServer:
        return GunicornServer()


def _here(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)
