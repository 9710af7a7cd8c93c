"""The mesh protocol: its handshake, its tables, and that any bytes end in events or MeshError."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realtime.errors import BadMessage, MeshError
from realtime.message import Outbound, Wire
from realtime.protocols.mesh import FRAME_SIZE, MeshProtocol, State
from realtime.protocols.mesh_codec import LIFECYCLE, MESH_EVENTS
from realtime.protocols.mesh_frames import (
    NEWS_SIZE,
    PING,
    AckReceived,
    DataReceived,
    GapReceived,
    Kind,
    NewsReceived,
    PingReceived,
    ResumeReceived,
    ack_frame,
    data_header,
    data_size,
    gap_frame,
    news_frame,
    resume_frame,
)
from realtime.protocols.mesh_handshake import (
    WIRE_VERSION,
    Authenticated,
    ByeReceived,
    Hello,
    LinkEvent,
    LinkStarted,
    Reason,
    Role,
)

SIZE = 100_000
ANN = Hello("ann", "default", b"a" * 16, b"1" * 16, "127.0.0.1:9090")
BOB = Hello("bob", "default", b"b" * 16, b"2" * 16)
STREAM = st.one_of(st.binary(max_size=200), st.lists(st.binary(max_size=40), max_size=5).map(b"".join))
NUMBERS = st.integers(-(2**63), 2**64 - 1)
SCALARS = st.one_of(NUMBERS, st.text(), st.binary(), st.none(), st.booleans(), st.floats())
FIELDS = st.lists(st.one_of(st.integers(0, 300), st.text(max_size=3), st.binary(max_size=40)))
ARRAYS = st.lists(SCALARS, max_size=8).map(msgpack.packb)
FRAMES = st.tuples(st.integers(0, 12), FIELDS).map(lambda drawn: frame(drawn[0], *drawn[1]))
bounded = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def dialler(hello: Hello = ANN, secret: bytes = b"s") -> MeshProtocol:
    return MeshProtocol(Role.DIALLER, hello, secret=secret, message_size=SIZE)


def listener(hello: Hello = BOB, secret: bytes = b"s") -> MeshProtocol:
    return MeshProtocol(Role.LISTENER, hello, secret=secret, message_size=SIZE)


def events_of(protocol: MeshProtocol, data: bytes = b"") -> list[LinkEvent]:
    if data:
        protocol.receive_data(data)
    return list(iter(protocol.next_event, None))


def talk(one: MeshProtocol, other: MeshProtocol) -> tuple[list[LinkEvent], list[LinkEvent]]:
    """Carry bytes until both are silent; whoever decides starts."""
    heard: tuple[list[LinkEvent], list[LinkEvent]] = ([], [])
    while True:
        said = one.data_to_send(), other.data_to_send()
        if not any(said):
            return heard
        for protocol, data, events in ((other, said[0], heard[1]), (one, said[1], heard[0])):
            events += events_of(protocol, data)
            if protocol.state is State.DECIDING:
                protocol.start()


def opened(hello: Hello = ANN, other: Hello = BOB) -> tuple[MeshProtocol, MeshProtocol]:
    pair = dialler(hello), listener(other)
    talk(*pair)
    assert [side.state for side in pair] == [State.OPEN, State.OPEN]
    return pair


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(MeshError) as caught:
        action()
    return caught.value.reason


def frame(kind: int, *fields: object) -> bytes:
    packed: bytes = msgpack.packb([kind, *fields])
    return packed


def hello_frame(
    version: object = WIRE_VERSION,
    cluster: object = "default",
    node: object = "eve",
    instance: object = b"e" * 16,
    nonce: object = b"3" * 16,
    address: object = None,
    *more: object,
) -> bytes:
    return frame(Kind.HELLO, version, cluster, node, instance, nonce, address, *more)


# The handshake -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [(ANN, BOB), (BOB, ANN)], ids=["smaller dials", "larger dials"])
def test_two_nodes_that_share_the_secret_open_a_link(one: Hello, other: Hello) -> None:
    left, right = dialler(one), listener(other)
    heard = talk(left, right)
    assert heard[0][0] == Authenticated(other)
    assert heard[1][0] == Authenticated(one)
    assert (left.state, right.state) == (State.OPEN, State.OPEN)
    assert [LinkStarted() in events for events in heard] == [not left.decides, not right.decides]
    assert left.decides is (one is ANN)
    assert left.decides is not right.decides


def test_the_listener_says_nothing_before_it_has_heard_a_hello() -> None:
    assert listener().data_to_send() == b""


def test_the_dialler_proves_the_secret_first() -> None:
    left, right = dialler(), listener()
    events_of(right, left.data_to_send())
    greeting = list(_frames(right.data_to_send()))
    assert [said[0] for said in greeting] == [Kind.HELLO]


def _frames(data: bytes) -> Iterator[list[object]]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    yield from unpacker


def test_a_wrong_secret_is_refused_by_the_listener() -> None:
    left, right = dialler(secret=b"wrong"), listener()
    events_of(right, left.data_to_send())
    events_of(left, right.data_to_send())
    assert refusal(lambda: events_of(right, left.data_to_send())) == Reason.SECRET
    assert right.state is not State.OPEN


def test_a_listener_that_does_not_know_the_secret_is_refused_by_the_dialler() -> None:
    left, fake = dialler(), listener(secret=b"wrong")
    events_of(fake, left.data_to_send())
    events_of(left, fake.data_to_send())
    left.data_to_send()
    assert refusal(lambda: events_of(left, frame(Kind.PROOF, fake._proof(Role.LISTENER)))) == Reason.SECRET


def test_a_proof_sent_back_proves_nothing() -> None:
    left = dialler()
    left.data_to_send()
    events_of(left, hello_frame())
    [proof] = _frames(left.data_to_send())
    assert refusal(lambda: events_of(left, frame(*proof))) == Reason.SECRET  # type: ignore[arg-type]


def test_a_proof_of_another_handshake_proves_nothing() -> None:
    left, right = dialler(), listener()
    events_of(right, left.data_to_send())
    events_of(left, right.data_to_send())
    proof = left.data_to_send()
    later = listener(replace(BOB, nonce=b"9" * 16))
    events_of(later, dialler().data_to_send())
    assert refusal(lambda: events_of(later, proof)) == Reason.SECRET


def test_what_a_hello_says_cannot_be_changed_on_the_way() -> None:
    left, right = dialler(), listener()
    events_of(right, hello_frame(1, "default", "mallory", ANN.instance, ANN.nonce, ANN.address))
    events_of(left, right.data_to_send())
    left.data_to_send()
    assert refusal(lambda: events_of(right, frame(Kind.PROOF, left._proof(Role.DIALLER)))) == Reason.SECRET


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (hello_frame(WIRE_VERSION + 1), Reason.VERSION),
        (frame(Kind.HELLO, 7, "another shape altogether"), Reason.VERSION),
        (hello_frame(cluster="other"), Reason.CLUSTER),
        (hello_frame(node="bob"), Reason.NODE_ID),
        (hello_frame(node="bob", instance=b"b" * 16), Reason.SELF),
        (hello_frame(node=""), "broken"),
        (hello_frame(node="n" * 256), "broken"),
        (hello_frame(node="new\nline"), "broken"),
        (hello_frame(cluster=""), "broken"),
        (hello_frame(node=7), "broken"),
        (hello_frame(node=b"eve"), "broken"),
        (hello_frame(instance=b"short"), "broken"),
        (hello_frame(nonce=b"x" * 17), "broken"),
        (hello_frame(address=7), "broken"),
        (hello_frame(version=True), "broken"),
        (frame(Kind.HELLO), "broken"),
        (frame(Kind.HELLO, WIRE_VERSION, "default", "eve"), "broken"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused(said: bytes, reason: str) -> None:
    assert refusal(lambda: events_of(listener(), said)) == reason


def test_fields_of_a_later_version_are_ignored_and_covered_by_the_proof() -> None:
    left, right = dialler(), listener()
    [greeting] = _frames(left.data_to_send())
    left._hellos[Role.DIALLER] = [*greeting[1:], "more", 7]
    events_of(right, frame(*greeting, "more", 7))  # type: ignore[arg-type]
    talk(left, right)
    assert (left.state, right.state) == (State.OPEN, State.OPEN)


# What may come when -----------------------------------------------------------------------------------------


def in_state(state: State) -> MeshProtocol:
    """A protocol in this state."""
    if state is State.GREETING:
        return listener()
    if state is State.PROVING:
        subject = listener()
        events_of(subject, dialler().data_to_send())
        return subject
    # the smaller id decides, and for the listener both states come when the proof has
    own = replace(BOB, node="aaa" if state is State.DECIDING else "zzz")
    other, subject = dialler(replace(ANN, node="mmm")), listener(own)
    events_of(subject, other.data_to_send())
    events_of(other, subject.data_to_send())
    events_of(subject, other.data_to_send())
    if state is State.OPEN:
        events_of(subject, frame(Kind.START))
    elif state is State.CLOSED:
        subject.bye(Reason.LEAVING)
    assert subject.state is state
    return subject


SAMPLES = {
    Kind.HELLO: hello_frame(),
    Kind.PROOF: frame(Kind.PROOF, b"p" * 32),
    Kind.START: frame(Kind.START),
    Kind.PING: PING,
    Kind.BYE: frame(Kind.BYE, "leaving", ""),
    Kind.RESUME: resume_frame(7, 8, 9, True),
    Kind.DATA: data_header(1, 2, 4) + b"body",
    Kind.ACK: ack_frame(3),
    Kind.GAP: gap_frame(4, 5),
    Kind.NEWS: news_frame(b"news"),
}
SESSION = {Kind.RESUME, Kind.DATA, Kind.ACK, Kind.GAP, Kind.NEWS}
EXPECTED = {
    State.GREETING: {Kind.HELLO, Kind.BYE},
    State.PROVING: {Kind.PROOF, Kind.BYE},
    State.DECIDING: {Kind.BYE},
    State.WAITING: {Kind.START, Kind.BYE},
    State.OPEN: {Kind.PING, Kind.BYE, *SESSION},
}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", EXPECTED)
def test_every_frame_has_its_phase(state: State, kind: Kind) -> None:
    subject = in_state(state)
    if kind is Kind.PROOF and state is State.PROVING:
        assert refusal(lambda: events_of(subject, SAMPLES[kind])) == Reason.SECRET  # the sample proves nothing
    elif kind in EXPECTED[state]:
        events_of(subject, SAMPLES[kind])
    else:
        with pytest.raises(MeshError, match="unexpected"):
            events_of(subject, SAMPLES[kind])


@pytest.mark.parametrize("kind", Kind)
def test_a_closed_link_ignores_everything(kind: Kind) -> None:
    assert events_of(in_state(State.CLOSED), SAMPLES[kind]) == []


@pytest.mark.parametrize(
    ("said", "events"),
    [
        (SAMPLES[Kind.PING], [PingReceived()]),
        (frame(Kind.PING, "later"), [PingReceived()]),
        (SAMPLES[Kind.NEWS] * 2 + SAMPLES[Kind.PING], [NewsReceived(b"news")] * 2 + [PingReceived()]),
        (SAMPLES[Kind.BYE] + SAMPLES[Kind.PING], [ByeReceived("leaving", "")]),
        (frame(Kind.BYE, "a later one", "a\nb" + "c" * 999), [ByeReceived("a later one", "a?b" + "c" * 252)]),
        (news_frame(b"x" * NEWS_SIZE), [NewsReceived(b"x" * NEWS_SIZE)]),
        (SAMPLES[Kind.RESUME], [ResumeReceived(7, 8, 9, True)]),
        (SAMPLES[Kind.DATA] * 2, [DataReceived(1, 2, b"body")] * 2),
        (SAMPLES[Kind.ACK], [AckReceived(3)]),
        (SAMPLES[Kind.GAP], [GapReceived(4, 5)]),
        (SAMPLES[Kind.NEWS] + SAMPLES[Kind.DATA], [NewsReceived(b"news"), DataReceived(1, 2, b"body")]),
        (frame(Kind.DATA, 1, 2, 4, "later") + b"body", [DataReceived(1, 2, b"body")]),
        (data_header(1, 2, data_size(SIZE)) + b"x" * data_size(SIZE), [DataReceived(1, 2, b"x" * data_size(SIZE))]),
    ],
    ids=[
        *("ping", "ping of a later version", "several", "bye", "long bye", "largest news", "resume", "data", "ack"),
        *("gap", "news", "data of a later version", "largest data"),
    ],
)
def test_an_open_link_tells_what_came(said: bytes, events: list[LinkEvent]) -> None:
    assert events_of(in_state(State.OPEN), said) == events
    subject, one_by_one = in_state(State.OPEN), []
    for index in range(0, len(said), 997 if len(said) > 5000 else 1):
        one_by_one += events_of(subject, said[index : index + (997 if len(said) > 5000 else 1)])
    assert one_by_one == events


def test_a_reader_may_stop_between_two_events() -> None:
    subject = in_state(State.OPEN)
    subject.receive_data(news_frame(b"one") + news_frame(b"two" * 5000))
    assert subject.next_event() == NewsReceived(b"one")
    subject.receive_data(news_frame(b"three"))
    assert events_of(subject) == [NewsReceived(b"two" * 5000), NewsReceived(b"three")]


def test_what_one_side_says_the_other_understands() -> None:
    left, right = opened()
    assert events_of(right, PING) == [PingReceived()]
    assert events_of(left, right.bye(Reason.SLOW, "why")) == [ByeReceived("slow", "why")]
    assert (left.state, right.state) == (State.CLOSED, State.CLOSED)


# Bad bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xc6\x3f\xff\xff\xff",  # 1 GB of bytes
        b"\xdb\x3f\xff\xff\xff",  # a text of 1 GB
        b"\xdd\x3f\xff\xff\xff",  # an array of a thousand million
        b"\xdf\x3f\xff\xff\xff",
        b"\xc1",
        b"\xc0",
        b"\x00",
        b"\x91\xc0",
        b"\x91\xc2",
        b"\x91\x63",
        b"\x91\xdd\x3f\xff\xff\xff",
        b"\x91\x81",
        b"\x91\xd6\xff\x00\x00\x00\x00",
        b"\x91\xc7\x00\xff",
        b"\x92\x00\xa2\xff\xff",
        b"\x91" * 2000,
        b"\x96\x00\x01\xc6\x3f\xff\xff\xff" + b"x" * 2 * FRAME_SIZE,
        b"\x9f" + b"\x9f" * 6 + b"\x00" * 3 * FRAME_SIZE,
    ],
)
def test_garbage_is_refused_at_once(said: bytes) -> None:
    with pytest.raises(MeshError):
        events_of(listener(), said)


@pytest.mark.parametrize("length", [0, -1, SIZE + 1, 1 << 30, (1 << 64) - 1, True, 1.5, "9", None])
def test_a_wild_length_is_refused_before_any_of_it_is_read(length: object) -> None:
    with pytest.raises(MeshError):
        events_of(in_state(State.OPEN), frame(Kind.NEWS, NEWS_SIZE + 1 if length == SIZE + 1 else length))
    with pytest.raises(MeshError):
        events_of(in_state(State.OPEN), frame(Kind.DATA, 1, 0, data_size(SIZE) + 1 if length == SIZE + 1 else length))


@pytest.mark.parametrize("state", [State.GREETING, State.OPEN])
def test_an_endless_frame_does_not_fill_the_memory(state: State) -> None:
    subject = in_state(state)
    fed = []

    def feed_on() -> None:
        for piece in [b"\x92\x06\xdb\x3f\xff\xff\xff", *[b"x" * 100] * 1000]:
            fed.append(len(piece))
            events_of(subject, piece)

    assert refusal(feed_on) == "broken"
    assert sum(fed) <= 2 * FRAME_SIZE


@bounded
@given(state=st.sampled_from(list(EXPECTED)), pieces=st.lists(STREAM, max_size=6))
def test_any_bytes_end_in_events_or_a_mesh_error(state: State, pieces: list[bytes]) -> None:
    run(in_state(state), pieces)


@bounded
@given(
    state=st.sampled_from(list(EXPECTED)),
    frames=st.lists(st.one_of(st.sampled_from(list(SAMPLES.values())), ARRAYS, FRAMES), max_size=6),
    cut=st.integers(1, 50),
    flip=st.one_of(st.none(), st.tuples(st.integers(0, 500), st.integers(0, 255))),
)
def test_frames_in_any_order_and_pieces_end_the_same_way(
    state: State, frames: list[bytes], cut: int, flip: tuple[int, int] | None
) -> None:
    data = bytearray(b"".join(frames))
    if flip is not None and data:
        data[flip[0] % len(data)] = flip[1]
    said = bytes(data)
    whole = run(in_state(state), [said] if said else [])
    assert run(in_state(state), [said[index : index + cut] for index in range(0, len(said), cut)]) == whole


def run(subject: MeshProtocol, pieces: list[bytes]) -> list[object]:
    """Feed the pieces; return what happened, a MeshError as its reason."""
    happened: list[object] = []
    try:
        for piece in pieces:
            subject.receive_data(piece)
            while (event := subject.next_event()) is not None:
                happened.append(event)
    except MeshError as error:
        happened.append(error.reason)
    return happened


# The body of an event ------------------------------------------------------------------------------------


def body_of(message: Mapping[str, object]) -> bytes:
    return Outbound(message, 0).finished(Wire(MESH_EVENTS, lambda body: body))


def test_a_message_survives_the_way() -> None:
    message = {"type": "mesh:price", "payload": {"symbol": "ABC", "raw": b"\x00\xff", "n": [1, 2.5, None]}, "room": "r"}
    received = MESH_EVENTS.decode(body_of(message))
    assert (received.type, received.payload, received.room) == ("mesh:price", message["payload"], "r")


@pytest.mark.parametrize("name", ["chat:message", "system:ack", "client:connected", "mesh:" + "x" * 255, *LIFECYCLE])
def test_only_mesh_names_go_to_nodes_and_lifecycle_ones_cannot_be_forged(name: str) -> None:
    with pytest.raises(BadMessage):
        body_of({"type": name})
    with pytest.raises(BadMessage):
        MESH_EVENTS.decode(msgpack.packb({"type": name}))


@pytest.mark.parametrize("payload", [float("nan"), 2**70, object()])
def test_a_payload_no_node_would_take_fails_where_it_is_sent(payload: object) -> None:
    with pytest.raises(BadMessage):
        body_of({"type": "mesh:x", "payload": payload})


@bounded
@given(data=st.binary(max_size=200))
def test_any_body_is_a_message_or_a_bad_message(data: bytes) -> None:
    try:
        message = MESH_EVENTS.decode(data)
    except BadMessage:
        return
    assert message.type.startswith(("mesh:", "system:error"))
