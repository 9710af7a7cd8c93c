"""The conformance suite over WSGI servers that host the kernel, in this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer
from requirements import module
from test_transports import WebSocketConformance

from realtime import RealtimeKernel, Transport, WebSocketTransport
from realtime.integrations.wsgi import RealtimeMiddleware


def not_found(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Length", "0")])
    return ()


class ServerTransport(Transport):
    """Runs a WSGI server as long as the kernel, whose clients come by the middleware."""

    name = "server"
    middleware: RealtimeMiddleware
    port: int

    def closing(self) -> int:
        return self.middleware.transport.closing()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/realtime"


class PywsgiServer(ServerTransport):
    handler_class: Any = None

    def on_start(self) -> None:
        self.server = WSGIServer(
            ("127.0.0.1", 0), self.middleware, handler_class=self.handler_class, log=None, error_log=None
        )
        self.server.start()
        self.port = self.server.server_port

    def on_drain(self) -> None:
        self.server.close()

    def on_stop(self) -> None:
        self.server.stop(timeout=1)


class WerkzeugServer(ServerTransport):
    """In native threads, which know nothing of the event loop that the kernel runs in."""

    def on_start(self) -> None:
        serving = module("werkzeug.serving")
        self.server = serving.make_server("127.0.0.1", 0, self.middleware, threaded=True)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def on_drain(self) -> None:
        self.server.shutdown()
        self.thread.join()

    def on_stop(self) -> None:
        self.server.server_close()


class OwnServer(WebSocketTransport):
    """Our own, whose own path is another one."""

    def __init__(self) -> None:
        super().__init__(port=0, path="/another")

    @property
    def middleware(self) -> Any:
        return self.app

    @middleware.setter
    def middleware(self, middleware: RealtimeMiddleware) -> None:
        self.app = middleware

    def closing(self) -> int:
        return super().closing() + self.middleware.transport.closing()

    @property
    def url(self) -> str:
        return super().url.replace("/another", "/realtime")


class HostConformance(WebSocketConformance):
    def make_kernel(self, transport: Any, **options: Any) -> RealtimeKernel:
        kernel = super().make_kernel(transport, **options)
        transport.middleware = RealtimeMiddleware(not_found, kernel, **self.options)
        return kernel


class TestBelowOurServer(HostConformance):
    def make_transport(self) -> OwnServer:
        return OwnServer()


class TestPywsgi(HostConformance):
    def make_transport(self) -> PywsgiServer:
        return PywsgiServer()


class TestPywsgiCompressed(TestPywsgi):
    options = {"compression": True}
    client_options = {"compression": "deflate"}
    can_stop_reading = False


class TestGeventWebSocket(HostConformance):
    def make_transport(self) -> PywsgiServer:
        transport = PywsgiServer()
        transport.handler_class = module("geventwebsocket.handler").WebSocketHandler
        return transport


class TestGeventWebSocketMsgpack(TestGeventWebSocket):
    codec = "msgpack"


class TestNativeThreads(HostConformance):
    @pytest.fixture(autouse=True)
    def _quiet(self) -> Iterator[None]:
        logger = logging.getLogger("werkzeug")
        logger.setLevel(logging.ERROR)
        yield
        logger.setLevel(logging.NOTSET)

    def make_transport(self) -> WerkzeugServer:
        return WerkzeugServer()
