"""The listener: it takes connections in bulk, survives its trouble, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import logging
import os
import socket as plain_socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import gevent.queue
import gevent.socket
import pytest

from realtime.errors import ConfigurationError, PortInUse
from realtime.transports.listener import Listener

PATIENCE = 60.0

Start = Callable[..., Listener]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start listeners that are closed when the test ends."""
    started: list[Listener] = []

    def start_one(on_accept: Callable[..., None], host: str = "127.0.0.1", port: int = 0, **options: Any) -> Listener:
        listener = Listener(host, port, on_accept, **options)
        started.append(listener)
        listener.start()
        return listener

    yield start_one
    for listener in started:
        listener.close()


@pytest.fixture
def accepted() -> Iterator[gevent.queue.Queue[Any]]:
    """A queue of ``(socket, address)``; what is left in it is closed."""
    queue: gevent.queue.Queue[Any] = gevent.queue.Queue()
    yield queue
    while not queue.empty():
        queue.get()[0].close()


def connect(listener: Listener) -> gevent.socket.socket:
    return gevent.socket.create_connection((listener.host, listener.port), timeout=PATIENCE)


def has_ipv6() -> bool:
    try:
        with plain_socket.socket(plain_socket.AF_INET6, plain_socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_port_0_picks_a_port_and_tells_it(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    listener = start(lambda *pair: accepted.put(pair))
    assert listener.port > 0
    with connect(listener) as client:
        sock, address = accepted.get(timeout=PATIENCE)
        with sock:
            assert address == client.getsockname()
            assert listener.counters["accepted"] == 1


def test_an_accepted_socket_is_ready_for_use(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    listener = start(lambda *pair: accepted.put(pair))
    with connect(listener) as client:
        sock, _ = accepted.get(timeout=PATIENCE)
        with sock:
            assert isinstance(sock, gevent.socket.socket)
            assert sock.getsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY)
            assert not os.get_inheritable(sock.fileno())
            assert not os.get_blocking(sock.fileno())
            assert sock.gettimeout() is None
            sock.sendall(b"hello")
            assert client.recv(5) == b"hello"


def test_more_connections_than_one_wake_up_takes_all_arrive(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    listener = start(lambda *pair: accepted.put(pair))
    clients = [connect(listener) for _ in range(200)]
    for _ in clients:
        accepted.get(timeout=PATIENCE)[0].close()
    for client in clients:
        client.close()
    assert listener.counters["accepted"] == 200


def test_a_port_in_use_is_named_with_what_to_do(start: Start) -> None:
    listener = start(lambda sock, address: sock.close())
    with pytest.raises(PortInUse, match=rf"127\.0\.0\.1:{listener.port} .*another port"):
        start(lambda sock, address: sock.close(), port=listener.port)


def test_several_listeners_may_share_a_port_if_they_say_so(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    first = start(lambda *pair: accepted.put(pair), reuse_port=True)
    second = start(lambda *pair: accepted.put(pair), reuse_port=True, port=first.port)
    first.close()
    with connect(second):
        accepted.get(timeout=PATIENCE)[0].close()


@pytest.mark.parametrize("host", ["192.0.2.1", "name.invalid", "2001:db8::1", "a" * 300])
def test_a_host_that_is_not_of_this_machine_is_named(start: Start, host: str) -> None:
    with pytest.raises(ConfigurationError, match=host[:20]):
        start(lambda sock, address: sock.close(), host=host)


@pytest.mark.parametrize(("host", "port"), [("", 0), (None, 0), ("127.0.0.1", -1), ("127.0.0.1", 65536), ("::1", "80")])
def test_a_host_or_port_of_the_wrong_kind_is_refused_at_once(host: Any, port: Any) -> None:
    with pytest.raises(ConfigurationError):
        Listener(host, port, lambda sock, address: sock.close())


def test_ipv6(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    listener = start(lambda *pair: accepted.put(pair), host="::1")
    with connect(listener):
        sock, address = accepted.get(timeout=PATIENCE)
        sock.close()
        assert address[0] == "::1"


def test_a_name_is_resolved_and_ipv4_preferred(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    listener = start(lambda *pair: accepted.put(pair), host="localhost")
    with gevent.socket.create_connection(("127.0.0.1", listener.port), timeout=PATIENCE):
        accepted.get(timeout=PATIENCE)[0].close()


def test_a_callback_that_raises_costs_only_its_own_connection(
    start: Start, accepted: gevent.queue.Queue[Any], caplog: pytest.LogCaptureFixture
) -> None:
    failing = True

    def on_accept(sock: gevent.socket.socket, address: Any) -> None:
        if failing:
            raise RuntimeError("cannot take it")
        accepted.put((sock, address))

    listener = start(on_accept)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            with connect(listener) as client:
                assert client.recv(1) == b""
    failing = False
    with connect(listener):
        accepted.get(timeout=PATIENCE)[0].close()
    assert listener.counters["accept_errors"] == 5
    assert "cannot take it" in caplog.text


def test_while_paused_clients_wait_and_are_served_after_it(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    listener = start(lambda *pair: accepted.put(pair))
    listener.pause()
    with connect(listener) as waiting:  # the system completes the connection; nobody takes it
        gevent.idle()
        assert accepted.empty()
        listener.resume()
        sock, address = accepted.get(timeout=PATIENCE)
        sock.close()
        assert address == waiting.getsockname()


def test_after_stop_accepting_clients_are_refused(start: Start) -> None:
    listener = start(lambda sock, address: sock.close())
    listener.stop_accepting()
    listener.stop_accepting()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connect(listener)


def test_the_callback_itself_may_stop_the_listener(start: Start) -> None:
    stopped = gevent.event.Event()

    def on_accept(sock: gevent.socket.socket, address: Any) -> None:
        sock.close()
        listener.close()
        stopped.set()

    listener = start(on_accept)
    with connect(listener):
        assert stopped.wait(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        connect(listener)


def test_a_closed_listener_can_start_again_on_its_port(start: Start, accepted: gevent.queue.Queue[Any]) -> None:
    listener = start(lambda *pair: accepted.put(pair))
    port = listener.port
    listener.close()
    listener.start()
    assert listener.port == port
    with connect(listener):
        accepted.get(timeout=PATIENCE)[0].close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc, which is not here")
def test_a_closed_listener_leaves_no_greenlet_and_no_descriptor() -> None:
    gevent.get_hub()

    def living() -> tuple[int, int]:
        gc.collect()
        greenlets = [item for item in gc.get_objects() if isinstance(item, gevent.Greenlet) and not item.dead]
        return len(greenlets), len(os.listdir("/proc/self/fd"))

    before = living()
    listener = Listener("127.0.0.1", 0, lambda sock, address: sock.close())
    listener.start()
    with connect(listener) as client:
        assert client.recv(1) == b""
    assert living() != before
    listener.close()
    assert living() == before


EXHAUSTED_SERVER = """
    import logging, json, resource, sys, time
    import gevent
    from realtime.config import Limits
    from realtime.transports.http import HttpServer

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({**server.counters, "cpu": time.process_time()}).encode()]

    limits = Limits(handshake=60.0)
    server = HttpServer(host="127.0.0.1", port=0, path="/ws", upgrade=None, app=app, limits=limits)
    server.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    print(server.port, flush=True)
    gevent.sleep(600)  # until it is killed
"""


def ask_for_counters(port: int) -> dict[str, Any]:
    with plain_socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := client.recv(65536):
            answer += data
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def test_out_of_descriptors_it_neither_spins_nor_floods_the_log_and_recovers() -> None:
    resource = pytest.importorskip("resource", reason="needs RLIMIT_NOFILE, which this system does not have")
    assert resource
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(EXHAUSTED_SERVER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            port = int(child.stdout.readline())
            before = ask_for_counters(port)
            started = time.monotonic()
            crowd = [plain_socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(100)]
            # Its first two log lines tell that it has had the chance to write many more.
            lines = [child.stderr.readline(), child.stderr.readline()]
            for client in crowd:
                client.close()
            after = ask_for_counters(port)
            lasted = time.monotonic() - started
        finally:
            child.kill()
        lines += child.stderr.read().splitlines()
    assert "Too many open files" in lines[0]
    assert "more since the last line" in lines[1]
    assert len(lines) <= lasted + 1
    assert 0 < after["accept_exhausted"] <= lasted / 0.25 + 1
    assert after["cpu"] - before["cpu"] < lasted / 2
    assert after["accepted"] >= 100
