"""Clients that break the rules, by accident or on purpose: each gets its answer, nobody else is hurt."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from raw import DEADLINE, RawClient, frame

from realtime import Heartbeat, Limits, MiB, PortInUse, RealtimeKernel, WebSocketTransport

Start = Callable[..., tuple[RealtimeKernel, int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start kernels with an echo, a chat and a join handler; stop them afterwards."""
    kernels: list[RealtimeKernel] = []

    def start(*, limits: Limits | None = None, **options: Any) -> tuple[RealtimeKernel, int]:
        kernel = RealtimeKernel(
            transports=[WebSocketTransport(port=0, path="/ws", **options)], log_level="error", limits=limits
        )
        kernels.append(kernel)

        @kernel.on("echo")
        def echo(message: Any, context: Any, toolkit: Any) -> Any:
            return message.payload

        @kernel.on("join")
        def join(message: Any, context: Any, toolkit: Any) -> None:
            toolkit.rooms.join(message.room)

        @kernel.on("say")
        def say(message: Any, context: Any, toolkit: Any) -> Any:
            return toolkit.rooms.broadcast({"type": "said", "payload": message.payload}, message.room)

        kernel.start()
        return kernel, kernel.transports[0].port  # type: ignore[attr-defined]

    yield start
    for kernel in kernels:
        kernel.stop(timeout=2)


@pytest.fixture
def connect() -> Iterator[Callable[..., RawClient]]:
    """Open raw WebSockets; close them afterwards."""
    clients: list[RawClient] = []

    def connect(port: int, *, upgrade: bool = True, headers: dict[str, str] | None = None, **options: Any) -> RawClient:
        client = RawClient(port, **options)
        clients.append(client)
        if upgrade:
            client.upgrade("/ws", headers=headers)
        return client

    yield connect
    for client in clients:
        client.close()


def ask(client: RawClient, message: dict[str, Any]) -> Any:
    """Send a message with an ack; return the payload of its answer, past whatever else arrives."""
    client.send_json({"ack": "asked", **message})
    while True:
        answer = client.read_json()
        if answer["type"] in ("system:ack", "system:error") and answer["payload"].get("ack") == "asked":
            return answer["payload"]


def wait_until(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(DEADLINE):
        while not condition():
            gevent.sleep(0)


BAD_MESSAGES = {
    "not JSON": b"hello",
    "empty": b"",
    "half of JSON": b'{"type": "echo"',
    "two values": b'{"type": "echo"} {"type": "echo"}',
    "a list": b"[1, 2]",
    "a string": b'"echo"',
    "null": b"null",
    "no type": b'{"payload": 1}',
    "an empty type": b'{"type": ""}',
    "a type that is a number": b'{"type": 7}',
    "a type of 300 characters": json.dumps({"type": "x" * 300}).encode(),
    "nesting 100,000 deep": b'{"type": "echo", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nesting 100,000 deep in an unknown key": b'{"type": "echo", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number past 64 bits": b'{"type": "echo", "payload": 18446744073709551616}',
    "a negative number past 64 bits": b'{"type": "echo", "payload": [{"a": -9223372036854775809}]}',
    "a float past 64 bits": b'{"type": "echo", "payload": 1e999}',
    "NaN": b'{"type": "echo", "payload": NaN}',
    "Infinity": b'{"type": "echo", "payload": -Infinity}',
    "a lone surrogate": b'{"type": "echo", "payload": "\\ud800"}',
    "a lone low surrogate in a key": b'{"type": "echo", "payload": {"\\udc00x": 1}}',
    "a room that is a number": b'{"type": "echo", "room": 3}',
    "a target that is an object": b'{"type": "echo", "target": {}}',
    "an ack that is a list": b'{"type": "echo", "ack": []}',
    "an ack past 64 bits": b'{"type": "echo", "ack": 18446744073709551616}',
}


@pytest.mark.parametrize("text", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_bad_message_is_answered_and_the_connection_lives_on(start: Start, connect: Any, text: bytes) -> None:
    kernel, port = start()
    client = connect(port)
    client.send(frame(1, text))
    error = client.read_json()
    assert error["type"] == "system:error"
    assert error["payload"]["code"] == "bad_message"
    assert len(error["payload"]["message"]) > 10
    assert ask(client, {"type": "echo", "payload": "still here"})["result"] == "still here"
    assert kernel.stats()["counters"]["refused_bad_message"] == 1


def test_the_error_of_a_bad_message_names_its_ack_where_it_can_be_read(start: Start, connect: Any) -> None:
    _, port = start()
    client = connect(port)
    client.send(frame(1, b'{"type": 7, "ack": "mine"}'))
    assert client.read_json()["payload"]["ack"] == "mine"


def test_a_binary_frame_on_a_json_connection_is_answered(start: Start, connect: Any) -> None:
    _, port = start()
    client = connect(port)
    client.send(frame(2, b'{"type": "echo"}'))
    assert client.read_json()["payload"]["code"] == "bad_message"
    assert ask(client, {"type": "echo", "payload": 1})["result"] == 1


@pytest.mark.parametrize("name", ["system:secret", "client:connected", "client:disconnected", "mesh:joined"])
def test_reserved_names_are_refused(start: Start, connect: Any, name: str) -> None:
    _, port = start()
    client = connect(port)
    assert ask(client, {"type": name})["code"] == "reserved_type"
    assert ask(client, {"type": "echo", "payload": 1})["result"] == 1


TYPED = b'{"type": "echo"}'
BAD_FRAMES = {
    "an unmasked frame": (frame(1, TYPED, mask=None), 1002),
    "opcode 3": (frame(3, b""), 1002),
    "opcode 11": (frame(11, b""), 1002),
    "RSV1 that was not agreed on": (frame(1, TYPED, rsv=4), 1002),
    "RSV2": (frame(1, TYPED, rsv=2), 1002),
    "RSV3 on a ping": (frame(9, b"", rsv=1), 1002),
    "a fragmented ping": (frame(9, b"", fin=False), 1002),
    "a fragmented close": (frame(8, b"\x03\xe8", fin=False), 1002),
    "a ping of 126 bytes": (frame(9, b"x" * 126), 1002),
    "a continuation of nothing": (frame(0, b"x"), 1002),
    "a message inside a message": (frame(1, b"x", fin=False) + frame(1, b"y"), 1002),
    "close code 999": (frame(8, struct.pack(">H", 999)), 1002),
    "close code 1004": (frame(8, struct.pack(">H", 1004)), 1002),
    "close code 1005": (frame(8, struct.pack(">H", 1005)), 1002),
    "close code 1006": (frame(8, struct.pack(">H", 1006)), 1002),
    "close code 1015": (frame(8, struct.pack(">H", 1015)), 1002),
    "close code 2999": (frame(8, struct.pack(">H", 2999)), 1002),
    "close code 5000": (frame(8, struct.pack(">H", 5000)), 1002),
    "a close of one byte": (frame(8, b"\x03"), 1002),
    "a close reason that is not UTF-8": (frame(8, b"\x03\xe8\xff"), 1007),
    "text that is not UTF-8": (frame(1, b"\xff\xfe"), 1007),
    "UTF-8 cut by the end of the message": (frame(1, b'"\xe2\x82'), 1007),
    "bad UTF-8 split over frames": (frame(1, b'"\xe2\x82', fin=False) + frame(0, b'\x28"'), 1007),
    "a header that promises 2^63 bytes": (b"\x81\xff" + struct.pack(">Q", 1 << 63) + b"\0\0\0\0", 1009),
    "a header that promises 2^62 bytes": (b"\x81\xff" + struct.pack(">Q", 1 << 62) + b"\0\0\0\0", 1009),
    "a header that promises a byte over the limit": (b"\x81\xff" + struct.pack(">Q", 1_000_001) + b"\0\0\0\0", 1009),
    "a message over the limit in fragments": (
        frame(1, b"x" * 600_000, fin=False) + b"\x80\xff" + struct.pack(">Q", 600_000) + b"\0\0\0\0",
        1009,
    ),
    "a length in more bytes than needed": (b"\x81\xfe" + struct.pack(">H", 5) + b"\0\0\0\0hello", 1002),
}


@pytest.mark.parametrize(("data", "code"), BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_broken_frame_closes_with_the_code_of_the_rfc(start: Start, connect: Any, data: bytes, code: int) -> None:
    kernel, port = start()
    client, other = connect(port), connect(port)
    client.send(data)
    assert client.read_close()[0] == code
    assert client.at_end()
    wait_until(lambda: kernel.stats()["clients"] == 1)
    assert ask(other, {"type": "echo", "payload": 1})["result"] == 1


def test_a_deflate_bomb_is_cut_at_the_limit(start: Start, connect: Any) -> None:
    _, port = start(compression=True)
    client = connect(port, headers={"Sec-WebSocket-Extensions": "permessage-deflate"})
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeezer.compress(b"\0" * 64 * MiB) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 100_000
    before = resident()
    client.send(frame(1, bomb[:-4], rsv=4))
    assert client.read_close()[0] == 1009
    assert resident() - before < 16 * MiB


def test_a_compressed_message_within_the_limit_is_read(start: Start, connect: Any) -> None:
    _, port = start(compression=True)
    client = connect(port, headers={"Sec-WebSocket-Extensions": "permessage-deflate"})
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = json.dumps({"type": "echo", "payload": "y" * 100, "ack": 1}).encode()
    client.send(frame(1, (squeezer.compress(text) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4))
    assert client.read_json()["payload"]["result"] == "y" * 100


def test_300_000_empty_fragments_are_cut(start: Start, connect: Any) -> None:
    _, port = start()
    client = connect(port)
    before = resident()
    flood = frame(1, b"", fin=False) + frame(0, b"", fin=False) * 299_999
    sender = gevent.spawn(send_quietly, client, flood)
    assert client.read_close()[0] == 1009
    assert resident() - before < 16 * MiB
    sender.join(DEADLINE)


def send_quietly(client: RawClient, data: bytes) -> None:
    try:
        client.send(data)
    except OSError:
        pass  # cut off, as it should be


def resident() -> int:
    """Return this process's resident memory in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_client_may_not_join_10_000_rooms(start: Start, connect: Any) -> None:
    kernel, port = start()
    client = connect(port)

    def join_all() -> None:
        for number in range(10_000):
            client.send_json({"type": "join", "room": f"room {number}", "ack": number})

    joining = gevent.spawn(join_all)  # beside reading: who leaves a megabyte of answers unread is cut off
    answers = [client.read_json() for _ in range(10_000)]
    joining.get(timeout=DEADLINE)
    assert [answer["type"] for answer in answers[:128]] == ["system:ack"] * 128
    assert {answer["payload"]["code"] for answer in answers[128:]} == {"too_many_rooms"}
    assert kernel.stats()["rooms"] == 128


@pytest.mark.parametrize("room", ["", "x" * 256])
def test_a_bad_room_name_is_refused(start: Start, connect: Any, room: str) -> None:
    kernel, port = start()
    client = connect(port)
    assert ask(client, {"type": "join", "room": room})["code"] == "bad_room"
    assert kernel.stats()["rooms"] == 0


def test_a_member_that_never_reads_is_cut_off_and_the_others_get_everything(start: Start, connect: Any) -> None:
    kernel, port = start(limits=Limits(close_handshake=0.5))
    gone = Event()
    reasons: list[Any] = []

    @kernel.on("client:disconnected")
    def left(message: Any, context: Any, toolkit: Any) -> None:
        reasons.append(message.payload)
        gone.set()

    lazy = connect(port, receive_buffer=4096)
    eager = connect(port)
    for client in (lazy, eager):
        assert "result" not in ask(client, {"type": "join", "room": "busy"})
    before = resident()
    count = 2_000
    received: list[int] = []

    def read_all() -> None:
        while len(received) < count:
            message = eager.read_json()
            if message["type"] == "said":
                received.append(message["payload"]["number"])

    reader = gevent.spawn(read_all)
    filling = "x" * 10_000
    for number in range(count):  # 20 MB: far more than the outbox and the sockets hold
        kernel.broadcast({"type": "said", "payload": {"number": number, "filling": filling}}, "busy")
        gevent.sleep(0)
    reader.join(DEADLINE)
    assert received == list(range(count))
    assert gone.wait(DEADLINE)
    assert reasons[0]["code"] == 4008
    assert reasons[0]["rooms"] == ["busy"]
    assert kernel.rooms.members("busy") != []
    counters = kernel.stats()["counters"]
    assert counters["closed_slow_consumer"] == 1
    assert counters["dropped_undelivered"] > 0
    assert resident() - before < 32 * MiB


def test_a_client_that_vanishes_is_noticed_by_the_pong_deadline(start: Start, connect: Any) -> None:
    kernel, port = start(heartbeat=Heartbeat(interval=0.1, timeout=0.1))
    gone = Event()
    reasons: list[Any] = []

    @kernel.on("client:disconnected")
    def left(message: Any, context: Any, toolkit: Any) -> None:
        reasons.append(message.payload)
        gone.set()

    client = connect(port)
    assert client.read_frame() == (9, b"")  # a ping, which is not answered
    assert gone.wait(DEADLINE)
    assert reasons[0]["code"] == 4009
    assert kernel.stats()["clients"] == 0
    assert client.read_close()[0] == 4009


def test_a_client_that_answers_pings_stays(start: Start, connect: Any) -> None:
    kernel, port = start(heartbeat=Heartbeat(interval=0.05, timeout=5))
    client = connect(port)
    for _ in range(5):
        opcode, payload = client.read_frame()
        assert opcode == 9
        client.send(frame(10, payload))
    assert kernel.stats()["clients"] == 1


def test_a_reset_connection_leaves_its_rooms(start: Start, connect: Any) -> None:
    kernel, port = start()
    client = connect(port)
    ask(client, {"type": "join", "room": "here"})
    client.reset()
    wait_until(lambda: kernel.stats()["clients"] == 0)
    assert kernel.stats()["rooms"] == 0


def test_two_handlers_that_send_5_mb_each_do_not_mix_their_frames(start: Start, connect: Any) -> None:
    kernel, port = start(limits=Limits(outbox=16 * MiB))
    size = 5_000_000

    @kernel.on("send", concurrent=True)
    def send(message: Any, context: Any, toolkit: Any) -> None:
        gevent.sleep(0)
        toolkit.reply({"type": "large", "payload": message.payload * size})

    client = connect(port)
    client.send_json({"type": "send", "payload": "a"})
    client.send_json({"type": "send", "payload": "b"})
    received = [client.read_json()["payload"] for _ in range(2)]
    assert received == ["a" * size, "b" * size]


def test_a_message_larger_than_the_outbox_is_refused_to_its_sender_alone(start: Start, connect: Any) -> None:
    kernel, port = start(limits=Limits(outbox=10_000))
    client = connect(port)
    ask(client, {"type": "join", "room": "r"})
    assert ask(client, {"type": "say", "room": "r", "payload": "x" * 20_000})["code"] == "message_too_big"
    assert ask(client, {"type": "say", "room": "r", "payload": "x"})["result"] == 1
    assert kernel.stats()["clients"] == 1


def test_2_000_connects_and_disconnects_leave_nothing(start: Start, connect: Any) -> None:
    kernel, port = start()
    connect(port)
    wait_until(lambda: kernel.stats()["clients"] == 1)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(2_000):
        client = RawClient(port)
        client.upgrade("/ws")
        client.send_json({"type": "join", "room": f"r{number % 7}"})
        if number % 3 == 0:
            client.reset()
        else:
            if number % 3 == 1:
                client.send(frame(8, struct.pack(">H", 1000)))
            client.close()
    wait_until(lambda: kernel.stats()["clients"] == 1 and kernel.transports[0].closing() == 1)
    stats = kernel.stats()
    assert stats["rooms"] == 0
    assert stats["busy_workers"] == 0
    assert stats["counters"]["connected"] == 2_001
    assert stats["transports"][0]["in_http"] == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(kernel.presence.list()) == 1


def test_other_clients_are_served_while_a_16_mib_frame_arrives(start: Start, connect: Any) -> None:
    _, port = start(limits=Limits(message_size=32 * MiB, outbox=32 * MiB))
    large, small = connect(port), connect(port)
    text = json.dumps({"type": "echo", "payload": "z" * (16 * MiB), "ack": "asked"}).encode()
    data = frame(1, text)
    sending = gevent.spawn(large.send, data[:-1])
    served = 0
    while not sending.ready():
        assert ask(small, {"type": "echo", "payload": served})["result"] == served
        served += 1
    assert served > 10  # in turns: not after the frame
    large.send(data[-1:])
    opcode, payload = large.read_frame()
    assert opcode == 1
    assert json.loads(payload)["payload"]["result"] == "z" * (16 * MiB)


def test_a_port_in_use_is_a_clear_error_at_the_start(start: Start) -> None:
    _, port = start()
    second = RealtimeKernel(transports=[WebSocketTransport(port=port, path="/ws")], log_level="error")
    with pytest.raises(PortInUse, match=str(port)):
        second.start()
    assert not second.running


def test_a_flood_that_is_never_read_back_does_not_grow_the_server(start: Start, connect: Any) -> None:
    """Every message is answered, the client reads nothing: the outbox fills, and it is cut off."""
    kernel, port = start(limits=Limits(close_handshake=0.2))
    client = connect(port, receive_buffer=4096)
    sender = gevent.spawn(send_quietly, client, frame(1, b"junk") * 2_000_000)
    with gevent.Timeout(60):
        while kernel.stats()["clients"]:
            gevent.sleep(0.01)
    assert kernel.stats()["counters"]["closed_slow_consumer"] == 1
    sender.join(DEADLINE)


def test_a_flood_of_pings_that_is_never_read_back_does_not_grow_the_server(start: Start, connect: Any) -> None:
    kernel, port = start(limits=Limits(close_handshake=0.2, outbox=100_000))
    client = connect(port, receive_buffer=4096)
    sender = gevent.spawn(send_quietly, client, frame(9, b"x" * 125) * 100_000)
    with gevent.Timeout(60):
        while kernel.stats()["clients"]:
            gevent.sleep(0.01)
    assert kernel.stats()["counters"]["closed_slow_consumer"] == 1
    sender.join(DEADLINE)


def test_messages_wait_within_bounds_while_a_handler_waits_for_its_client(start: Start, connect: Any) -> None:
    """The answer must get past everything, so reading goes on; what does not fit is refused, not kept."""
    kernel, port = start(limits=Limits(inbox_bytes=100_000))

    @kernel.on("ask")
    def question(message: Any, context: Any, toolkit: Any) -> Any:
        return toolkit.call(context.id, {"type": "question"}, timeout=DEADLINE)

    client = connect(port)
    client.send_json({"type": "ask", "ack": "asked"})
    question_id = client.read_json()["ack"]
    for number in range(30):
        client.send_json({"type": "echo", "payload": "x" * 10_000, "ack": number})
    client.send_json({"type": "system:ack", "payload": {"ack": question_id, "result": "yes"}})
    answers = [client.read_json()["payload"] for _ in range(31)]
    refused = [answer["ack"] for answer in answers if answer.get("code") == "inbox_full"]
    echoed = [answer["ack"] for answer in answers if answer.get("result") == "x" * 10_000]
    assert {"ack": "asked", "result": "yes"} in answers
    assert echoed == list(range(len(echoed)))
    assert 5 <= len(echoed) <= 12
    assert len(refused) + len(echoed) == 30
    assert kernel.stats()["counters"]["refused_inbox_full"] == len(refused)
