"""What a Client may be told, and what it says to what cannot work. Nothing here connects."""

from __future__ import annotations

import math
import ssl
import threading
from typing import Any

import gevent
import pytest

import realtime
from realtime import Client, ConfigurationError, ConnectionClosed
from realtime.client import Backoff, ClientLimits
from realtime.client.options import Address

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"url": 7}, "url=7: must be as in"),
    ({"url": "ftp://example.org/"}, "must be as in"),
    ({"url": "example.org"}, "must be as in"),
    ({"url": "ws://"}, "must be as in"),
    ({"url": "ws://example.org:99999/"}, "Port out of range"),
    ({"url": "ws://example.org:0/"}, "nobody can be reached at port 0"),
    ({"url": "ws://ex ample.org/"}, "url='ws://ex ample.org/': must be as in"),
    ({"url": "ws://example.org/\r\nHost: other"}, "must be as in"),
    ({"url": "ws://ada:secret@example.org/"}, "has a user or password in it"),
    ({"url": "ws://ada:secret@example.org:99999/"}, "has a user or password in it"),
    ({"msgpack": 1}, "msgpack=1: must be True or False"),
    ({"reconnect": "no"}, "reconnect='no': must be True or False"),
    ({"session": None}, "session=None: must be True or False"),
    ({"backoff": 5}, "backoff=5: must be a realtime.client.Backoff, such as"),
    ({"backoff": {}}, "backoff={}: must be a realtime.client.Backoff, such as"),
    ({"limits": {}}, "limits={}: must be realtime.client.ClientLimits, such as"),
    ({"timeout": 0}, "timeout=0: must be a number of seconds above 0"),
    ({"timeout": math.nan}, "timeout=nan"),
    ({"timeout": "10"}, "timeout='10'"),
    ({"headers": {"X-Name": 7}}, "the value of 'X-Name' must be a string, not int"),
    ({"headers": {"X-Name": "a\r\nb"}}, "cannot write header"),
    ({"headers": {"Sec-WebSocket-Key": "mine"}}, "is written by the client itself"),
    ({"headers": [("Host", "other")]}, "is written by the client itself"),
    ({"headers": 7}, "must map names to strings"),
    ({"headers": "Authorization: secret"}, "must map names to strings"),
    ({"headers": {b"X-Name": "a"}}, "the name b'X-Name' must be a string"),
    ({"hello": object()}, "hello=<object"),
    ({"tls": "ca.pem"}, "is for wss:// and https:// addresses"),
    ({"url": "wss://example.org/", "tls": "/nowhere/ca.pem"}, "cannot be read as certificates"),
    ({"url": "wss://example.org/", "tls": 7}, "must be an ssl.SSLContext or the path"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_cannot_work_is_refused_where_it_is_written(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client(**{"url": "ws://127.0.0.1:1/", **options})
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("rest", ["/?mail=ada@example.org", "?mail=ada@example.org", "/@ada"])
def test_only_before_the_host_is_an_at_sign_a_password(rest: str) -> None:
    assert Client(f"ws://example.org{rest}").url == f"ws://example.org{rest}"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Backoff(min=0), "Backoff(min)=0: must be a number of seconds above 0"),
        (lambda: Backoff(min=3, max=2), "Backoff(max=2): must be finite and at least min, 3"),
        (lambda: Backoff(max=math.inf), "must be finite"),
        (lambda: Backoff(jitter=2), "Backoff(jitter=2): must be from 0 to 1"),
        (lambda: ClientLimits(inbox=0), "ClientLimits(inbox=0): must be a whole number above 0"),
        (lambda: ClientLimits(queue=1.5), "ClientLimits(queue=1.5)"),  # type: ignore[arg-type]
    ],
)
def test_options_refuse_what_cannot_work(make: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize("target", [5, [5], b"ab", ["a", None]])
def test_a_target_that_names_no_client_is_refused(target: Any) -> None:
    with pytest.raises(realtime.BadMessage, match="must be the id of a client, or a list of them"):
        Client("ws://127.0.0.1:1/").send("hello", target=target)


def test_it_is_said_that_waiting_stops_the_event_loop_of_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    client = Client("ws://127.0.0.1:1/")
    said: list[bool] = []

    def connect() -> None:
        with pytest.raises(ConnectionClosed):
            client.connect()
        said.append("stands still while the client waits" in caplog.text)

    def in_a_loop() -> None:
        connect()
        hub = gevent.get_hub()
        connect()  # nothing waits for it yet
        waiting = gevent.spawn(gevent.sleep, 60)
        gevent.sleep(0)
        hub.threadpool.apply(connect)
        connect()
        waiting.kill()
        hub.destroy(destroy_loop=True)

    thread = threading.Thread(target=in_a_loop)  # whose loop nothing else uses
    thread.start()
    thread.join()
    assert said == [False, False, False, True]


def test_handlers_and_waits_refuse_what_is_no_type_or_no_function() -> None:
    client = Client("ws://127.0.0.1:1/")
    for wrong in (lambda: client.on("", print), lambda: client.on("chat", 7), lambda: client.answer("chat", 7)):  # type: ignore[type-var]
        with pytest.raises(ConfigurationError):
            wrong()
    with pytest.raises(realtime.BadMessage, match="must be the type of a message"):
        client.wait_for("")


def test_before_connect_nothing_can_be_sent_and_closing_does_nothing() -> None:
    client = Client("ws://127.0.0.1:1/")
    with pytest.raises(ConnectionClosed, match=r"call connect\(\) first"):
        client.send("chat")
    with pytest.raises(ConnectionClosed, match=r"call connect\(\) first"):
        client.wait_for("chat")
    client.close()
    assert (client.state, client.id, client.heartbeat, client.server_limits) == ("closed", None, None, None)
    assert set(client.stats().values()) == {0}


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "header"),
    [
        ("ws://example.org", "example.org", 80, "/", "example.org"),
        ("https://example.org/a?b=1#c", "example.org", 443, "/a?b=1", "example.org"),
        ("wss://Example.org:8443/", "example.org", 8443, "/", "example.org:8443"),
        ("ws://[::1]:8080/x", "::1", 8080, "/x", "[::1]:8080"),
        ("ws://bücher.example/grüße", "xn--bcher-kva.example", 80, "/gr%C3%BC%C3%9Fe", "xn--bcher-kva.example"),
        ("http://localhost:80/%20", "localhost", 80, "/%20", "localhost"),
    ],
)
def test_an_address_is_taken_apart(url: str, host: str, port: int, target: str, header: str) -> None:
    address = Address.parse(url)
    assert (address.host, address.port, address.target, address.host_header) == (host, port, target, header)
    assert address.secure == url.startswith(("wss", "https"))


def test_a_context_of_ones_own_is_taken_as_it_is() -> None:
    Client("wss://example.org/", tls=ssl.create_default_context())
    Client("wss://example.org/")  # the system's trust


def test_the_pauses_grow_to_the_longest_with_jitter() -> None:
    steady = Backoff(jitter=0)
    assert [steady.delay(attempt) for attempt in range(5)] == [1, 2, 4, 5, 5]
    assert steady.delay(10**6) == 5
    delays = [Backoff().delay(0) for _ in range(200)]
    assert 0.5 <= min(delays) < 0.9 < 1.1 < max(delays) <= 1.5
