"""The part of the conformance suite about clients that do not read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from realtime.config import KiB, Limits
from realtime.testing.peers import PATIENCE, Serving, wait_until

__all__ = ["SlowReaderTests"]


class SlowReaderTests(ABC):
    """A slow client harms nobody, memory is bounded, and every drop is counted."""

    can_stop_reading = True
    """Its client can stop reading, and the server notices that: a socket's does."""

    @abstractmethod
    def serving(self, **options: Any) -> AbstractContextManager[Serving]:
        """Run a kernel with the transport that is tested."""

    def test_a_slow_consumer_is_cut_off_and_others_miss_nothing(self) -> None:
        if not self.can_stop_reading:
            return
        # it hears how it was closed though it is slow to read that
        with self.serving(limits=Limits(outbox=256 * KiB, close_handshake=PATIENCE)) as serving:
            slow, healthy = serving.connect(), serving.connect()
            for peer in (slow, healthy):
                peer.call("join", room="lobby")
            slow.client.stop_reading()
            number = 0
            while serving.kernel.rooms.members("lobby")[1:] and number < 2_000:
                serving.kernel.broadcast({"type": "said", "payload": [number, "x" * 32 * KiB]}, "lobby")
                assert healthy.receive()["payload"][0] == number
                number += 1
            assert serving.counter("closed_slow_consumer") == 1
            slow.client.resume_reading()
            messages, closed = slow.received_before_close()
            assert closed.code == 4008, closed
            assert [message["payload"][0] for message in messages] == list(range(len(messages)))
            assert healthy.call("echo", 1) == 1

    def test_drop_oldest_keeps_the_connection_and_the_newest_messages(self) -> None:
        if not self.can_stop_reading:
            return
        with self.serving(limits=Limits(outbox=256 * KiB, park_timeout=0.001)) as serving:
            slow = serving.connect()
            id_ = slow.call("who")["id"]
            slow.client.stop_reading()
            number = 0
            while serving.counter("dropped_oldest") < 20 and number < 2_000:
                serving.kernel.send(id_, {"type": "news", "payload": [number, "x" * 32 * KiB]}, overflow="drop_oldest")
                number += 1
            slow.client.resume_reading()
            serving.kernel.send(id_, {"type": "last"})
            got = []
            while (message := slow.receive())["type"] != "last":
                got.append(message["payload"][0])
            assert got == sorted(got)
            assert got[-1] == number - 1
            assert len(got) == number - serving.counter("dropped_oldest")
            assert slow.call("echo", 1) == 1

    def test_conflation_keeps_the_newest_of_each_key(self) -> None:
        if not self.can_stop_reading:
            return
        with self.serving(limits=Limits(outbox=256 * KiB, park_timeout=0.001)) as serving:
            slow = serving.connect()
            id_ = slow.call("who")["id"]
            slow.client.stop_reading()
            number = 0
            while serving.counter("dropped_conflated") < 100 and number < 5_000:
                for key in ("a", "b"):
                    position = {"type": "position", "payload": [key, number, "x" * 16 * KiB]}
                    serving.kernel.send(id_, position, conflate=key)
                number += 1
            slow.client.resume_reading()
            serving.kernel.send(id_, {"type": "last"})
            seen: dict[str, int] = {}
            got = 0
            while (message := slow.receive())["type"] != "last":
                name, value, _ = message["payload"]
                assert value > seen.get(name, -1)
                seen[name] = value
                got += 1
            assert seen == {"a": number - 1, "b": number - 1}
            assert got == 2 * number - serving.counter("dropped_conflated")

    def test_a_stream_waits_for_a_client_that_does_not_read(self) -> None:
        if not self.can_stop_reading:
            return
        items = 512  # of 64 KiB: more than sockets take
        with self.serving(limits=Limits(outbox=256 * KiB)) as serving:
            slow, other = serving.connect(), serving.connect()
            outbox = serving.kernel.hub.connections[slow.call("who")["id"]].outbox
            slow.client.stop_reading()
            slow.send("stream big", {"items": items, "size": 64 * KiB}, ack=1)
            wait_until(lambda: outbox.size > outbox.park_at)
            for number in range(20):  # the generator has every opportunity to go on, and must not
                assert other.call("echo", number) == number
            assert 0 < serving.streamed < items
            slow.client.resume_reading()
            sizes = [len(slow.receive()["payload"]["item"]) for _ in range(items)]
            assert sizes == [64 * KiB] * items
            assert slow.receive()["payload"] == {"ack": 1}
