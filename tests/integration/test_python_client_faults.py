"""The Python client against servers that are not ours: the websockets library, and raw sockets that break every rule.

Each fault that simple-websocket has by itself is met here by a server that would bring it out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from programs import PATIENCE
from python_client_rig import QUICK, States, raw_server, websockets_server

from realtime import ConnectionClosed, TimedOut
from realtime.client import Client, ClientLimits, session
from realtime.config import MiB
from realtime.errors import HandshakeError

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

WELCOME = json.dumps({"type": "system:welcome", "payload": {"id": "you"}})
ACCEPT = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """One frame as a server sends it."""
    return head(opcode, len(payload), fin=fin) + payload


def head(opcode: int, length: int, *, fin: bool = True) -> bytes:
    first = bytes([fin << 7 | opcode])
    if length < 126:
        return first + bytes([length])
    return first + (bytes([126]) + struct.pack(">H", length) if length < 65536 else b"\x7f" + struct.pack(">Q", length))


class Peer:
    """The server's end of one connection of raw bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def read(self, size: int) -> bytes:
        pieces = [self.buffer]
        missing = size - len(self.buffer)
        while missing > 0:
            data = self.sock.recv(min(missing, 1 << 20))
            if not data:
                raise ConnectionResetError("the client ended")
            pieces.append(data)
            missing -= len(data)
        whole = b"".join(pieces)
        self.buffer = whole[size:]
        return whole[:size]

    def request(self) -> str:
        """Read the opening handshake's request."""
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionResetError("the client ended")
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return text.decode()

    def accept(self, rest: bytes = b"") -> str:
        """Answer it, with whatever else in the same segment; return it."""
        request = self.request()
        key = next(line.split(": ")[1] for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        value = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        self.sock.sendall(f"{ACCEPT}{base64.b64encode(value).decode()}\r\n\r\n".encode() + rest)
        return request

    def welcome(self) -> None:
        """Let the client in."""
        self.accept()
        assert json.loads(self.frame()[1])["type"] == "system:hello"
        self.sock.sendall(frame(1, WELCOME.encode()))

    def frame(self) -> tuple[int, bytes]:
        """Read one frame of the client; return opcode and payload."""
        first, second = self.read(2)
        assert first & 0x80, "a fragment"
        assert second & 0x80, "not masked"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.read(8))
        mask = self.read(4)
        key = int.from_bytes(mask * (length // 4 + 1), "big") >> (-length % 4 + (4 if length % 4 == 0 else 0)) * 8
        payload = self.read(length)
        return first & 0x0F, (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big")

    def until_close(self) -> tuple[int, str]:
        """Read until the client's close frame; return its code and reason."""
        while True:
            opcode, payload = self.frame()
            if opcode == 8:
                return struct.unpack(">H", payload[:2])[0], payload[2:].decode()


Serve = Callable[[Peer], None]


@contextmanager
def server(*visits: Serve, receive_buffer: int | None = None) -> Iterator[str]:
    """Serve one connection after the other, each in its way; further ones as the last."""
    waiting = list(visits)

    def serve(sock: socket.socket) -> None:
        (waiting.pop(0) if len(waiting) > 1 else waiting[0])(Peer(sock))

    with raw_server(serve, receive_buffer=receive_buffer) as url:
        yield url


@contextmanager
def connected(url: str, **options: Any) -> Iterator[Client]:
    with Client(url, **{"timeout": PATIENCE, "backoff": QUICK, "reconnect": False, **options}) as client:
        yield client


# What is sent ---------------------------------------------------------------------------------------------------


def test_a_message_larger_than_the_kernel_takes_at_once_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def serve(peer: Peer) -> None:
        peer.welcome()
        assert reading.wait(PATIENCE)
        for _ in range(3):
            found.append(json.loads(peer.frame()[1]))
        done.set()
        assert peer.until_close() == (1000, "")

    real = socket.socket.connect_ex

    def connect_with_little_room(sock: socket.socket, address: Any) -> int:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return real(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", connect_with_little_room)
    with server(serve, receive_buffer=4096) as url, connected(url) as client:
        texts = [letter * 300_000 for letter in "abc"]
        for text in texts:
            client.send("note", text)
        reading.set()
        assert done.wait(PATIENCE)  # closing waits for much less
    assert found == [{"type": "note", "payload": text} for text in texts]


def test_threads_that_send_at_once_never_mix_their_frames() -> None:
    found: list[str] = []

    def serve(connection: ServerConnection) -> None:
        for text in connection:
            message = json.loads(text)
            if message["type"] == "system:hello":
                connection.send(WELCOME)
            else:
                found.append(message["payload"])

    payloads = [letter * 30_000 + str(number) for letter in "abcdef" for number in range(20)]

    def send(client: Client, mine: list[str]) -> None:
        for payload in mine:
            client.send("note", payload)

    with websockets_server(serve, ping_interval=0.01) as url, connected(url) as client:
        threads = [threading.Thread(target=send, args=(client, payloads[n * 20 : n * 20 + 20])) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(payloads)
    assert [one for one in found if one[0] == "c"] == payloads[40:60]


def test_a_server_that_never_reads_has_senders_wait_and_then_raise_and_memory_stays_bounded() -> None:
    ended = threading.Event()

    def serve(peer: Peer) -> None:
        peer.welcome()
        assert ended.wait(PATIENCE)

    with server(serve, receive_buffer=4096) as url:
        client = Client(url, timeout=5, limits=ClientLimits(outbox=MiB))
        client.connect()

        def send_on() -> None:  # the kernel and the outbox hold some
            while True:
                client.send("note", "x" * MiB)

        with pytest.raises(TimedOut, match="took nothing for 5 s"):
            send_on()
        assert client.stats()["sent"] < 32
        with pytest.raises(TimedOut, match=r"took nothing for 0\.01 s"):
            client.call("note", timeout=0.01)
        ended.set()
        client.close()


def test_a_server_that_pings_and_asks_without_reading_does_not_fill_the_memory() -> None:
    done, ended = threading.Event(), threading.Event()

    def serve(peer: Peer) -> None:
        peer.welcome()
        pings = frame(9, b"x" * 125) * 500
        question = frame(1, json.dumps({"type": "big", "ack": 1}).encode())
        for _ in range(200):  # 25 MB of answers, were all of them answered
            peer.sock.sendall(pings + question)
        peer.sock.sendall(frame(1, b'{"type": "end"}'))
        done.set()
        assert ended.wait(PATIENCE)

    with server(serve, receive_buffer=4096) as url:
        client = Client(url, timeout=PATIENCE, limits=ClientLimits(outbox=100_000))
        client.answer("big", lambda question: "x" * 50_000)
        client.connect()
        assert client.wait_for("end", timeout=PATIENCE)
        assert done.wait(PATIENCE)
        waiting = client._session._stream._waiting  # type: ignore[union-attr]  # shown nowhere else
        ended.set()
        client.close()
    assert 0 < waiting < MiB


# What is received -----------------------------------------------------------------------------------------------


def oversized(frames: bytes) -> tuple[int, str]:
    """Send frames to a client that takes a megabyte; return how it closes, which the server is told too."""
    told: list[tuple[int, str]] = []

    def serve(peer: Peer) -> None:
        peer.welcome()
        peer.sock.sendall(frames)
        told.append(peer.until_close())

    with (
        server(serve) as url,
        pytest.raises(ConnectionClosed) as caught,  # by the wait, or already by connect()
        connected(url, limits=ClientLimits(message_size=MiB)) as client,
    ):
        client.wait_for("note")
    assert told == [(caught.value.code, caught.value.reason)]
    return told[0]


def test_a_gigabyte_is_refused_from_its_frame_header_on() -> None:
    assert oversized(head(1, 10**9)) == (1009, f"a message may have at most {MiB} bytes")


def test_a_gigabyte_in_fragments_is_refused_from_the_header_of_the_one_too_many() -> None:
    frames = frame(2, b"x" * (MiB - 1), fin=False) + frame(0, b"x", fin=False) + head(0, 1, fin=False)
    assert oversized(frames) == (1009, f"a message may have at most {MiB} bytes")


def test_a_message_in_endless_empty_fragments_is_refused() -> None:
    frames = frame(1, b"", fin=False) + frame(0, b"", fin=False) * 4096
    assert oversized(frames) == (1009, "a message in more than 4096 fragments")


def test_a_message_in_fragments_with_pings_between_them_is_one() -> None:
    pongs: list[tuple[int, bytes]] = []

    def serve(peer: Peer) -> None:
        peer.welcome()
        text = json.dumps({"type": "note", "payload": "grüße " * 10}, ensure_ascii=False).encode()
        peer.sock.sendall(frame(1, text[:40], fin=False))  # within a character, or not
        peer.sock.sendall(frame(9, b"alive?") + frame(0, text[40:41], fin=False) + frame(0, text[41:]))
        pongs.append(peer.frame())
        peer.until_close()

    with server(serve) as url, connected(url) as client:
        assert client.wait_for("note").payload == "grüße " * 10
    assert pongs == [(10, b"alive?")]


BROKEN = {
    "not UTF-8": (frame(1, b"\xff"), 1007),
    "masked": (b"\x81\x85\0\0\0\0hello", 1002),
    "reserved bits": (b"\xf1\x00", 1002),
    "unknown opcode": (b"\x83\x00", 1002),
    "fragmented ping": (b"\x09\x00", 1002),
    "nothing to continue": (b"\x80\x00", 1002),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_frame_ends_the_connection_with_the_code_of_the_rfc(fault: str) -> None:
    data, code = BROKEN[fault]
    assert oversized(data)[0] == code


def test_what_nobody_handles_in_time_is_read_no_more_and_none_of_it_is_lost() -> None:
    stalled: list[int] = []
    handling, done = threading.Event(), threading.Event()
    note = frame(1, json.dumps({"type": "note", "payload": "x" * 1000}).encode())
    most = 64 * MiB // len(note)

    def serve(peer: Peer) -> None:
        peer.welcome()
        peer.sock.settimeout(0.5)
        rest = b""
        try:
            for number in range(most):
                stalled[:] = [number]
                rest = note
                while rest:
                    rest = rest[peer.sock.send(rest) :]
        except TimeoutError:
            pass
        handling.set()
        peer.sock.settimeout(PATIENCE)
        peer.sock.sendall(rest + frame(1, b'{"type": "end"}'))
        peer.until_close()

    handled = 0

    def count(message: Any) -> None:
        nonlocal handled
        assert handling.wait(PATIENCE)
        handled += 1

    with server(serve) as url:
        client = Client(url, timeout=PATIENCE, limits=ClientLimits(inbox_bytes=MiB))
        client.on("note", count)
        client.on("end", lambda message: done.set())
        with client:
            assert done.wait(PATIENCE)
    assert stalled[0] < most - 1
    assert handled == stalled[0] + 1


# The opening handshake ------------------------------------------------------------------------------------------


def test_the_request_is_what_a_server_expects_and_what_comes_with_the_answer_is_not_left_lying() -> None:
    requests: list[str] = []

    def serve(peer: Peer) -> None:
        requests.append(peer.accept(frame(1, WELCOME.encode())))
        peer.until_close()

    with server(serve) as url, connected(f"{url}a path?x=1&y=ü", msgpack=False) as client:
        port = url.rpartition(":")[2].rstrip("/")
        assert client.id == "you"
    lines = requests[0].split("\r\n")
    assert lines[0] == "GET /a%20path?x=1&y=%C3%BC HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}" in lines


def refusal(serve: Serve, **options: Any) -> Exception:
    """Return what connect() raises."""
    with server(serve) as url, pytest.raises((ConnectionClosed, HandshakeError)) as caught:
        Client(url, **{"timeout": PATIENCE, **options}).connect()
    return caught.value


def test_a_server_that_never_answers_is_given_up() -> None:
    ended = threading.Event()
    asked: list[str] = []

    def serve(peer: Peer) -> None:
        asked.append(peer.request())
        ended.wait(PATIENCE)

    with server(serve) as url:
        client = Client(url, timeout=0.2)
        with pytest.raises(ConnectionClosed, match=r"did not welcome us within 0\.2 s"):
            client.connect()
        ended.set()


def test_a_server_that_never_shakes_hands_over_tls_is_given_up() -> None:
    ended = threading.Event()

    def serve(peer: Peer) -> None:
        ended.wait(PATIENCE)

    with server(serve) as url:
        client = Client(url.replace("ws:", "wss:"), timeout=0.2)
        with pytest.raises(ConnectionClosed, match=r"did not welcome us within 0\.2 s"):
            client.connect()
        ended.set()


def test_a_server_that_does_not_welcome_is_given_up() -> None:
    def silent(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    with websockets_server(silent) as url:
        client = Client(url, timeout=0.2)
        with pytest.raises(ConnectionClosed) as caught:
            client.connect()
    assert caught.value.code == 4009


def test_closing_while_connecting_does_not_wait_for_the_server() -> None:
    asked, ended = threading.Event(), threading.Event()

    def serve(peer: Peer) -> None:
        peer.request()
        asked.set()
        ended.wait(PATIENCE)

    with server(serve) as url:
        client = Client(url, timeout=600)
        failures: list[Exception] = []

        def connect() -> None:
            try:
                client.connect()
            except ConnectionClosed as error:
                failures.append(error)

        thread = threading.Thread(target=connect)
        thread.start()
        assert asked.wait(PATIENCE)
        client.close(1000, "no longer")
        thread.join(PATIENCE)
        assert [str(failure) for failure in failures] == ["1000 no longer"]
        ended.set()


def test_a_server_that_ends_instead_of_answering_is_told() -> None:
    def serve(peer: Peer) -> None:
        peer.request()

    assert str(refusal(serve)) == "1006 the server ended the connection within the opening handshake"


WRONG = {
    "no HTTP": (b"hello\r\n\r\n", "not start with an HTTP"),
    "control characters": (b"HTTP/1.1 101 \0\r\n\r\n", "not valid HTTP: The head contains the control character 0x00"),
    "another key": ((ACCEPT + "AAAA\r\n\r\n").encode(), "does not belong to our key"),
    "no upgrade": (b"HTTP/1.1 101 Fine\r\n\r\n", "another protocol"),
    "an extension": ((ACCEPT + "AAAA\r\nSec-WebSocket-Extensions: x\r\n\r\n").encode(), "does not belong"),
    "an endless head": (b"HTTP/1.1 101 Fine\r\nX: " + b"y" * 100_000, "at most 16384 bytes"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_answer_is_a_handshake_error(fault: str) -> None:
    data, said = WRONG[fault]

    def serve(peer: Peer) -> None:
        peer.request()
        peer.sock.sendall(data)
        while peer.sock.recv(4096):
            pass

    error = refusal(serve)
    assert isinstance(error, HandshakeError)
    assert error.status == 502
    assert said in error.message


@pytest.mark.parametrize(("status", "is_final"), [("301 Moved", True), ("403 No", True), ("503 Busy", False)])
def test_a_refusal_is_final_unless_it_may_pass(status: str, is_final: bool) -> None:
    def refuse(peer: Peer) -> None:
        peer.request()
        peer.sock.sendall(f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\n".encode())
        peer.sock.sendall(b"because\r\n")

    def welcome(peer: Peer) -> None:
        peer.welcome()
        peer.until_close()

    with server(refuse, welcome) as url:
        client = Client(url, timeout=PATIENCE, backoff=QUICK)
        if is_final:
            with pytest.raises(HandshakeError, match=f"{status}: because"):
                client.connect(retry=True)
        else:
            client.connect(retry=True)
            assert client.state == "open"
            client.close()


def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(peer: Peer) -> None:
        peer.welcome()
        peer.until_close()

    with server(serve) as url, socket.socket() as unused:
        port = int(url.rpartition(":")[2].rstrip("/"))
        unused.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        refusing = unused.getsockname()[1]
        real = socket.getaddrinfo

        def two(host: str, wanted: int, **options: Any) -> Any:
            return [*real("127.0.0.1", refusing, **options), *real("127.0.0.1", port, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        with connected(url) as client:
            assert client.id == "you"


def test_a_server_without_messagepack_is_refused_where_it_is_wanted() -> None:
    def serve(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    with websockets_server(serve) as url, pytest.raises(HandshakeError, match=r"does not speak realtime\.msgpack\.v1"):
        Client(url, msgpack=True, timeout=PATIENCE).connect()


# Silence --------------------------------------------------------------------------------------------------------


def test_a_connection_that_went_dead_is_asked_for_a_sign_of_life_and_then_replaced() -> None:
    heard: list[str] = []
    told: list[tuple[int, str]] = []

    def fall_silent(peer: Peer) -> None:
        """Welcome, promise to ping, and never say a word again."""
        peer.accept()
        payload = {"id": "first", "heartbeat": {"interval": 0.1, "timeout": 0.2}}
        peer.sock.sendall(frame(1, json.dumps({"type": "system:welcome", "payload": payload}).encode()))
        while True:
            opcode, data = peer.frame()
            if opcode == 8:
                told.append((struct.unpack(">H", data[:2])[0], data[2:].decode()))
                return
            heard.append(json.loads(data)["type"])

    def welcome(peer: Peer) -> None:
        peer.welcome()
        peer.until_close()

    with server(fall_silent, welcome) as url:
        client = Client(url, timeout=PATIENCE, backoff=QUICK)
        states = States(client)
        client.connect()
        assert states.next("waiting")["code"] == 4009
        states.next("open")
        assert client.id == "you"
        client.close()
    assert heard == ["system:hello", "system:hello"]
    assert told == [(4009, "nothing was heard from the server")]


# The end --------------------------------------------------------------------------------------------------------


def test_a_server_that_never_answers_the_close_frame_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CLOSE_HANDSHAKE", 0.2)
    heard, ended = threading.Event(), threading.Event()
    told: list[tuple[int, str]] = []

    def serve(peer: Peer) -> None:
        peer.welcome()
        told.append(peer.until_close())
        heard.set()
        assert ended.wait(PATIENCE)

    with server(serve) as url:
        client = Client(url, timeout=PATIENCE)
        client.connect()
        client.close(3001, "enough")
        for thread in threading.enumerate():
            if thread.name.startswith("realtime-client"):
                thread.join(PATIENCE)  # close() itself waits but 1.2 s, which a standstill may take
                assert not thread.is_alive()
        assert heard.wait(PATIENCE)
        assert told == [(3001, "enough")]
        ended.set()


@pytest.mark.parametrize(("payload", "code"), [(b"", 1005), (struct.pack(">H", 4503) + b"go", 4503)])
def test_a_close_frame_of_the_server_is_answered_and_its_code_told(payload: bytes, code: int) -> None:
    answers: list[tuple[int, bytes]] = []

    def serve(peer: Peer) -> None:
        peer.welcome()
        peer.sock.sendall(frame(8, payload))
        answers.append(peer.frame())

    with server(serve) as url:
        client = Client(url, timeout=PATIENCE, reconnect=False)
        states = States(client)
        with client:
            assert states.next("closed")["code"] == code
    assert answers[0][0] == 8
    assert answers[0][1] in (payload[:2], struct.pack(">H", 1000))


def test_an_end_without_a_close_frame_is_1006() -> None:
    with server(Peer.welcome) as url:
        client = Client(url, timeout=PATIENCE, reconnect=False)
        states = States(client)
        with client:
            assert states.next("closed")["code"] == 1006


# Messages -------------------------------------------------------------------------------------------------------


def test_any_server_that_speaks_the_wire_will_do(caplog: pytest.LogCaptureFixture) -> None:
    def serve(connection: ServerConnection) -> None:
        def send(type_: str, payload: Any, **fields: Any) -> None:
            connection.send(json.dumps({"type": type_, "payload": payload, **fields}))

        for text in connection:
            message = json.loads(text)
            ack = message.get("ack")
            if message["type"] == "system:hello":
                send("system:welcome", {"id": "you"})
            elif message["type"] == "greet":
                for junk in ("no JSON", "[1, 2]", "null", '{"payload": 1}', b"\x00\xff", '{"type": 7}', "[" * 100_000):
                    connection.send(junk)
                send("client:state", {"name": "forged"})
                send("system:ack", {"ack": "nobody asked", "result": 1})
                send("system:stream", {"ack": ack, "item": f"hello {message['payload']} in {message['room']}"})
                send("age?", None, ack=1)
                send("system:ack", {"ack": ack, "result": json.loads(connection.recv())})
            else:
                send("system:error", {"ack": ack, "message": "no", "code": "own_code", "details": "why"})

    with websockets_server(serve) as url:
        client = Client(url, timeout=PATIENCE)
        forged: list[Any] = []
        client.on("client:state", lambda message: message.payload["name"] == "forged" and forged.append(message))
        client.answer("age?", lambda question: 36)
        with client:
            assert (client.id, client.heartbeat, client.server_limits) == ("you", None, None)
            stream = client.stream("greet", "Ada", room="tea")
            assert next(stream) == "hello Ada in tea"
            with pytest.raises(StopIteration) as caught:
                next(stream)
            assert caught.value.value == {"type": "system:ack", "payload": {"ack": 1, "result": 36}}
            with pytest.raises(Exception, match="own_code: no") as failure:
                client.call("refuse")
            assert failure.value.details == "why"  # type: ignore[attr-defined]
        assert client.stats()["bad_messages"] == 7
    assert forged == []
    (record,) = caplog.records
    assert record.getMessage().startswith("the server sends what is no message")


def test_a_question_is_not_answered_on_another_connection() -> None:
    visits: list[list[str]] = []

    def serve(connection: ServerConnection) -> None:
        first = not visits
        heard: list[str] = []
        visits.append(heard)
        for text in connection:
            heard.append(json.loads(text)["type"])
            if heard[-1] == "system:hello":
                connection.send(WELCOME)
                if first:
                    connection.send('{"type": "slow", "ack": 1}')
                    connection.close(4008)
            else:
                connection.send('{"type": "bye"}')

    again, handled = threading.Event(), threading.Event()
    with websockets_server(serve) as url:
        client = Client(url, timeout=PATIENCE, backoff=QUICK)
        client.on("bye", lambda message: handled.set())

        @client.answer("slow")
        def slow(question: Any) -> str:
            assert again.wait(PATIENCE)
            return "too late"

        with client:
            deadline = time.monotonic() + PATIENCE
            while len(visits) < 2 or client.state != "open":
                assert time.monotonic() < deadline
                time.sleep(0.01)
            again.set()
            client.send("again")
            assert handled.wait(PATIENCE)  # once the question was answered
            client.send("last")
    assert visits == [["system:hello"], ["system:hello", "again", "last"]]
