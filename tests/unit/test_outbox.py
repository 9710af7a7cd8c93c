"""The outbox over a fake sink: what waits, what is dropped, what is never touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.config import Limits
from realtime.delivery import Delivery, Perishable
from realtime.flusher import Flusher
from realtime.outbox import CONTROL_ROOM, FLUSH_AT, WRITE_AT_ONCE, Outbox

PATIENCE = 60.0


class Loop:
    """A loop whose turns are taken by hand."""

    def __init__(self) -> None:
        self.loop = self
        self._callbacks: list[Callable[[], None]] = []

    def run_callback(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def turn(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class FakeSink:
    """Takes ``room`` bytes, then nothing until there is room again."""

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.written = b""
        self.writes = 0
        self.told: list[str] = []
        self.error: OSError | None = None

    def write(self, frames: list[bytes]) -> int:
        if self.error is not None:
            raise self.error
        self.writes += 1
        data = b"".join(frames)
        taken = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= taken
        self.written += data[:taken]
        return taken

    def watch_writable(self) -> None:
        self.told.append("watch")

    def broken(self, error: OSError) -> None:
        self.told.append(f"broken: {error}")

    def finished(self) -> None:
        self.told.append("finished")

    def overflowed(self) -> None:
        self.told.append("overflowed")


class Bench:
    """An outbox of 100 bytes with what belongs to it."""

    def __init__(self, *, limit: int = 100, room: int | None = None) -> None:
        self.loop = Loop()
        self.counters: Counter[str] = Counter()
        self.sink = FakeSink(room)
        self.flusher = Flusher(self.loop, self.counters)
        self.outbox = Outbox(self.sink, self.flusher, Limits(outbox=limit))

    def open_up(self, room: int | None = None) -> None:
        """The socket can take more."""
        self.sink.room = room
        self.outbox.resume()


def perishable(data: bytes, expires: float | None = None, **options: Any) -> Perishable:
    frame = Perishable(data)
    frame.delivery = Delivery(**options)
    frame.expires = expires
    return frame


def droppable(data: bytes, key: str | None = None) -> Perishable:
    return perishable(data, conflate=key) if key is not None else perishable(data, overflow="drop_oldest")


# Flushing ---------------------------------------------------------------


def test_what_is_put_in_one_turn_is_written_at_once_when_the_turn_ends() -> None:
    bench = Bench()
    for frame in (b"one ", b"two ", b"three"):
        assert bench.outbox.put(frame) is True
    assert bench.sink.writes == 0
    bench.loop.turn()
    assert (bench.sink.written, bench.sink.writes) == (b"one two three", 1)
    assert bench.outbox.size == 0


def test_every_dirty_outbox_is_flushed_once_by_one_callback() -> None:
    bench = Bench()
    sinks = [FakeSink() for _ in range(3)]
    outboxes = [Outbox(sink, bench.flusher, Limits()) for sink in sinks]
    for _ in range(5):
        for outbox in outboxes:
            outbox.put(b"x")
    assert len(bench.loop._callbacks) == 1
    bench.loop.turn()
    assert [(sink.written, sink.writes) for sink in sinks] == [(b"xxxxx", 1)] * 3
    bench.loop.turn()
    assert [sink.writes for sink in sinks] == [1, 1, 1]


def test_a_later_turn_flushes_again() -> None:
    bench = Bench()
    bench.outbox.put(b"a")
    bench.loop.turn()
    bench.outbox.put(b"b")
    bench.loop.turn()
    assert (bench.sink.written, bench.sink.writes) == (b"ab", 2)


def test_who_publishes_without_yielding_is_flushed_at_a_threshold() -> None:
    bench = Bench(limit=10 * FLUSH_AT)
    bench.outbox.put(b"x" * FLUSH_AT)
    assert bench.sink.writes == 0
    bench.outbox.put(b"y")
    assert bench.sink.writes == 1
    assert bench.outbox.size == 0


def test_more_than_one_write_should_join_is_written_in_pieces() -> None:
    bench = Bench(limit=10 * WRITE_AT_ONCE, room=0)
    frames = [bytes([number]) * 1000 for number in range(200)] * 3
    for frame in frames:
        bench.outbox.put(frame)
    bench.outbox.flush()
    bench.open_up()
    assert bench.sink.written == b"".join(frames)
    assert bench.sink.writes > 2


# A socket that is full ---------------------------------------------------------------


def test_a_partial_write_goes_on_where_it_stopped() -> None:
    bench = Bench(room=5)
    for frame in (b"abc", b"defg", b"hi"):
        bench.outbox.put(frame)
    bench.loop.turn()
    assert (bench.sink.written, bench.outbox.size, bench.sink.told) == (b"abcde", 4, ["watch"])
    bench.open_up()
    assert (bench.sink.written, bench.outbox.size) == (b"abcdefghi", 0)


def test_a_full_socket_is_not_tried_again_before_it_can_take_more() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"a")
    bench.loop.turn()
    for _ in range(3):
        bench.outbox.put(b"b")
        bench.loop.turn()
        bench.outbox.flush()
    assert (bench.sink.writes, bench.sink.told) == (1, ["watch"])
    bench.open_up()
    assert bench.sink.written == b"abbb"


def test_bytes_taken_by_a_full_socket_are_a_sign_of_life() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"abcd")
    bench.loop.turn()
    assert bench.outbox.progress == 0
    bench.open_up(3)
    assert bench.outbox.progress == 3


@settings(max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=15), st.lists(st.integers(0, 40), max_size=20))
def test_however_little_a_socket_takes_the_bytes_come_out_whole_and_in_order(
    frames: list[bytes], rooms: list[int]
) -> None:
    bench = Bench(limit=10_000, room=0)
    for frame in frames:
        bench.outbox.put(frame)
    bench.loop.turn()
    for room in rooms:
        bench.open_up(room)
        bench.loop.turn()
    bench.open_up()
    assert bench.sink.written == b"".join(frames)
    assert bench.outbox.size == 0


def test_a_sink_that_fails_otherwise_is_broken_too_and_the_others_are_flushed(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.sink.write = lambda frames: 1 // 0
    other = FakeSink()
    for outbox in (bench.outbox, Outbox(other, bench.flusher, Limits())):
        outbox.put(b"a")
    bench.loop.turn()
    assert bench.sink.told == ["broken: integer division or modulo by zero"]
    assert other.written == b"a"
    assert "ZeroDivisionError" in caplog.text


def test_a_broken_socket_is_told_once_and_nothing_is_raised() -> None:
    bench = Bench()
    bench.sink.error = BrokenPipeError("gone")
    bench.outbox.put(b"a")
    bench.loop.turn()
    assert bench.sink.told == ["broken: gone"]


# Control frames ---------------------------------------------------------------


def test_a_control_frame_overtakes_what_waits() -> None:
    bench = Bench()
    bench.outbox.put(b"data")
    bench.outbox.put_first(b"ping")
    bench.loop.turn()
    assert bench.sink.written == b"pingdata"


def test_a_control_frame_never_gets_into_a_frame_that_is_half_sent() -> None:
    bench = Bench(room=2)
    bench.outbox.put(b"data")
    bench.outbox.put(b"more")
    bench.loop.turn()
    bench.outbox.put_first(b"ping")
    bench.open_up()
    assert bench.sink.written == b"datapingmore"


def test_control_frames_that_were_written_do_not_count_though_more_waits() -> None:
    bench = Bench(room=0)
    pong = b"p" * 100
    for _ in range(2 * CONTROL_ROOM // len(pong)):
        bench.outbox.put_first(pong)
        bench.outbox.put_first(pong)
        bench.loop.turn()
        bench.open_up(200 if bench.outbox.waiting > 2 else 100)
        assert bench.outbox.waiting == 1
    assert "overflowed" not in bench.sink.told


def test_control_frames_are_bounded_whatever_else_waits() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 100)
    bench.loop.turn()
    for _ in range(CONTROL_ROOM // 100):
        bench.outbox.put_first(b"p" * 100)
    assert "overflowed" not in bench.sink.told
    bench.outbox.put_first(b"p" * 100)
    assert bench.sink.told[-1] == "overflowed"
    assert bench.counters["closed_slow_consumer"] == 1


def test_a_frame_that_the_sink_has_begun_unseen_is_not_overtaken_dropped_or_replaced() -> None:
    bench = Bench(room=0)
    bench.outbox.put(droppable(b"aaaa", "k"))
    bench.outbox.put(droppable(b"bbbb", "l"))
    bench.outbox.put(b"cccc")
    bench.loop.turn()
    bench.outbox.keep_first(6)  # all of the first and a part of the second
    bench.outbox.put_first(b"ping")
    bench.outbox.put(droppable(b"AAAA", "k"))
    bench.open_up()
    assert bench.sink.written == b"aaaabbbbpingccccAAAA"


def test_keeping_more_than_there_is_keeps_everything() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"aaaa")
    bench.outbox.put(b"bbbb")
    bench.loop.turn()
    bench.outbox.keep_first(1000)
    bench.outbox.discard()
    assert bench.outbox.size == 8
    bench.open_up()
    assert bench.sink.written == b"aaaabbbb"


def test_discarding_keeps_only_the_rest_of_a_half_sent_frame() -> None:
    bench = Bench(room=2)
    for frame in (b"data", b"more", b"last"):
        bench.outbox.put(frame)
    bench.loop.turn()
    bench.outbox.discard()
    assert (bench.outbox.size, bench.counters["dropped_undelivered"]) == (2, 2)
    bench.outbox.put_last(b"bye")
    bench.open_up()
    assert bench.sink.written == b"databye"


# Overflow ---------------------------------------------------------------


def test_what_does_not_fit_cuts_the_connection_off_and_is_counted() -> None:
    bench = Bench(room=0)
    assert bench.outbox.put(b"x" * 100) is True
    bench.loop.turn()
    assert bench.outbox.put(b"y") is False
    assert bench.sink.told == ["watch", "overflowed"]
    assert bench.counters == {"closed_slow_consumer": 1}
    assert bench.outbox.size == 100


def test_a_socket_that_still_takes_bytes_is_tried_before_anything_is_dropped() -> None:
    bench = Bench()
    for _ in range(5):
        assert bench.outbox.put(b"x" * 60) is True
    assert bench.sink.told == []
    bench.loop.turn()
    assert bench.sink.written == b"x" * 300


def test_drop_oldest_makes_room_by_dropping_the_oldest_droppable() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"important" + b"." * 31)  # 40
    for letter in (b"a", b"b", b"c"):
        bench.outbox.put(droppable(letter * 20))
    bench.loop.turn()
    assert bench.outbox.put(droppable(b"d" * 30)) is True
    assert bench.counters["dropped_oldest"] == 2
    assert bench.outbox.size == 40 + 20 + 30
    bench.open_up()
    assert bench.sink.written == b"important" + b"." * 31 + b"c" * 20 + b"d" * 30


def test_what_may_not_be_dropped_is_not_and_then_the_newest_is() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 90)
    bench.outbox.put(droppable(b"a" * 10))
    bench.loop.turn()
    assert bench.outbox.put(droppable(b"b" * 20)) is False
    assert bench.counters == {"dropped_newest": 1}
    assert bench.sink.told == ["watch"]
    bench.open_up()
    assert bench.sink.written == b"x" * 90 + b"a" * 10


def test_a_half_sent_frame_is_never_dropped() -> None:
    bench = Bench(room=10)
    bench.outbox.put(droppable(b"a" * 60))
    bench.loop.turn()
    bench.outbox.put(droppable(b"b" * 40))
    assert bench.outbox.put(droppable(b"c" * 50)) is True
    assert bench.counters["dropped_oldest"] == 1
    bench.open_up()
    assert bench.sink.written == b"a" * 60 + b"c" * 50


def test_dropping_makes_no_room_for_what_may_not_be_dropped() -> None:
    """The default policy is the sender's promise that nothing is lost: it must not cost others their messages."""
    bench = Bench(room=0)
    bench.outbox.put(droppable(b"a" * 90))
    bench.loop.turn()
    assert bench.outbox.put(b"b" * 20) is False
    assert bench.sink.told == ["watch", "overflowed"]


def test_conflation_keeps_one_per_key_the_newest_at_its_place_in_the_order() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"first ")
    bench.outbox.put(droppable(b"k1 ", "k"))
    bench.outbox.put(droppable(b"l1 ", "l"))
    bench.outbox.put(b"last ")
    assert bench.outbox.put(droppable(b"k2,longer ", "k")) is True
    assert bench.outbox.put(droppable(b"k3 ", "k")) is True
    assert bench.counters == {"dropped_conflated": 2}
    assert bench.outbox.size == len(b"first l1 last k3 ")
    bench.open_up()
    assert bench.sink.written == b"first l1 last k3 "


def test_conflation_happens_below_the_limit_too() -> None:
    bench = Bench()
    for number in range(10):
        bench.outbox.put(droppable(b"%d" % number, "k"))
    bench.loop.turn()
    assert bench.sink.written == b"9"


def test_a_half_sent_frame_is_not_conflated() -> None:
    bench = Bench(room=1)
    bench.outbox.put(droppable(b"k1 ", "k"))
    bench.loop.turn()
    bench.outbox.put(droppable(b"k2 ", "k"))
    bench.outbox.put(droppable(b"k3 ", "k"))
    bench.open_up()
    assert bench.sink.written == b"k1 k3 "


def test_conflation_with_something_that_does_not_fit_drops_it_and_what_it_replaces() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 90)
    bench.outbox.put(droppable(b"k" * 5, "k"))
    bench.loop.turn()
    assert bench.outbox.put(droppable(b"K" * 20, "k")) is False
    assert bench.counters == {"dropped_conflated": 1, "dropped_newest": 1}
    assert bench.outbox.size == 90


def test_a_volatile_frame_is_dropped_above_the_high_water_mark() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 75)
    bench.loop.turn()
    assert bench.outbox.put(perishable(b"a" * 20, volatile=True)) is True  # up to the mark it waits like others
    assert bench.outbox.put(perishable(b"b", volatile=True)) is False
    assert bench.counters == {"dropped_volatile": 1}
    bench.open_up()
    assert bench.sink.written == b"x" * 75 + b"a" * 20
    assert bench.outbox.put(perishable(b"c", volatile=True)) is True


def test_a_volatile_frame_that_does_not_fit_is_dropped_and_drops_nothing_else() -> None:
    bench = Bench(room=0)
    bench.outbox.put(droppable(b"a" * 70))
    bench.loop.turn()
    assert bench.outbox.put(perishable(b"b" * 40, volatile=True)) is False
    assert bench.counters == {"dropped_volatile": 1}


def test_a_volatile_frame_that_waits_makes_room_for_one_that_drops_the_oldest() -> None:
    bench = Bench(room=0)
    bench.outbox.put(perishable(b"a" * 40, volatile=True))
    bench.loop.turn()
    assert bench.outbox.put(droppable(b"b" * 80)) is True
    assert bench.counters == {"dropped_oldest": 1}


def test_a_socket_that_still_takes_bytes_takes_volatile_frames() -> None:
    bench = Bench()
    for _ in range(10):
        assert bench.outbox.put(perishable(b"x" * 60, volatile=True)) is True
    bench.loop.turn()
    assert bench.sink.written == b"x" * 600


class Clock(SimpleNamespace):
    """In place of the module ``time``."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("realtime.outbox.time", clock)
    return clock


def test_what_expires_while_it_waits_is_not_written(clock: Clock) -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"first ")
    bench.outbox.put(perishable(b"soon ", 101.0, ttl=1.0))
    bench.outbox.put(perishable(b"later ", 105.0, ttl=5.0))
    bench.outbox.put(b"last ")
    bench.loop.turn()
    clock.now = 101.0
    bench.open_up(0)
    assert bench.outbox.size == len(b"first later last ")
    assert bench.counters == {"expired": 1}
    clock.now = 104.9
    bench.open_up()
    assert bench.sink.written == b"first later last "
    assert bench.counters == {"expired": 1}


def test_what_has_expired_before_is_not_taken(clock: Clock) -> None:
    bench = Bench()
    assert bench.outbox.put(perishable(b"late", 100.0, ttl=1.0)) is False
    bench.loop.turn()
    assert (bench.sink.written, bench.counters) == (b"", {"expired": 1})


def test_what_has_expired_makes_room_before_the_connection_is_cut(clock: Clock) -> None:
    bench = Bench(room=0)
    bench.outbox.put(perishable(b"a" * 80, 101.0, ttl=1.0))
    bench.loop.turn()
    clock.now = 102.0
    assert bench.outbox.put(b"b" * 60) is True
    assert bench.sink.told == ["watch"]
    assert bench.counters == {"expired": 1}
    assert bench.outbox.size == 60


def test_what_has_expired_is_no_reason_to_wait(clock: Clock) -> None:
    bench = Bench(room=0)
    bench.outbox.put(perishable(b"a" * 80, 101.0, ttl=1.0))
    bench.loop.turn()
    assert not bench.outbox.has_room()
    clock.now = 102.0
    assert bench.outbox.has_room()


def test_a_ttl_alone_lets_nobody_drop_the_message(clock: Clock) -> None:
    bench = Bench(room=0)
    bench.outbox.put(perishable(b"a" * 80, 101.0, ttl=1.0))
    bench.loop.turn()
    assert bench.outbox.put(perishable(b"b" * 60, 101.0, ttl=1.0)) is False
    assert bench.sink.told == ["watch", "overflowed"]


def test_a_half_sent_frame_does_not_expire(clock: Clock) -> None:
    bench = Bench(room=1)
    bench.outbox.put(perishable(b"abc", 101.0, ttl=1.0))
    bench.loop.turn()
    clock.now = 102.0
    bench.open_up()
    assert bench.sink.written == b"abc"


_kinds = ["plain", "drop", "a", "b", "volatile", "ttl"]
_frames = st.tuples(st.sampled_from(_kinds), st.integers(1, 40))


def _frame_of(kind: str, data: bytes, now: float) -> bytes:
    if kind == "plain":
        return data
    if kind == "volatile":
        return perishable(data, volatile=True)
    if kind == "ttl":
        return perishable(data, now + len(data) / 10, ttl=len(data) / 10)
    return droppable(data, None if kind == "drop" else kind)


@settings(max_examples=300)
@given(st.lists(st.one_of(_frames, st.integers(0, 60)), max_size=60))
def test_whatever_happens_the_outbox_is_bounded_and_counts_every_frame(steps: list[tuple[str, int] | int]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("realtime.outbox.time", clock)
        _whatever_happens(steps, clock)


def _whatever_happens(steps: list[tuple[str, int] | int], clock: Clock) -> None:
    bench = Bench(limit=100, room=0)
    put = whole = 0
    for step in steps:
        if isinstance(step, int):
            bench.open_up(step)
        else:
            kind, length = step
            frame = bytes([length]) * length
            put += 1
            bench.outbox.put(_frame_of(kind, frame, clock.now))
        clock.now += 0.5
        bench.loop.turn()
        assert 0 <= bench.outbox.size <= 100
        assert bench.outbox.size == sum(map(len, bench.outbox._frames))
    bench.open_up()
    written = bench.sink.written
    while written:  # only whole frames, each of as many bytes as it says
        assert written[: written[0]] == bytes([written[0]]) * written[0]
        written = written[written[0] :]
        whole += 1
    assert put == whole + sum(bench.counters.values())


# Waiting ---------------------------------------------------------------


def test_there_is_room_up_to_the_high_water_mark_and_for_what_fits() -> None:
    bench = Bench(room=0)
    assert bench.outbox.has_room(100)
    bench.outbox.put(b"x" * 75)
    bench.loop.turn()
    assert bench.outbox.has_room(25)
    assert not bench.outbox.has_room(26)
    bench.outbox.put(b"x")
    assert not bench.outbox.has_room()
    assert bench.outbox.wait_for_room(0) is False


def test_a_socket_that_takes_bytes_is_written_to_instead_of_waiting() -> None:
    bench = Bench()
    bench.outbox.put(b"x" * 90)
    assert bench.outbox.wait_for_room(0) is True
    assert bench.sink.written == b"x" * 90


def test_who_waits_for_room_goes_on_when_the_socket_has_taken_enough() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 90)
    bench.loop.turn()
    waiting = gevent.spawn(bench.outbox.wait_for_room, PATIENCE, 50)
    gevent.sleep(0)
    bench.open_up(20)  # below the mark, but fifty more would not fit
    gevent.sleep(0)
    assert not waiting.ready()
    bench.open_up(20)
    assert waiting.get(timeout=PATIENCE) is True


def test_who_waits_for_room_goes_on_when_the_connection_is_closed() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 90)
    bench.loop.turn()
    waiting = gevent.spawn(bench.outbox.wait_for_room, PATIENCE)
    gevent.sleep(0)
    bench.outbox.close()
    assert waiting.get(timeout=PATIENCE) is True


def test_a_wait_that_ends_looks_once_more_whether_the_socket_takes_bytes() -> None:
    """A process that stood still has the end of the wait and the room in the socket at once, and the end first."""
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 90)
    bench.loop.turn()
    bench.sink.room = 60
    assert bench.outbox.wait_for_room(0.001) is True
    assert bench.outbox.progress == 60
    bench.outbox.put(b"y" * 60)
    assert bench.outbox.wait_for_room(0.001) is False


def test_of_many_who_wait_for_room_only_as_many_go_on_as_fit() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 90)
    bench.loop.turn()

    def send() -> bool:
        return bench.outbox.wait_for_room(PATIENCE, 40) and bench.outbox.put(b"y" * 40)

    senders = [gevent.spawn(send) for _ in range(5)]
    gevent.sleep(0)
    bench.open_up(60)
    gevent.sleep(0)
    assert sum(sender.ready() for sender in senders) == 1
    for _ in range(5):
        bench.open_up(60)
        gevent.sleep(0)
        gevent.sleep(0)
    assert [sender.get(timeout=PATIENCE) for sender in senders] == [True] * 5
    assert bench.counters["closed_slow_consumer"] == 0


def test_what_is_put_beyond_the_limit_keeps_its_place_and_takes_room_from_nobody() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 60)
    bench.loop.turn()
    assert bench.outbox.put_beyond(b"y" * 60)
    waiting = gevent.spawn(bench.outbox.settle, 60, PATIENCE)
    gevent.sleep(0)
    assert bench.outbox.put(b"z" * 40)  # it fits, as it would have without what waits
    bench.open_up(60)
    assert waiting.get(timeout=PATIENCE) is True
    bench.open_up()
    assert bench.sink.written == b"x" * 60 + b"y" * 60 + b"z" * 40
    assert bench.outbox.limit == 100
    assert bench.counters["closed_slow_consumer"] == 0


def test_what_was_put_beyond_the_limit_and_does_not_fit_in_time_cuts_the_connection_off() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 60)
    bench.loop.turn()
    assert bench.outbox.put_beyond(b"y" * 60)
    assert bench.outbox.settle(60, 0) is False
    assert bench.sink.told[-1] == "overflowed"
    assert bench.outbox.limit == 100


def test_who_waits_is_told_when_the_socket_took_whole_frames_and_not_all() -> None:
    bench = Bench(room=0)
    for _ in range(2):
        bench.outbox.put(b"x" * 50)
    bench.loop.turn()
    waiting = gevent.spawn(bench.outbox.wait_for_room, PATIENCE, 10)
    gevent.sleep(0)
    bench.open_up(50)
    gevent.sleep(0)
    gevent.sleep(0)
    assert waiting.ready()
    assert waiting.value is True


# The end ---------------------------------------------------------------


def test_the_last_frame_comes_after_what_waits_and_is_announced_when_written() -> None:
    bench = Bench(room=2)
    bench.outbox.put(b"data")
    bench.outbox.put_last(b"bye")
    assert bench.outbox.put(b"too late") is False
    bench.outbox.put_first(b"ping")
    bench.loop.turn()
    assert bench.sink.told == ["watch"]
    bench.open_up()
    assert bench.sink.written == b"databye"
    assert bench.sink.told == ["watch", "finished"]
    assert bench.counters == {"dropped_after_close": 1}


def test_the_last_frame_fits_always() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"x" * 100)
    bench.outbox.put_last(b"bye")
    bench.outbox.put_last(b"bye again")
    bench.open_up()
    assert bench.sink.written == b"x" * 100 + b"bye"
    assert bench.sink.told == ["finished"]


def test_closing_drops_and_counts_what_waits_and_refuses_the_rest() -> None:
    bench = Bench(room=0)
    bench.outbox.put(b"a")
    bench.outbox.put(b"b")
    bench.outbox.close()
    bench.outbox.close()
    assert bench.outbox.put(b"c") is False
    assert bench.counters == {"dropped_undelivered": 2, "dropped_after_close": 1}
    bench.open_up()
    bench.loop.turn()
    assert bench.sink.written == b""
    assert bench.outbox.wait_for_room(1) is True


def test_an_unbounded_frame_is_taken_whatever_its_size_and_the_limit_holds_again() -> None:
    bench = Bench(room=0)
    assert bench.outbox.put_unbounded(b"x" * 1000) is True
    assert bench.outbox.limit == 100
    assert bench.outbox.put(b"y") is False
    bench.outbox.close()
    assert bench.outbox.put_unbounded(b"z") is False


@pytest.mark.parametrize("share", [0.5, 1])
def test_the_high_water_mark_is_a_share_of_the_limit(share: float) -> None:
    outbox = Outbox(FakeSink(), Flusher(Loop(), Counter()), Limits(outbox=200, park_above=share))
    assert outbox.park_at == 200 * share


def test_a_timeout_of_whoever_waits_leaves_the_bound_as_it_was() -> None:
    bench = Bench(room=0)
    before = bench.outbox.limit
    bench.outbox.put(b"x" * before)
    bench.loop.turn()
    assert bench.outbox.put_beyond(b"y" * 10)

    def wait() -> bool:
        with gevent.Timeout(0.01, False):
            bench.outbox.settle(10, 30)
        return True

    assert gevent.spawn(wait).get(timeout=PATIENCE)
    assert bench.outbox.limit == before
