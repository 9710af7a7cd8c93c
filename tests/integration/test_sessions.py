"""Sessions over real sockets: an independent client whose connections are cut by a proxy between the two."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from cutting_proxy import CuttingProxy
from gevent.event import AsyncResult, Event
from session_peer import PATIENCE, SessionPeer, wait_for_more

from realtime import ConnectionClosed, Heartbeat, Limits, RealtimeKernel, WebRTCSignalingBridge, WebSocketTransport

if TYPE_CHECKING:
    from tests.conftest import InThread


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a state that nothing announces."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        gevent.sleep(0.005)


class Rig:
    """A kernel behind a proxy, and what became of its clients."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        limits = Limits(**{"session_grace": 300.0, **options.pop("limits", {})})
        self.transport = WebSocketTransport(0, "/realtime", **options)
        self.kernel = RealtimeKernel([self.transport], limits=limits, log_level="critical")
        self.proxy = CuttingProxy(lambda: self.transport.port, seed=seed)
        self.events: list[tuple[str, str]] = []
        self.taken: list[Any] = []
        self.kernel.on("client:connected", self._came)
        self.kernel.on("client:disconnected", self._went)
        self.kernel.on("join", lambda message, context, toolkit: toolkit.rooms.join(message.room))
        self.kernel.on("echo", lambda message, context, toolkit: message.payload)
        self.kernel.on("number", lambda message, context, toolkit: self.taken.append(message.payload))

    def _came(self, message: Any, context: Any, toolkit: Any) -> None:
        self.events.append(("came", context.id))

    def _went(self, message: Any, context: Any, toolkit: Any) -> None:
        self.events.append(("went", context.id))

    def __enter__(self) -> Rig:
        self.kernel.start()
        self.proxy.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.proxy.__exit__()
        self.kernel.stop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.proxy.port}/realtime"

    @property
    def sessions(self) -> dict[str, int]:
        found: dict[str, int] = self.kernel.stats()["sessions"]
        return found

    def counter(self, name: str) -> int:
        return int(self.kernel.stats()["counters"].get(name, 0))

    def cut(self) -> None:
        """Cut all off, and wait until the server has noticed."""
        away = self.sessions["open"]
        self.proxy.cut()
        until(lambda: self.sessions["away"] == away, "the server noticed")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as running:
        yield running


def test_a_client_that_was_cut_off_has_its_place_and_gets_what_it_missed(rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    about = in_thread(peer.connect)
    assert (about["resumed"], about["received"], about["grace"]) == (False, 0, 300.0)
    own = peer.welcome["id"]
    in_thread(peer.ask, "join", room="tea")
    rig.kernel.presence.update(own, {"name": "Ada"})
    entry = rig.kernel.presence.get(own)
    rig.cut()
    assert rig.kernel.presence.get(own) == entry
    rig.kernel.broadcast({"type": "said", "payload": 1}, "tea")
    rig.kernel.send(own, {"type": "told", "payload": 2})
    about = in_thread(peer.resume)
    assert (about["resumed"], peer.welcome["id"], about["received"]) == (True, own, 1)
    rig.kernel.send(own, {"type": "told", "payload": 3})
    assert [in_thread(peer.receive)["payload"] for _ in range(3)] == [1, 2, 3]
    assert rig.kernel.presence.get(own) == entry
    assert len(rig.kernel.presence.list()) == 1
    assert in_thread(peer.ask, "echo", payload="still") == "still"
    assert ("went", own) not in rig.events
    in_thread(peer.close)
    until(lambda: ("went", own) in rig.events, "a goodbye is told at once")
    assert rig.sessions == {"open": 0, "away": 0, "kept_bytes": 0}


def test_the_id_it_came_back_by_comes_and_goes(rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    rig.cut()
    in_thread(peer.resume)
    until(lambda: len(rig.events) == 3, "what is told")
    (_, first), (_, second), third = rig.events
    assert (first, third) == (own, ("went", second))
    assert first != second
    in_thread(peer.drop)


def test_handlers_that_wait_for_the_client_do_not_notice(rig: Rig, in_thread: InThread) -> None:
    @rig.kernel.on("quiz")
    def quiz(message: Any, context: Any, toolkit: Any) -> Any:
        answer = toolkit.call(context.id, {"type": "question"}, timeout=PATIENCE)
        word = toolkit.wait_for("word", timeout=PATIENCE)
        toolkit.reply({"type": "noted", "payload": word.payload})
        yield from (answer, context.id)

    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    in_thread(peer.send, "quiz", ack=1)
    question = in_thread(peer.until, "question")
    rig.cut()
    in_thread(peer.resume)
    in_thread(peer.send, "system:ack", payload={"ack": question["ack"], "result": 42})
    rig.cut()
    in_thread(peer.send, "word", payload="hush")  # into a connection that is gone: sent again by the resume
    in_thread(peer.resume)
    assert in_thread(peer.until, "noted")["payload"] == "hush"
    assert in_thread(peer.receive)["payload"] == {"ack": 1, "item": 42}
    assert in_thread(peer.receive)["payload"] == {"ack": 1, "item": peer.welcome["id"]}
    assert in_thread(peer.receive)["payload"] == {"ack": 1}
    in_thread(peer.close)


def test_a_connection_nobody_has_missed_yet_is_replaced(rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    rig.proxy.cut(silently=True)
    for number in range(3):
        rig.kernel.send(own, {"type": "told", "payload": number})  # into the void
    assert rig.sessions["away"] == 0
    assert in_thread(peer.resume)["resumed"]
    assert [in_thread(peer.receive)["payload"] for _ in range(3)] == [0, 1, 2]
    other = SessionPeer(rig.url)
    other.token, other.received = peer.token, peer.received
    assert in_thread(other.resume)["resumed"]
    assert in_thread(peer.close_code) == 4010
    assert in_thread(other.ask, "echo", payload=1) == 1
    in_thread(other.close)
    until(lambda: ("went", own) in rig.events, "its own end is told")


def test_who_does_not_come_back_in_time_is_gone(in_thread: InThread) -> None:
    with Rig(limits={"session_grace": 0.2}) as rig:
        gone: AsyncResult[Any] = AsyncResult()

        @rig.kernel.on("client:disconnected")
        def went(message: Any, context: Any, toolkit: Any) -> None:
            if "tea" in context.rooms:
                gone.set((message.payload, rig.kernel.rooms.members("tea")))

        @rig.kernel.on("ask me")
        def ask_me(message: Any, context: Any, toolkit: Any) -> None:
            try:
                toolkit.call(context.id, {"type": "question"}, timeout=PATIENCE)
            except ConnectionClosed as closed:
                rig.taken.append(closed.code)

        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        in_thread(peer.ask, "join", room="tea")
        in_thread(peer.send, "ask me")
        in_thread(peer.until, "question")
        rig.proxy.cut()
        payload, members = gone.get(timeout=PATIENCE)
        assert (payload["code"], payload["rooms"], members) == (1006, ["tea"], [])
        assert rig.taken == [1006]
        about = in_thread(peer.resume)
        assert (about["resumed"], about["reason"], about["received"]) == (False, "unknown", 0)
        assert rig.counter("sessions_expired") == 1
        assert in_thread(peer.ask, "echo", payload=1) == 1  # it goes on as a new client
        in_thread(peer.close)


def test_services_hear_at_once_of_who_is_lost_and_who_is_back(rig: Rig, in_thread: InThread) -> None:
    told: list[Any] = []
    rig.kernel.hub.on_detached.append(lambda context, code: told.append(("lost", context.id, code)))
    rig.kernel.hub.on_resumed.append(lambda context: told.append(("back", context.id, context.rooms)))
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    in_thread(peer.ask, "join", room="tea")
    rig.cut()
    in_thread(peer.resume)
    assert told == [("lost", own, 1006), ("back", own, ["tea"])]
    in_thread(peer.close)


def test_a_silent_connection_is_held_for_its_client_too(in_thread: InThread) -> None:
    with Rig(heartbeat=Heartbeat(interval=0.1, timeout=1.5)) as rig:
        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        rig.proxy.cut(silently=True)
        until(lambda: rig.sessions["away"], "no pong came")
        in_thread(peer.come_back)  # it is the same session
        in_thread(peer.close)


@pytest.mark.parametrize("end", ["disconnect", "close", "stop"])
def test_an_end_on_purpose_ends_the_session(end: str, in_thread: InThread) -> None:
    with Rig() as rig:
        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        own = peer.welcome["id"]
        if end == "disconnect":
            rig.kernel.disconnect(own, 4009)  # even with a code that else means that it may come back
            assert in_thread(peer.close_code) == 4009
        elif end == "close":
            in_thread(peer.close)
        else:
            rig.cut()
            rig.kernel.disconnect(own)
        until(lambda: ("went", own) in rig.events, "its end")
        about = in_thread(peer.resume)
        assert (about["resumed"], about["reason"]) == (False, "unknown")
        in_thread(peer.close)


def test_stopping_ends_sessions_that_are_away(in_thread: InThread) -> None:
    with Rig() as rig:
        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        rig.cut()
        rig.kernel.stop()
        assert rig.events[-1] == ("went", peer.welcome["id"])
        assert rig.sessions["open"] == 0


def test_a_call_hears_who_is_lost_and_back_under_the_same_id(rig: Rig, in_thread: InThread) -> None:
    WebRTCSignalingBridge(auto_join_rooms=True).attach(rig.kernel)
    peers = [SessionPeer(rig.url) for _ in range(2)]
    for peer in peers:
        in_thread(peer.connect)
        in_thread(peer.send, "webrtc:join", room="call", payload={"metadata": {"name": "Ada"}})
        in_thread(peer.until, "webrtc:peers")
    staying, lost = peers
    in_thread(staying.until, "webrtc:peer-joined")
    own = lost.welcome["id"]
    in_thread(lost.drop)
    bye = in_thread(staying.until, "webrtc:bye")["payload"]
    assert (bye["from"], bye["reason"], bye["returns_within"]) == (own, "lost", 300)
    offer = {"target": own, "description": {"type": "offer", "sdp": "v=0\r\n"}}
    in_thread(staying.ask, "webrtc:offer", payload=offer)
    assert in_thread(lost.resume)["resumed"]
    assert in_thread(lost.until, "webrtc:offer")["payload"]["from"] == staying.welcome["id"]
    joined = in_thread(staying.until, "webrtc:peer-joined")["payload"]
    assert (joined["id"], joined["metadata"], "replaces" in joined) == (own, {"name": "Ada"}, False)
    for peer in peers:
        in_thread(peer.close)


# Bounds ------------------------------------------------------------------------------------------------------


def test_a_client_that_missed_more_than_is_kept_is_told_so(in_thread: InThread) -> None:
    with Rig(limits={"session_buffer": 1000}) as rig:
        peer = SessionPeer(rig.url, confirms=False)
        in_thread(peer.connect)
        own, token = peer.welcome["id"], peer.token
        for number in range(100):
            rig.kernel.send(own, {"type": "told", "payload": number})
            gevent.sleep(0)  # it is written, and no longer waits in the outbox
        for _ in range(50):
            in_thread(peer.receive)
        assert rig.sessions["kept_bytes"] < 2000
        rig.cut()
        about = in_thread(peer.resume)
        assert (about["resumed"], about["reason"]) == (False, "too much was missed")
        until(lambda: ("went", own) in rig.events, "the old client is gone")
        assert about["token"] != token
        assert rig.counter("sessions_refused_missed") == 1
        in_thread(peer.close)


def test_confirmed_messages_are_forgotten_on_both_sides(rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    for _ in range(200):
        in_thread(peer.send, "number", payload=1)
    in_thread(peer.ask, "echo")
    assert peer.unconfirmed < 64
    for _ in range(200):
        rig.kernel.send(peer.welcome["id"], {"type": "told"})
    for _ in range(200):
        in_thread(peer.receive)
    in_thread(peer.confirm)
    in_thread(peer.send, "echo")  # handled after the confirmation
    until(lambda: rig.sessions["kept_bytes"] == 0, "all is confirmed")
    in_thread(peer.close)


def test_who_is_sent_too_much_while_away_is_gone(in_thread: InThread) -> None:
    with Rig(limits={"outbox": 10_000}) as rig:
        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        own = peer.welcome["id"]
        rig.cut()
        for number in range(30):
            if own in rig.kernel.hub.connections:
                rig.kernel.send(own, {"type": "told", "payload": [number, "x" * 1000]})
        until(lambda: ("went", own) in rig.events, "it is given up")
        assert rig.counter("sessions_overflowed") == 1
        assert in_thread(peer.resume)["reason"] == "unknown"
        in_thread(peer.close)


def test_messages_keep_their_policies_while_their_client_is_away(in_thread: InThread) -> None:
    with Rig(limits={"outbox": 10_000}) as rig:
        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        own = peer.welcome["id"]
        rig.cut()
        for number in range(100):
            rig.kernel.send(own, {"type": "log", "payload": [number, "x" * 1000]}, overflow="drop_oldest")
        for number in range(100):
            rig.kernel.send(own, {"type": "price", "payload": number}, conflate="EUR")
        rig.kernel.send(own, {"type": "late"}, ttl=0.001)
        rig.kernel.send(own, {"type": "end"}, ttl=300.0)
        gevent.sleep(0.005)  # longer than the one is of use
        assert in_thread(peer.resume)["resumed"]
        got = []
        while (message := in_thread(peer.receive))["type"] != "end":
            got.append(message)
        assert [one["payload"] for one in got if one["type"] == "price"] == [99]
        logs = [one["payload"][0] for one in got if one["type"] == "log"]
        assert logs == list(range(100 - len(logs), 100))
        assert 5 < len(logs) < 10
        assert [one for one in got if one["type"] == "late"] == []
        assert rig.counter("expired") == 1
        assert in_thread(peer.ask, "echo", payload=1) == 1  # and the counts agree
        rig.cut()
        assert in_thread(peer.resume)["resumed"]
        in_thread(peer.close)


def test_only_so_many_may_be_away(in_thread: InThread) -> None:
    with Rig(limits={"sessions_away": 2}) as rig:
        peers = [SessionPeer(rig.url) for _ in range(3)]
        for peer in peers:
            in_thread(peer.connect)
        rig.proxy.cut()
        until(lambda: rig.counter("sessions_given_up_early"), "one is given up")
        back = [in_thread(peer.resume)["resumed"] for peer in peers]
        assert sorted(back) == [False, True, True]
        for peer in peers:
            in_thread(peer.close)


# Strangers ---------------------------------------------------------------------------------------------------


def test_forged_and_used_tokens_give_a_new_session_and_tell_nothing(rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    own, first = peer.welcome["id"], peer.token
    rig.cut()
    in_thread(peer.resume)
    in_thread(peer.ask, "echo")  # the confirmation of the new token is through
    stranger = SessionPeer(rig.url)
    for token in (first, first + "x", "", "x" * 1000, "elsewhere." + first, "\ud83d\ude00"):
        about = in_thread(stranger.connect, {"token": token, "received": 0})
        assert (about["resumed"], about["reason"]) == (False, "unknown")
        assert stranger.welcome["id"] != own
        in_thread(stranger.close)
    assert rig.counter("sessions_refused_unknown") == 6
    assert in_thread(peer.ask, "echo", payload=1) == 1
    in_thread(peer.close)


def test_a_token_is_bound_to_the_identity(in_thread: InThread) -> None:
    def authenticate(request: Any) -> dict[str, str]:
        return {"user": request.query["user"]}

    with Rig(authenticate=authenticate) as rig:
        peer = SessionPeer(rig.url + "?user=ann")
        in_thread(peer.connect)
        rig.cut()
        thief = SessionPeer(rig.url + "?user=bob")
        about = in_thread(thief.connect, {"token": peer.token, "received": 0})
        assert (about["resumed"], about["reason"]) == (False, "unknown")
        assert rig.counter("sessions_foreign") == 1
        assert in_thread(peer.resume)["resumed"]
        in_thread(peer.close)
        in_thread(thief.close)


def test_the_old_token_is_good_until_the_new_one_has_arrived(rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    own, first = peer.welcome["id"], peer.token
    for _ in range(3):  # the welcome is lost each time
        lost = SessionPeer(rig.url)
        lost.confirm = lambda: None  # type: ignore[method-assign]
        rig.proxy.cut(silently=True)
        about = in_thread(lost.connect, {"token": first, "received": 0})
        assert about["resumed"]
        assert about["token"] != first
    assert in_thread(peer.resume)["resumed"]
    assert peer.welcome["id"] == own
    in_thread(peer.ask, "echo")
    assert in_thread(lost.connect, {"token": first, "received": 0})["reason"] == "unknown"
    in_thread(lost.close)
    in_thread(peer.close)


@pytest.mark.parametrize(
    "session",
    [
        {"token": 7, "received": 0},
        {"token": "x"},
        {"token": "x", "received": -1},
        {"token": "x", "received": True},
        {"token": "x", "received": 2**60},
        {"token": "x" * 2000, "received": 0},
        ["x"],
        "x",
        1,
    ],
)
def test_a_hello_that_makes_no_sense_is_refused(session: Any, rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    in_thread(peer.send, "system:hello", payload={"session": session}, ack=5)
    error = in_thread(peer.until, "system:error")
    assert (error["payload"]["code"], error["payload"]["ack"]) == ("bad_message", 5)
    in_thread(peer.close)


def test_counts_that_cannot_be_are_refused(rig: Rig, in_thread: InThread) -> None:
    peer = SessionPeer(rig.url)
    in_thread(peer.connect)
    for payload in ({"count": 1}, {"count": -1}, {"count": "1"}, {}, None, {"count": 2**70}):
        in_thread(peer._put, {"type": "system:received", "payload": payload})
        assert in_thread(peer.until, "system:error")["payload"]["code"] == "bad_message"
    own = peer.welcome["id"]
    rig.cut()
    peer.received += 100
    about = in_thread(peer.resume)
    assert (about["resumed"], about["reason"]) == (False, "miscounted")
    until(lambda: ("went", own) in rig.events, "the old client is gone")
    in_thread(peer.close)


def test_without_a_session_nothing_can_be_confirmed(rig: Rig, in_thread: InThread) -> None:
    from websockets.sync.client import connect

    def scenario() -> str:
        with connect(rig.url, open_timeout=PATIENCE, close_timeout=PATIENCE) as client:
            client.send('{"type": "system:received", "payload": {"count": 0}}')
            return str(client.recv(timeout=PATIENCE))

    assert "has no session" in in_thread(scenario)
    assert rig.sessions["open"] == 0


# Other wires -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(None, "realtime.msgpack.v1"), ("realtime.msgpack.v1", None)])
def test_a_session_goes_on_in_another_codec(
    before: str | None, after: str | None, rig: Rig, in_thread: InThread
) -> None:
    peer = SessionPeer(rig.url, subprotocol=before)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    in_thread(peer.ask, "join", room="tea")
    rig.cut()
    rig.kernel.broadcast({"type": "said", "payload": {"a": [1, "ä"]}}, "tea")
    peer.subprotocol = after
    assert in_thread(peer.resume)["resumed"]
    assert peer.welcome["codec"] == ("msgpack" if after else "json")
    rig.kernel.broadcast({"type": "said", "payload": "more"}, "tea")
    messages = [in_thread(peer.receive) for _ in range(2)]
    assert [(one["type"], one["room"], one["payload"]) for one in messages] == [
        ("said", "tea", {"a": [1, "ä"]}),
        ("said", "tea", "more"),
    ]
    assert peer.welcome["id"] == own
    in_thread(peer.close)


def test_compressed_messages_are_sent_again_uncompressed(in_thread: InThread) -> None:
    with Rig(compression=True) as rig:
        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        text = "tunnel " * 1000
        rig.cut()
        rig.kernel.send(peer.welcome["id"], {"type": "told", "payload": text})
        assert in_thread(peer.resume)["resumed"]
        assert in_thread(peer.receive)["payload"] == text
        in_thread(peer.close)


# All at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [int(text) for text in os.environ.get("REALTIME_SEEDS", "1 2 3").split()])
def test_numbered_messages_arrive_once_and_in_order_through_random_cuts(seed: int, in_thread: InThread) -> None:
    """Both ways, with a direct sender and a room, through resets within messages and silent losses."""
    count = 1500
    print(f"seed {seed}")
    dice = random.Random(seed)
    done = Event()
    with Rig(seed) as rig:
        peer = SessionPeer(rig.url)
        in_thread(peer.connect)
        in_thread(peer.ask, "join", room="numbers")
        own = peer.welcome["id"]

        def publish() -> None:
            for number in range(count):
                rig.kernel.broadcast({"type": "number", "payload": number}, "numbers")
                rig.kernel.send(own, {"type": "direct", "payload": number})
                if number % 16 == 0:
                    gevent.sleep(0.002)

        def cut() -> None:
            while not done.is_set():
                wait_for_more(peer, dice.randint(1, 300), done)
                rig.proxy.cut(silently=dice.random() < 0.3)
                if dice.random() < 0.5:  # while it comes back, perhaps
                    gevent.sleep(dice.uniform(0, 0.05))
                    rig.proxy.cut()

        def play() -> tuple[list[Any], list[Any]]:
            got: dict[str, list[Any]] = {"number": [], "direct": []}
            for number in range(count):
                peer.send("number", payload=number)
                for _ in range(2):
                    message = peer.receive_through_cuts()
                    got[message["type"]].append(message["payload"])
            peer.send("echo", ack="end")
            while (message := peer.receive_through_cuts())["type"] != "system:ack":
                got[message["type"]].append(message["payload"])
            return got["number"], got["direct"]

        jobs = [gevent.spawn(publish), gevent.spawn(cut)]
        try:
            numbers, directs = in_thread(play)
        finally:
            done.set()
            gevent.joinall(jobs, raise_error=True)
        assert numbers == list(range(count))
        assert directs == list(range(count))
        assert rig.taken == list(range(count))
        assert rig.counter("sessions_resumed") > 0
        in_thread(peer.drop)
