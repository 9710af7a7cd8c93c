"""RealtimeMiddleware where nothing can work, says so; and what it does around its connections."""

from __future__ import annotations

import io
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.pywsgi import WSGIServer
from raw import frame, request
from requirements import module

from realtime import ConfigurationError, RealtimeKernel
from realtime.integrations.wsgi import RealtimeMiddleware
from realtime.integrations.wsgi_gunicorn import meeting_place
from realtime.integrations.wsgi_hosts import request_from

HANDSHAKE = {
    "HTTP_HOST": "example.com",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}

Answer = tuple[str, dict[str, str], bytes]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "3")])
    return [b"app"]


@pytest.fixture
def kernel() -> Iterator[RealtimeKernel]:
    made = RealtimeKernel(log_level="error")
    yield made
    made.stop(2)


def environ(path: str = "/realtime", **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        "wsgi.multithread": True,
        **HANDSHAKE,
        **more,
    }


def call(middleware: RealtimeMiddleware, environ: dict[str, Any]) -> Answer:
    """Ask as a server in greenlets does."""
    answered: list[Any] = []

    def ask() -> bytes:
        return b"".join(middleware(environ, lambda status, headers: answered.extend((status, dict(headers)))))

    body = gevent.spawn(ask).get(timeout=10)
    return answered[0], answered[1], body


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"SERVER_SOFTWARE": "waitress"}, "waitress"),
        ({"SERVER_SOFTWARE": "WSGIServer/0.2"}, "wsgiref's server does not let"),
        ({"uwsgi.version": b"2"}, "uWSGI"),
        ({"mod_wsgi.version": (5,)}, "mod_wsgi"),
        ({"asgi.scope": {}}, "ASGI"),
        ({}, "this server"),
        ({"gunicorn.socket": None, "wsgi.multithread": False}, "gunicorn's sync worker"),
        ({"werkzeug.socket": None, "wsgi.multithread": False}, "--with-threads"),
    ],
    ids=["waitress", "wsgiref", "uwsgi", "mod_wsgi", "asgi", "unknown", "gunicorn-sync", "werkzeug-alone"],
)
def test_a_server_without_a_socket_to_take_is_named_with_what_to_change(
    kernel: RealtimeKernel, more: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    middleware = RealtimeMiddleware(app, kernel)
    with caplog.at_level(logging.ERROR, "realtime"):
        for _ in range(2):
            status, _, body = call(middleware, environ(**more))
            assert status == "500 Internal Server Error"
            assert named in body.decode()
    assert [named in record.message for record in caplog.records] == [True]  # once
    assert call(middleware, environ("/"))[2] == b"app"


def test_the_server_of_the_standard_library_is_refused_where_it_is_patched(kernel: RealtimeKernel) -> None:
    middleware = RealtimeMiddleware(app, kernel)
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, ours.makefile("rb", -1) as rfile:  # what pywsgi gives its requests, too
        status, _, body = call(middleware, environ(**{"wsgi.input": rfile, "SERVER_SOFTWARE": "WSGIServer/0.2"}))
    assert status == "500 Internal Server Error"
    assert b"gunicorn -k gevent -w 4 module:app" in body


def test_what_is_no_handshake_is_refused_without_headers_that_an_application_must_not_set(
    kernel: RealtimeKernel,
) -> None:
    middleware = RealtimeMiddleware(app, kernel)
    status, headers, _ = call(middleware, environ(HTTP_UPGRADE=""))
    assert status == "426 Upgrade Required"
    assert not {"upgrade", "connection"} & {name.lower() for name in headers}
    status, headers, _ = call(middleware, environ(HTTP_SEC_WEBSOCKET_VERSION="8"))
    assert headers["Sec-WebSocket-Version"] == "13"
    assert call(middleware, environ(CONTENT_LENGTH="3"))[0] == "400 Bad Request"
    assert kernel.stats()["transports"][0]["counters"]["upgrades_refused"] == 3


def test_what_a_proxy_says_counts_where_something_in_front_believes_it(kernel: RealtimeKernel) -> None:
    middleware = RealtimeMiddleware(app, kernel)
    forwarded = environ(
        HTTP_HOST="127.0.0.1:8000",
        HTTP_ORIGIN="https://shop.example",
        HTTP_X_FORWARDED_HOST="shop.example",
        HTTP_X_FORWARDED_PROTO="https",
        **{"wsgi.url_scheme": "http"},
    )
    assert call(middleware, dict(forwarded))[0] == "403 Forbidden"
    believing = module("werkzeug.middleware.proxy_fix").ProxyFix(middleware, x_host=1, x_proto=1)
    assert call(believing, dict(forwarded))[0] == "500 Internal Server Error"  # here is no socket: so far it came


def test_a_kernel_that_cannot_start_leaves_the_application_alone(kernel: RealtimeKernel) -> None:
    class Broken:
        def on_start(self) -> None:
            raise ConfigurationError("no such thing")

        def on_stop(self) -> None:
            pass

        def stats(self) -> dict[str, Any]:
            return {}

    kernel.add_service(Broken())
    middleware = RealtimeMiddleware(app, kernel)
    assert call(middleware, environ("/"))[2] == b"app"
    status, _, body = call(middleware, environ())
    assert status == "500 Internal Server Error"
    assert b"no such thing" in body


def test_a_stopped_kernel_sends_clients_away_for_a_moment(kernel: RealtimeKernel) -> None:
    middleware = RealtimeMiddleware(app, kernel)
    assert call(middleware, environ("/"))[2] == b"app"
    assert kernel.running
    kernel.stop()
    status, headers, _ = call(middleware, environ())
    assert status == "503 Service Unavailable"
    assert headers["Retry-After"] == "1"


def test_a_kernel_of_another_process_is_told_apart(kernel: RealtimeKernel) -> None:
    middleware = RealtimeMiddleware(app, kernel)
    kernel.start()
    kernel.home.pid = os.getpid() + 1  # as after a fork
    status, _, body = call(middleware, environ())
    assert status == "500 Internal Server Error"
    assert b"leave kernel.start() out" in body


def test_a_kernel_in_a_thread_whose_loop_does_not_run_is_told_apart(
    kernel: RealtimeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.integrations.wsgi_home.LOOP_ANSWERS", 0.1)
    middleware = RealtimeMiddleware(app, kernel)
    kernel.start()
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(call(middleware, environ())))
    asking.start()
    asking.join(20)  # natively: this thread, the kernel's, runs no event loop meanwhile
    ((status, _, body),) = answers
    assert status == "500 Internal Server Error"
    assert b"whose event loop does not run" in body
    assert b"leave that out" in body


def test_many_first_requests_start_the_kernel_once(kernel: RealtimeKernel) -> None:
    middleware = RealtimeMiddleware(app, kernel)
    asking = [gevent.spawn(call, middleware, environ("/")) for _ in range(20)]
    assert [one.get(timeout=10)[2] for one in asking] == [b"app"] * 20
    assert kernel.running


def test_native_threads_get_a_kernel_in_a_thread_of_its_own_which_ends_with_it() -> None:
    kernel = RealtimeKernel(log_level="error")
    middleware = RealtimeMiddleware(app, kernel)
    bodies: list[bytes] = []

    def ask() -> None:
        bodies.append(b"".join(middleware(environ("/"), lambda status, headers: None)))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert bodies == [b"app"] * 5
    (home,) = [thread for thread in threading.enumerate() if thread.name == "realtime"]
    assert kernel.running
    assert kernel.home.ident == home.ident
    kernel.stop(2)
    home.join(20)
    assert not home.is_alive()


def test_a_server_that_wants_its_greenlets_back_sends_clients_elsewhere(kernel: RealtimeKernel) -> None:
    server = WSGIServer(("127.0.0.1", 0), RealtimeMiddleware(app, kernel), spawn=10, log=None, error_log=None)
    server.start()
    with gevent.socket.create_connection(("127.0.0.1", server.server_port), 10) as client:
        client.sendall(request("/realtime"))
        assert b" 101 " in client.recv(4096)
        server.stop(timeout=0)
        farewell = client.recv(4096)
        assert (farewell[0], int.from_bytes(farewell[2:4], "big")) == (0x88, 4013)
        client.sendall(frame(8, farewell[2:4]))
        assert client.recv(4096) == b""


def test_the_request_is_what_the_environ_says() -> None:
    made = request_from(
        environ("/caf\xc3\xa9 x", SCRIPT_NAME="/site", QUERY_STRING="a=%20b", HTTP_COOKIE="c=1", CONTENT_TYPE="x/y")
    )
    assert (made.path, made.raw_path) == ("/site/café x", "/site/caf%C3%A9%20x")
    assert (made.target, made.query) == ("/site/caf%C3%A9%20x?a=%20b", {"a": " b"})
    assert (made.cookies, made.headers["content-type"]) == ({"c": "1"}, "x/y")
    assert (made.remote_address, made.secure, made.version) == ("192.0.2.1", True, "HTTP/1.1")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"path": "realtime"}, "path="), ({"heartbeat": 5}, "heartbeat="), ({"authenticate": 5}, "authenticate=")],
    ids=["path", "heartbeat", "authenticate"],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RealtimeMiddleware(app, RealtimeKernel(log_level="error"), **options)


# Where gunicorn's workers meet ----------------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the directory goes: with a short path, as one where no socket fits is not used."""
    with tempfile.TemporaryDirectory(prefix="rt") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def test_workers_of_one_master_meet_in_a_directory_of_their_own(runtime: Path) -> None:
    place = meeting_place(os.getpid())
    assert place == meeting_place(os.getpid())
    assert place.parent == runtime
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert meeting_place(os.getppid()) != place
    assert place.exists()


def test_what_a_dead_master_left_is_removed_and_a_strangers_directory_is_not_used(runtime: Path) -> None:
    place = meeting_place(os.getpid())
    dead = place.with_name(place.name.rpartition("-")[0] + "-1")  # our id, of a process that began earlier
    (dead / "inside").mkdir(parents=True)
    assert meeting_place(os.getpid()) == place
    assert not dead.exists()
    place.chmod(0o770)
    with pytest.raises(ConfigurationError, match="0700"):
        meeting_place(os.getpid())
    place.rmdir()
    place.symlink_to(runtime)
    with pytest.raises(ConfigurationError, match="0700"):
        meeting_place(os.getpid())
