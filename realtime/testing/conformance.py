"""What every transport must do, as tests: subclass ``TransportConformance`` and run it with pytest.

The suite knows only the kernel and a client of four methods, so that it proves any transport. It imports no
test framework: its methods are plain functions named ``test_*`` that assert.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from realtime.config import Limits
from realtime.kernel import RealtimeKernel
from realtime.testing.hostile import BAD_JSON, BAD_MSGPACK
from realtime.testing.peers import ConformanceClient, Serving, living_greenlets, wait_until
from realtime.testing.slow_readers import SlowReaderTests
from realtime.transports.base import Transport

__all__ = ["TransportConformance"]


class TransportConformance(SlowReaderTests):
    """Subclass it in a test module, as ``class TestMine(TransportConformance)``, and run pytest.

    Where a transport cannot express something, say so in the attributes below; what is left out then is
    listed in the documentation of your transport, please.
    """

    codec = "json"
    """What ``make_client`` speaks: ``"json"`` or ``"msgpack"``."""
    oversize_code: int | None = 1009
    """How a message over ``Limits.message_size`` ends the connection; None where the transport has no such bound."""

    @abstractmethod
    def make_transport(self) -> Transport:
        """Return a new transport."""

    @abstractmethod
    def make_client(self, transport: Transport) -> ConformanceClient:
        """Return a new client, connected to the transport."""

    def make_kernel(self, transport: Transport, **options: Any) -> RealtimeKernel:
        """Return a new kernel with this transport."""
        return RealtimeKernel([transport], **options)

    @contextmanager
    def serving(self, **options: Any) -> Iterator[Serving]:
        """Run a kernel with the handlers below for the length of a ``with`` block, then take it all down."""
        transport = self.make_transport()
        kernel = self.make_kernel(transport, **options)
        serving = Serving(kernel, transport, lambda: self.make_client(transport))
        kernel.start()
        try:
            yield serving
        finally:
            for peer in serving.peers:
                peer.client.kill()
            kernel.stop(5)

    # Requests and answers --------------------------------------------------------------------------

    def test_the_first_message_can_be_sent_at_once_and_the_server_does_not_speak_first(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            peer.send("echo", "hi", ack=1)
            first = peer.receive()
            assert (first["type"], first["payload"]) == ("system:ack", {"ack": 1, "result": "hi"}), first

    def test_values_come_back_as_they_were_sent(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            text = 'ümläut \u2028 \U0001f600 \x00 \\ "'
            for value in [0, -1, 2**63, -(2**63), 1.5, True, "", text, [], {}, [[[{"a": {"b": [1]}}]]], text * 20_000]:
                got = peer.call("echo", value)
                assert got == value, (got, value)

    def test_a_result_of_none_is_an_ack_without_result(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            for ack in (7, "seven"):
                peer.send("echo", ack=ack)
                assert peer.receive()["payload"] == {"ack": ack}

    def test_a_message_without_ack_is_not_acknowledged(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            peer.send("echo", "first")
            peer.send("echo", "second", ack=2)
            assert peer.receive()["payload"]["ack"] == 2

    def test_every_message_to_a_client_has_a_timestamp_in_milliseconds(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            peer.send("echo", ack=1)
            stamp = peer.receive()["timestamp"]
            assert isinstance(stamp, int)
            assert abs(stamp / 1000 - time.time()) < 60, stamp

    def test_hello_is_answered_with_welcome_and_the_clients_id(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            peer.send("system:hello", {})
            welcome = peer.receive()
            assert welcome["type"] == "system:welcome", welcome
            assert welcome["payload"]["id"] == peer.call("who")["id"]
            assert welcome["payload"]["codec"] == self.codec

    def test_the_context_tells_transport_and_connection_time(self) -> None:
        with self.serving() as serving:
            who = serving.connect().call("who")
            assert who["transport"], who
            assert abs(who["connected_at"] - time.time()) < 60, who

    def test_messages_of_one_client_are_handled_in_order(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            for number in range(200):
                peer.send("record", number)
            assert peer.call("recorded") == list(range(200))

    def test_a_handler_that_waits_holds_up_no_other_client(self) -> None:
        with self.serving() as serving:
            waiting, other = serving.connect(), serving.connect()
            waiting.send("wait for release", ack=1)
            assert other.call("echo", "meanwhile") == "meanwhile"
            other.call("release")
            assert waiting.outcome_of(1) == "released"

    def test_a_stream_arrives_in_order_and_ends_with_the_ack(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            peer.send("stream", 300, ack="s")
            items = [peer.receive() for _ in range(300)]
            assert {item["type"] for item in items} == {"system:stream"}
            assert [item["payload"] for item in items] == [{"ack": "s", "item": number} for number in range(300)]
            assert peer.receive()["payload"] == {"ack": "s", "result": "done"}

    # Refusals ---------------------------------------------------------------------------------------

    def test_reject_answers_with_its_code_and_text(self) -> None:
        with self.serving() as serving:
            assert serving.connect().refused("reject") == ("forbidden", "not you")

    def test_a_failing_handler_harms_nobody_and_tells_nothing(self) -> None:
        with self.serving(log_level="critical") as serving:
            peer, other = serving.connect(), serving.connect()
            code, text = peer.refused("fail")
            assert code == "internal_error"
            assert "secret" not in text
            assert peer.call("echo", 1) == other.call("echo", 1) == 1

    def test_a_name_that_nobody_handles_is_unknown(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            assert peer.refused("nobody:handles:this")[0] == "unknown_type"
            assert peer.call("echo", 1) == 1

    def test_reserved_names_are_refused(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            for name in ("system:anything", "client:connected", "client:anything", "mesh:anything"):
                assert peer.refused(name)[0] == "reserved_type", name
            assert peer.call("echo", 1) == 1

    def test_bad_messages_are_refused_and_the_connection_lives_on(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            bad = BAD_JSON if self.codec == "json" else BAD_MSGPACK
            for name, data in bad.items():
                peer.send_raw(data)
                answer = peer.receive()
                got = answer["type"], answer["payload"].get("code")
                assert got == ("system:error", "bad_message"), f"{name}: {answer}"
                assert peer.call("echo", name) == name
            assert serving.counter("refused_bad_message") == len(bad)

    def test_a_bad_message_is_answered_with_its_ack_where_it_can_be_read(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            assert peer.refused("")[0] == "bad_message"

    def test_a_message_over_the_limit_ends_only_its_own_connection(self) -> None:
        if self.oversize_code is None:
            return
        with self.serving(limits=Limits(message_size=10_000)) as serving:
            peer, other = serving.connect(), serving.connect()
            assert peer.call("echo", "x" * 9_000) == "x" * 9_000
            peer.send("echo", "x" * 10_000)
            closed = peer.received_before_close()[1]
            assert closed.code == self.oversize_code, closed
            assert other.call("echo", 1) == 1

    # Rooms and presence -----------------------------------------------------------------------------

    def test_room_messages_reach_each_member_in_order_and_nobody_else(self) -> None:
        with self.serving() as serving:
            sender, member, stranger = (serving.connect() for _ in range(3))
            for peer in (sender, member):
                peer.call("join", room="lobby")
            for number in range(100):
                sender.send("say", number, room="lobby")
            for peer in (sender, member):
                said = [peer.receive() for _ in range(100)]
                assert [message["payload"] for message in said] == list(range(100))
                assert {(message["type"], message["room"]) for message in said} == {("said", "lobby")}
            stranger.send("echo", ack=1)
            assert stranger.receive()["type"] == "system:ack"

    def test_except_self_leaves_the_sender_out(self) -> None:
        with self.serving() as serving:
            sender, member = serving.connect(), serving.connect()
            for peer in (sender, member):
                peer.call("join", room="lobby")
            sender.send("say to others", "hi", room="lobby")
            assert member.receive()["payload"] == "hi"
            sender.send("echo", ack=9)
            assert sender.receive()["payload"]["ack"] == 9

    def test_a_broadcast_reaches_every_client(self) -> None:
        with self.serving() as serving:
            peers = [serving.connect() for _ in range(5)]
            for peer in peers:
                peer.call("echo")  # it is connected
            assert serving.kernel.broadcast({"type": "news", "payload": [1]}) == 5
            assert [peer.receive()["payload"] for peer in peers] == [[1]] * 5

    def test_leaving_and_closing_take_a_member_out_of_the_room(self) -> None:
        with self.serving() as serving:
            leaving, closing, dying, staying = (serving.connect() for _ in range(4))
            for peer in (leaving, closing, dying, staying):
                peer.call("join", room="lobby")
            leaving.call("leave", room="lobby")
            closing.client.close()
            dying.client.kill()
            wait_until(lambda: staying.call("members", room="lobby") == [staying.call("who")["id"]])

    def test_too_many_rooms_are_refused(self) -> None:
        with self.serving(limits=Limits(rooms_per_client=3)) as serving:
            peer = serving.connect()
            for number in range(3):
                peer.call("join", room=f"room {number}")
            assert peer.refused("join", room="one more")[0] == "too_many_rooms"
            assert peer.refused("join", room="")[0] == "bad_room"
            assert peer.refused("join", room="x" * 256)[0] == "bad_room"

    def test_presence_shows_who_is_here_and_what_they_say_of_themselves(self) -> None:
        with self.serving() as serving:
            ann, bob = serving.connect(), serving.connect()
            ann.call("presence:update", {"name": "Ann"})
            ann.call("join", room="lobby")
            (entry,) = bob.call("presence:list", room="lobby")
            assert entry["metadata"] == {"name": "Ann"}
            assert entry["rooms"] == ["lobby"]
            assert len(bob.call("presence:list")) == 2
            ann.client.close()
            wait_until(lambda: len(bob.call("presence:list")) == 1)
            assert bob.call("presence:list", room="lobby") == []

    # From one client to another, and waiting for them ---------------------------------------------------

    def test_a_message_is_sent_to_its_target(self) -> None:
        with self.serving() as serving:
            ann, bob = serving.connect(), serving.connect()
            ann.call("tell", "psst", target=bob.call("who")["id"])
            assert bob.receive_until("told")["payload"] == "psst"
            assert ann.refused("tell", target="nobody")[0] == "unknown_client"

    def test_a_handler_can_call_another_client_and_gets_its_answer(self) -> None:
        with self.serving() as serving:
            ann, bob = serving.connect(), serving.connect()
            ann.send("ask", {"a": 1}, target=bob.call("who")["id"], ack=1)
            question = bob.receive_until("question")
            assert question["payload"] == {"a": 1}
            bob.answer(question, [1, 2])
            assert ann.outcome_of(1) == [1, 2]

    def test_a_client_can_refuse_to_answer(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            peer.send("ask and tell how it failed", ack=1)
            question = peer.receive()
            peer.send("system:error", {"ack": question["ack"], "message": "no", "code": "busy"})
            assert peer.outcome_of(1) == ["busy", "no"]

    def test_a_call_that_is_not_answered_times_out(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            assert peer.refused("ask briefly")[0] == "timeout"
            peer.answer(peer.receive_until("question"), "too late")
            assert peer.call("echo", 1) == 1
            assert serving.counter("late_answers") == 1

    def test_a_handler_can_call_its_own_client_though_more_messages_wait_than_the_inbox_takes(self) -> None:
        with self.serving(limits=Limits(inbox=4)) as serving:
            peer, other = serving.connect(), serving.connect()
            peer.send("ask once released", ack="asked")
            for number in range(60):
                peer.send("record", number)
            other.call("release")
            question = peer.receive()
            assert question["type"] == "question", question
            peer.answer(question, "the answer")
            assert peer.receive()["payload"] == {"ack": "asked", "result": "the answer"}
            assert peer.call("recorded") == list(range(60))

    def test_a_handler_can_wait_for_messages_of_its_client_though_others_wait_in_front(self) -> None:
        with self.serving(limits=Limits(inbox=4)) as serving:
            peer, other = serving.connect(), serving.connect()
            peer.send("converse once released", ack="talk")
            for number in range(60):
                peer.send("record", number)
            peer.send("name", "Ann")
            other.call("release")
            assert peer.receive()["payload"] == {"message": "who are you?"}
            assert peer.receive()["payload"] == {"message": "how old are you, Ann?"}
            peer.send("age", 30)
            assert peer.receive()["payload"] == {"ack": "talk", "result": ["Ann", 30]}
            assert peer.call("recorded") == list(range(60))

    def test_a_handler_that_waits_ends_when_its_client_goes(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            id_ = peer.call("who")["id"]
            peer.send("converse", ack=1)
            peer.receive_until("system:reply")
            peer.client.kill()
            wait_until(lambda: serving.journal_of(id_)[1:] == ["broke off", "disconnected"])

    # Coming and going --------------------------------------------------------------------------------

    def test_lifecycle_events_frame_the_messages_of_a_client(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            peer.send("log this", "first")
            id_ = peer.call("log this", "second")
            peer.client.close()
            wait_until(lambda: id_ in serving.ends)
            assert serving.journal_of(id_) == ["connected", "first", "second", "disconnected"]

    def test_messages_sent_just_before_a_clean_close_are_handled(self) -> None:
        with self.serving() as serving:
            peer = serving.connect()
            id_ = peer.call("log this", "first")
            for number in range(100):
                peer.send("log this", number)
            peer.client.close()
            wait_until(lambda: id_ in serving.ends)
            assert serving.journal_of(id_) == ["connected", "first", *range(100), "disconnected"]

    def test_a_clean_close_and_a_loss_are_told_apart(self) -> None:
        with self.serving() as serving:
            closing, dying = serving.connect(), serving.connect()
            ids = [peer.call("join", room="lobby") or peer.call("who")["id"] for peer in (closing, dying)]
            closing.client.close()
            dying.client.kill()
            wait_until(lambda: len(serving.ends) == 2)
            closed, lost = (serving.ends[id_] for id_ in ids)
            assert closed["code"] in (1000, 1005), closed
            assert lost["code"] == 1006, lost
            assert closed["rooms"] == lost["rooms"] == ["lobby"]
            assert isinstance(closed["reason"], str)

    def test_disconnect_closes_with_code_and_reason_after_what_waits(self) -> None:
        with self.serving() as serving:
            peer, other = serving.connect(), serving.connect()
            id_ = peer.call("who")["id"]
            for number in range(50):
                serving.kernel.send(id_, {"type": "news", "payload": number})
            serving.kernel.disconnect(id_, 4503, reason="rules")
            messages, closed = peer.received_before_close()
            assert [message["payload"] for message in messages] == list(range(50))
            assert (closed.code, closed.reason) == (4503, "rules")
            assert other.refused("tell", target=id_)[0] == "unknown_client"

    def test_a_hundred_clients_come_and_go_and_nothing_is_left(self) -> None:
        with self.serving() as serving:
            for number in range(100):
                peer = serving.connect()
                peer.call("join", room=f"room {number % 7}")
                if number % 2:
                    peer.client.kill()
                else:
                    peer.client.close()
            wait_until(lambda: serving.kernel.stats()["clients"] == 0)
            wait_until(lambda: serving.transport.closing() == 0)
            stats = serving.kernel.stats()
            assert stats["rooms"] == 0
            assert stats["counters"]["connected"] == stats["counters"]["disconnected"] == 100
            assert len(serving.kernel.presence.list()) == 0

    def test_stopping_tells_clients_to_come_back_and_leaves_nothing(self) -> None:
        before = living_greenlets()
        with self.serving() as serving:
            peers = [serving.connect() for _ in range(3)]
            for peer in peers:
                peer.call("join", room="lobby")
            peers[0].send("wait for stop", ack="late")
            peers[0].receive_until("system:reply")
            stopping = gevent.spawn(serving.kernel.stop, 5)
            answers, closed = peers[0].received_before_close()
            assert [answer["payload"] for answer in answers] == [{"ack": "late", "result": "finished"}]
            for end in (closed, peers[1].received_before_close()[1], peers[2].received_before_close()[1]):
                assert end.code == 4013, end
                assert end.reason.startswith("retry_after="), end
            for peer in peers:
                peer.client.close()
            stopping.get()
            assert not serving.kernel.running
            assert serving.kernel.stats()["clients"] == serving.kernel.stats()["rooms"] == 0
            assert serving.transport.closing() == 0
        peers.clear()
        wait_until(lambda: len(living_greenlets()) <= len(before))

    def test_a_kernel_can_be_started_again(self) -> None:
        with self.serving() as serving:
            first = serving.connect()
            assert first.call("echo", 1) == 1
            first.client.close()
            serving.kernel.stop(5)
            serving.kernel.start()
            assert serving.connect().call("echo", 2) == 2
