"""The PyPI library ``websockets`` as an independent client of the kernel and of the plain layer."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gevent
import msgpack
import pytest
from gevent.event import AsyncResult, Event
from requirements import module

from realtime import CallFailed, Heartbeat, Limits, RealtimeKernel, WebSocketTransport
from realtime.transports.websocket import PlainServer, WebSocket, serve

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

    from tests.conftest import InThread

PATIENCE = 60.0  # seconds any wait may take before the test fails
MSGPACK = "realtime.msgpack.v1"
JSON = "realtime.json.v1"

Serve = Callable[..., RealtimeKernel]


def connect(url: str, **options: Any) -> ClientConnection:
    made: ClientConnection = module("websockets.sync.client").connect(
        url, open_timeout=PATIENCE, close_timeout=PATIENCE, **options
    )
    return made


def client_closed() -> type[Any]:
    closed: type[Any] = module("websockets.exceptions").ConnectionClosed
    return closed


def send(client: ClientConnection, type_: str, **fields: Any) -> None:
    client.send(json.dumps({"type": type_, **fields}))


def receive(client: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(client.recv(timeout=PATIENCE))
    return message


def send_packed(client: ClientConnection, type_: str, **fields: Any) -> None:
    client.send(msgpack.packb({"type": type_, **fields}))


def receive_packed(client: ClientConnection) -> dict[str, Any]:
    data = client.recv(timeout=PATIENCE)
    assert isinstance(data, bytes)
    message: dict[str, Any] = msgpack.unpackb(data)
    return message


def closing_code(client: ClientConnection) -> tuple[int, str]:
    """Wait until the server closes, and return the code and reason it gave."""
    try:
        while True:
            client.recv(timeout=PATIENCE)
    except client_closed() as closed:
        frame = closed.rcvd
    assert frame is not None
    return frame.code, frame.reason


def how_it_ends(url: str) -> tuple[int, str]:
    """Stay connected until the server closes; return its code and reason."""
    with connect(url) as client:
        return closing_code(client)


# The kernel --------------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Serve]:
    """Start kernels that chat; they are stopped when the test ends."""
    kernels: list[RealtimeKernel] = []

    def start_one(limits: Limits | None = None, **options: Any) -> RealtimeKernel:
        kernel = RealtimeKernel([WebSocketTransport(0, "/realtime", **options)], limits=limits, log_level="error")

        @kernel.on("join")
        def join(message: Any, context: Any, toolkit: Any) -> str:
            toolkit.rooms.join(message.room)
            return str(context.id)

        @kernel.on("say")
        def say(message: Any, context: Any, toolkit: Any) -> int:
            sent: int = toolkit.rooms.broadcast({"type": "said", "payload": message.payload})
            return sent

        @kernel.on("echo")
        def echo(message: Any, context: Any, toolkit: Any) -> Any:
            return message.payload

        kernels.append(kernel)
        kernel.start()
        return kernel

    yield start_one
    for kernel in kernels:
        kernel.stop()


def url_of(kernel: RealtimeKernel) -> str:
    (transport,) = kernel.transports
    assert isinstance(transport, WebSocketTransport)
    return transport.url


def joined(client: ClientConnection, room: str = "tea") -> str:
    """Join a room and return the client's id."""
    send(client, "join", room=room, ack=0)
    answer: str = receive(client)["payload"]["result"]
    return answer


def test_clients_chat_in_a_room_in_the_order_they_spoke(start: Serve, in_thread: InThread) -> None:
    def scenario(url: str) -> None:
        with connect(url) as ada, connect(url) as grace, connect(url) as elsewhere:
            joined(ada)
            joined(grace)
            joined(elsewhere, "coffee")
            for number in range(100):
                send(ada, "say", room="tea", payload=number)
            assert [receive(grace)["payload"] for _ in range(100)] == list(range(100))
            message, *rest = [receive(ada) for _ in range(100)]
            assert [other["payload"] for other in rest] == list(range(1, 100))
            assert (message["type"], message["room"], message["payload"]) == ("said", "tea", 0)
            assert isinstance(message["timestamp"], int)
            send(elsewhere, "echo", payload="nothing came here", ack="x")
            assert receive(elsewhere)["payload"] == {"ack": "x", "result": "nothing came here"}

    in_thread(scenario, url_of(start()))


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(None, None), ([JSON], JSON), ([MSGPACK], MSGPACK), ([JSON, MSGPACK], MSGPACK), (["unknown"], None)],
)
def test_the_subprotocol_is_agreed_on(
    start: Serve, in_thread: InThread, offered: list[str] | None, agreed: str | None
) -> None:
    def scenario(url: str) -> None:
        with connect(url, subprotocols=offered) as client:
            assert client.subprotocol == agreed
            if agreed == MSGPACK:
                send_packed(client, "echo", payload=b"\0\xff", ack=1)
                assert receive_packed(client)["payload"]["result"] == b"\0\xff"
            else:
                send(client, "echo", payload="text", ack=1)
                assert receive(client)["payload"]["result"] == "text"

    in_thread(scenario, url_of(start()))


def test_json_and_msgpack_clients_share_a_room(start: Serve, in_thread: InThread) -> None:
    payload = {"text": "grüße 👍", "numbers": [1, -2, 2**63, 0.5], "nothing": None, "yes": True}

    def scenario(url: str) -> None:
        with connect(url) as text, connect(url, subprotocols=[MSGPACK]) as packed:
            joined(text)
            send_packed(packed, "join", room="tea")
            send_packed(packed, "say", room="tea", payload=payload, ack=1)
            assert receive(text)["payload"] == payload
            assert receive_packed(packed)["payload"] == payload
            assert receive_packed(packed)["payload"] == {"ack": 1, "result": 2}

    in_thread(scenario, url_of(start()))


def test_a_frame_of_the_wrong_kind_is_refused_and_the_connection_lives_on(start: Serve, in_thread: InThread) -> None:
    def scenario(url: str) -> None:
        with connect(url) as text, connect(url, subprotocols=[MSGPACK]) as packed:
            text.send(b"binary")
            assert receive(text)["payload"]["code"] == "bad_message"
            packed.send("text")
            assert receive_packed(packed)["payload"]["code"] == "bad_message"
            joined(text)
            send_packed(packed, "echo", payload=1, ack=1)
            assert receive_packed(packed)["payload"]["result"] == 1

    in_thread(scenario, url_of(start()))


def test_members_with_and_without_compression_get_the_same(start: Serve, in_thread: InThread) -> None:
    long = "all work and no play " * 500

    def scenario(url: str) -> None:
        with connect(url) as small, connect(url, compression=None) as plain:
            assert [extension.name for extension in small.protocol.extensions] == ["permessage-deflate"]
            assert not plain.protocol.extensions
            for client in (small, plain):
                joined(client)
            for payload in (long, "", long, "short", list(range(3000))):
                send(small, "say", room="tea", payload=payload)
                assert receive(small)["payload"] == payload
                assert receive(plain)["payload"] == payload

    in_thread(scenario, url_of(start(compression=True)))


def test_a_client_that_offers_compression_is_served_without_where_it_is_off(start: Serve, in_thread: InThread) -> None:
    def scenario(url: str) -> None:
        with connect(url) as client:
            assert not client.protocol.extensions
            joined(client)

    in_thread(scenario, url_of(start()))


@pytest.mark.parametrize("compression", [False, True])
def test_messages_up_to_the_limit_pass_and_larger_ones_close_with_1009(
    start: Serve, in_thread: InThread, compression: bool
) -> None:
    def scenario(url: str) -> None:
        with connect(url, max_size=None) as client:
            text = "x" * 900_000
            send(client, "echo", payload=text, ack=1)
            assert receive(client)["payload"]["result"] == text
            try:
                send(client, "echo", payload="x" * 1_000_000, ack=2)
            except client_closed():
                pass  # the refusal was faster than the rest of the message
            assert closing_code(client)[0] == 1009

    in_thread(scenario, url_of(start(compression=compression)))


def test_fragmented_messages_are_put_together(start: Serve, in_thread: InThread) -> None:
    def scenario(url: str) -> None:
        with connect(url) as client:
            text = json.dumps({"type": "echo", "payload": "grüße", "ack": 1}, ensure_ascii=False)
            client.send(iter(text))
            assert receive(client)["payload"]["result"] == "grüße"

    in_thread(scenario, url_of(start()))


def test_pings_of_both_sides_are_answered(start: Serve, in_thread: InThread) -> None:
    def scenario(url: str) -> None:
        pinged = threading.Semaphore(0)
        logger = logging.Logger("client", logging.DEBUG)

        class Watch(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.getMessage().startswith("< PING"):
                    pinged.release()

        logger.addHandler(Watch())
        with connect(url, logger=logger, ping_interval=None) as client:
            assert client.ping().wait(PATIENCE)
            assert client.ping(b"\0" * 125).wait(PATIENCE)
            for _ in range(3):
                assert pinged.acquire(timeout=PATIENCE)
            joined(client)  # still there

    in_thread(scenario, url_of(start(heartbeat=Heartbeat(interval=0.05, timeout=5))))


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "leaving"), (3000, "grüße"), (4999, "x" * 123)])
def test_the_handler_learns_how_a_client_closed(start: Serve, in_thread: InThread, code: int, reason: str) -> None:
    kernel = start()
    told: AsyncResult[dict[str, Any]] = AsyncResult()
    kernel.on("client:disconnected", lambda message, context, toolkit: told.set(message.payload))

    def scenario(url: str) -> None:
        with connect(url) as client:
            joined(client)
            client.close(code, reason)

    in_thread(scenario, url_of(kernel))
    payload = told.get(timeout=PATIENCE)
    assert (payload["code"], payload["rooms"]) == (code, ["tea"])
    assert payload["reason"] == (reason or "closed by the client")


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (4008, "slow"), (4503, "grüße"), (3000, "")])
def test_the_client_learns_how_the_kernel_disconnected_it(
    start: Serve, in_thread: InThread, code: int, reason: str
) -> None:
    kernel = start()

    @kernel.on("close:me")
    def close(message: Any, context: Any, toolkit: Any) -> None:
        toolkit.reply("last words")
        kernel.disconnect(context.id, code, reason=reason)

    def scenario(url: str) -> None:
        with connect(url) as client:
            send(client, "close:me")
            assert receive(client)["payload"]["message"] == "last words"
            assert closing_code(client) == (code, reason)

    in_thread(scenario, url_of(kernel))


def test_a_room_is_asked_and_its_members_moves_are_made_one_at_a_time(start: Serve, in_thread: InThread) -> None:
    kernel = start()
    making: list[Any] = []
    made: list[int] = []

    @kernel.on("move", serial="room")
    def move(message: Any, context: Any, toolkit: Any) -> int:
        making.append(message.payload)
        assert making == [message.payload]
        gevent.sleep(0.001)
        making.clear()
        made.append(message.payload)
        return len(made)

    @kernel.on("vote")
    def vote(message: Any, context: Any, toolkit: Any) -> Any:
        answers = toolkit.rooms.call("tea", {"type": "yes?"}, timeout=PATIENCE, except_self=True)
        return sorted(answer.code if isinstance(answer, CallFailed) else answer for _, answer in answers)

    def play(url: str) -> tuple[list[int], Any]:
        with connect(url) as ann, connect(url) as bob, connect(url) as cyd:
            for client in (ann, bob, cyd):
                joined(client)
            for number in range(30):
                send((ann, bob, cyd)[number % 3], "move", payload=number, room="tea", ack=number)
            counts = [receive(client)["payload"]["result"] for _ in range(10) for client in (ann, bob, cyd)]
            send(ann, "vote", ack="vote")
            send(bob, "system:ack", payload={"ack": receive(bob)["ack"], "result": "yes"})
            refusal = {"ack": receive(cyd)["ack"], "code": "abstains", "message": "no"}
            send(cyd, "system:error", payload=refusal)
            return counts, receive(ann)["payload"]["result"]

    counts, votes = in_thread(play, url_of(kernel))
    assert sorted(counts) == list(range(1, 31))
    assert [[number for number in made if number % 3 == who] for who in range(3)] == [
        list(range(who, 30, 3)) for who in range(3)
    ]
    assert votes == ["abstains", "yes"]


def test_a_stopping_kernel_tells_clients_when_to_come_back(start: Serve, in_thread: InThread) -> None:
    kernel = start()
    connected = Event()
    kernel.on("client:connected", lambda message, context, toolkit: connected.set())
    ending = gevent.spawn(in_thread, how_it_ends, url_of(kernel))
    assert connected.wait(PATIENCE)
    kernel.stop()
    code, reason = ending.get(timeout=PATIENCE)
    assert code == 4013
    name, _, seconds = reason.partition("=")
    assert name == "retry_after"
    assert 0 <= float(seconds) <= 5


def test_the_server_asks_waits_and_streams(start: Serve, in_thread: InThread) -> None:
    kernel = start()

    @kernel.on("interview")
    def interview(message: Any, context: Any, toolkit: Any) -> Any:
        name = toolkit.call(context.id, {"type": "name?"}, timeout=PATIENCE)
        toolkit.reply(f"hello {name}")
        age = toolkit.wait_for("age", timeout=PATIENCE).payload
        yield from range(age)
        return name

    def scenario(url: str) -> None:
        with connect(url) as client:
            send(client, "interview", ack="i")
            question = receive(client)
            assert question["type"] == "name?"
            send(client, "system:ack", payload={"ack": question["ack"], "result": "Ada"})
            assert receive(client)["payload"] == {"message": "hello Ada"}
            send(client, "age", payload=3)
            assert [receive(client)["payload"] for _ in range(3)] == [{"ack": "i", "item": n} for n in range(3)]
            assert receive(client)["payload"] == {"ack": "i", "result": "Ada"}

    in_thread(scenario, url_of(kernel))


# The plain layer ---------------------------------------------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[Callable[..., PlainServer]]:
    """Start plain servers that are stopped when the test ends."""
    servers: list[PlainServer] = []

    def start_one(handler: Callable[[WebSocket], object], **options: Any) -> PlainServer:
        servers.append(serve(handler, 0, **options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop()


def echo(ws: WebSocket) -> None:
    for data in ws:
        ws.send(data)


Plain = Callable[..., PlainServer]


@pytest.mark.parametrize("compression", [False, True])
def test_a_plain_echo_returns_text_bytes_fragments_and_empty_messages(
    plain: Plain, in_thread: InThread, compression: bool
) -> None:
    def scenario(url: str) -> None:
        with connect(url, max_size=None) as client:
            assert bool(client.protocol.extensions) is compression
            messages = ["grüße", b"\0\xff", "", b"", "x" * 999_999, b"y" * 1_000_000, "grüße", "grüße"]
            for message in messages:
                client.send(message)
                assert client.recv(timeout=PATIENCE) == message
            client.send([b"one ", b"", b"two"])
            assert client.recv(timeout=PATIENCE) == b"one two"
            for number in range(500):
                client.send(str(number))
            assert [client.recv(timeout=PATIENCE) for _ in range(500)] == [str(number) for number in range(500)]

    in_thread(scenario, plain(echo, compression=compression).url)


def test_a_plain_server_prefers_its_own_order_of_subprotocols(plain: Plain, in_thread: InThread) -> None:
    def tell(ws: WebSocket) -> None:
        ws.send(str(ws.subprotocol))

    def scenario(url: str) -> None:
        for offered, agreed in [(["b", "a"], "a"), (["b"], "b"), (["c"], None), (None, None)]:
            with connect(url, subprotocols=offered) as client:
                assert client.subprotocol == agreed
                assert client.recv(timeout=PATIENCE) == str(agreed)

    in_thread(scenario, plain(tell, subprotocols=["a", "b"]).url)


def test_how_a_plain_handler_ends_is_how_the_client_is_closed(
    plain: Plain, in_thread: InThread, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(ws: WebSocket) -> None:
        match ws.receive(PATIENCE):
            case "return":
                return
            case "close":
                ws.close(4001, "grüße")
            case "raise":
                raise ZeroDivisionError("on purpose")

    def scenario(url: str) -> None:
        for word, expected in [("return", (1000, "")), ("close", (4001, "grüße")), ("raise", (1011, "internal error"))]:
            with connect(url) as client:
                client.send(word)
                assert closing_code(client) == expected

    in_thread(scenario, plain(handler).url)
    assert "on purpose" in caplog.text


def test_a_plain_server_that_stops_closes_with_1001(plain: Plain, in_thread: InThread) -> None:
    connected = Event()

    def wait(ws: WebSocket) -> None:
        connected.set()
        ws.receive(PATIENCE)

    server = plain(wait)
    ending = gevent.spawn(in_thread, how_it_ends, server.url)
    assert connected.wait(PATIENCE)
    server.stop()
    assert ending.get(timeout=PATIENCE)[0] == 1001


def test_a_plain_handler_waits_only_so_long_as_it_wants(plain: Plain, in_thread: InThread) -> None:
    def impatient(ws: WebSocket) -> None:
        with pytest.raises(TimeoutError):
            ws.receive(timeout=0.01)
        ws.send("where are you?")
        ws.send(ws.receive(timeout=PATIENCE))

    def scenario(url: str) -> None:
        with connect(url) as client:
            assert client.recv(timeout=PATIENCE) == "where are you?"
            client.send("here")
            assert client.recv(timeout=PATIENCE) == "here"

    in_thread(scenario, plain(impatient).url)
