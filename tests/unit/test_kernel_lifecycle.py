"""Starting, stopping, and who comes and goes in between."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

from realtime import ConfigurationError, ConnectionClosed, Limits, NotRunning, RealtimeKernel, TimedOut, Transport
from realtime.testing import KernelTest, MemoryTransport
from realtime.testing.peers import wait_until

PATIENCE = 60.0


class Scripted(Transport):
    """A transport that notes what is asked of it, and fails where told to."""

    def __init__(self, notes: list[str], name: str, fails: str = "") -> None:
        self.notes, self.name, self.fails = notes, name, fails

    def _do(self, what: str) -> None:
        self.notes.append(f"{self.name} {what}")
        if self.fails == what:
            raise ConfigurationError(f"{self.name} cannot {what}")

    def on_start(self) -> None:
        self._do("start")

    def on_drain(self) -> None:
        self._do("drain")

    def on_stop(self) -> None:
        self._do("stop")


# Events ---------------------------------------------------------------------------------------


def test_connected_and_disconnected_frame_a_clients_messages(kernel_test: KernelTest) -> None:
    seen: list[tuple[str, Any]] = []
    for event in ("client:connected", "chat", "client:disconnected"):
        kernel_test.kernel.on(event, lambda message, context, toolkit: seen.append((message.type, message.payload)))
    client = kernel_test.connect()
    client.send({"type": "chat", "payload": 1})
    client.close(4000, "had enough")
    kernel_test.settle()
    assert seen == [
        ("client:connected", {"transport": "memory"}),
        ("chat", 1),
        ("client:disconnected", {"reason": "had enough", "code": 4000, "rooms": []}),
    ]


def test_in_client_connected_the_client_can_be_greeted_and_put_into_rooms(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("client:connected")
    def greet(message: Any, context: Any, toolkit: Any) -> None:
        toolkit.rooms.join("lobby")
        toolkit.presence.update({"greeted": True})
        toolkit.reply("welcome")

    client = kernel_test.connect()
    assert client.receive()["payload"] == {"message": "welcome"}
    assert kernel_test.kernel.presence.get(client.id)["rooms"] == ["lobby"]
    assert kernel_test.kernel.presence.get(client.id)["metadata"] == {"greeted": True}


def test_in_client_disconnected_the_client_is_gone_but_its_rooms_are_known(kernel_test: KernelTest) -> None:
    seen: list[Any] = []

    @kernel_test.kernel.on("client:disconnected")
    def gone(message: Any, context: Any, toolkit: Any) -> None:
        with pytest.raises(ConnectionClosed):
            toolkit.reply("too late")
        seen.extend(
            [context.rooms, message.payload["rooms"], toolkit.rooms.join("attic"), toolkit.rooms.members("lobby")]
        )
        for room in context.rooms:
            toolkit.rooms.broadcast({"type": "left", "payload": context.id}, room)

    leaver, stayer = kernel_test.connect(), kernel_test.connect()
    for client in (leaver, stayer):
        kernel_test.kernel.rooms.join("lobby", client.id)
    leaver.kill()
    assert stayer.receive()["payload"] == leaver.id
    assert seen == [["lobby"], ["lobby"], False, [stayer.id]]


def test_a_failing_lifecycle_handler_harms_nobody(kernel_test: KernelTest, caplog: pytest.LogCaptureFixture) -> None:
    @kernel_test.kernel.on("client:connected")
    def failing(message: Any, context: Any, toolkit: Any) -> None:
        raise RuntimeError("as it happens")

    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    assert kernel_test.connect().call("echo", 1) == 1
    assert "as it happens" in caplog.text


def test_two_thousand_clients_come_and_go_and_leave_nothing(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("join", lambda message, context, toolkit: toolkit.rooms.join(message.room))
    for number in range(2_000):
        client = kernel_test.connect()
        client.call("join", room=f"room {number % 10}")
        if number % 2:
            client.kill()
        else:
            client.close()
    kernel_test.settle()
    stats = kernel_test.kernel.stats()
    assert (stats["clients"], stats["rooms"], stats["busy_workers"]) == (0, 0, 0)
    assert stats["workers"] <= 2
    assert stats["counters"]["connected"] == stats["counters"]["disconnected"] == 2_000
    assert kernel_test.kernel.presence.list() == []
    assert kernel_test.transport.stats()["connections"] == 0


# Starting -------------------------------------------------------------------------------------


def test_transports_start_in_order_drain_and_stop() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel([Scripted(notes, "a"), Scripted(notes, "b")])
    kernel.start()
    assert kernel.running
    assert notes == ["a start", "b start"]
    kernel.stop()
    assert not kernel.running
    assert notes[2:] == ["a drain", "b drain", "a stop", "b stop"]


def test_if_a_transport_cannot_start_the_others_are_stopped_again() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel([Scripted(notes, "a"), Scripted(notes, "b", fails="start"), Scripted(notes, "c")])
    with pytest.raises(ConfigurationError, match="b cannot start"):
        kernel.start()
    assert notes == ["a start", "b start", "b stop", "a stop"]
    assert not kernel.running


@pytest.mark.parametrize("fails", ["drain", "stop"])
def test_a_transport_that_fails_to_stop_keeps_no_other_from_stopping(
    fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []
    kernel = RealtimeKernel([Scripted(notes, "a", fails=fails), Scripted(notes, "b")])
    kernel.start()
    kernel.stop()
    assert notes[2:] == ["a drain", "b drain", "a stop", "b stop"]
    assert f"a cannot {fails}" in caplog.text


def test_starting_twice_is_refused_and_stopping_twice_is_not() -> None:
    kernel = RealtimeKernel()
    kernel.stop()
    kernel.start()
    with pytest.raises(ConfigurationError, match="running already"):
        kernel.start()
    kernel.stop()
    kernel.stop()


def test_a_transport_added_while_running_is_started_at_once() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel()
    kernel.start()
    assert kernel.use_transport(Scripted(notes, "late")) is kernel
    assert notes == ["late start"]
    assert [transport.name for transport in kernel.transports] == ["late"]
    kernel.stop()


def test_a_kernel_that_does_not_run_says_so() -> None:
    kernel = RealtimeKernel([transport := MemoryTransport()])
    with pytest.raises(NotRunning, match="not started"):
        transport.connect()
    with pytest.raises(NotRunning, match=r"call start\(\) or run\(\) first"):
        _ = kernel.hub.workers
    assert kernel.stats()["running"] is False
    assert kernel.broadcast({"type": "news"}) == 0


def test_a_transport_without_kernel_says_so() -> None:
    with pytest.raises(NotRunning, match="belongs to no kernel"):
        _ = MemoryTransport().hub


# Stopping -------------------------------------------------------------------------------------


def test_stopping_tells_every_client_to_come_back(kernel_test: KernelTest) -> None:
    clients = [kernel_test.connect(codec=codec) for codec in ("json", "msgpack")]
    kernel_test.kernel.stop(1)
    for client in clients:
        assert client.wait_closed() == 4013
        assert 0 <= float(client.close_reason.removeprefix("retry_after=")) <= 5
    with pytest.raises(NotRunning):
        kernel_test.connect()


def test_stopping_lets_handlers_finish_and_answers_arrive(kernel_test: KernelTest) -> None:
    go = Event()
    kernel_test.kernel.on("work", lambda message, context, toolkit: go.wait(PATIENCE))
    client = kernel_test.connect()
    client.send({"type": "work", "ack": 1})
    gevent.sleep(0)
    stopping = gevent.spawn(kernel_test.kernel.stop, PATIENCE)
    gevent.sleep(0)
    with pytest.raises(NotRunning):
        kernel_test.connect()
    go.set()
    stopping.get(timeout=PATIENCE)
    assert client.receive()["payload"] == {"ack": 1, "result": True}
    assert client.wait_closed() == 4013


def test_a_handler_that_never_ends_is_ended_when_the_time_is_up(kernel_test: KernelTest) -> None:
    notes: list[str] = []
    entered = Event()

    @kernel_test.kernel.on("work")
    def work(message: Any, context: Any, toolkit: Any) -> None:
        try:
            entered.set()
            Event().wait()
        finally:
            notes.append("cleaned up")

    client = kernel_test.connect()
    client.send({"type": "work", "ack": 1})
    assert entered.wait(PATIENCE)
    kernel_test.kernel.stop(0.02)
    assert notes == ["cleaned up"]
    assert client.wait_closed() == 4013


def test_a_handler_that_waits_for_its_client_does_not_delay_the_stop(kernel_test: KernelTest) -> None:
    notes: list[Any] = []

    @kernel_test.kernel.on("wait")
    def wait(message: Any, context: Any, toolkit: Any) -> None:
        try:
            toolkit.wait_for("never")
        except ConnectionClosed as error:
            notes.append(error.code)
            raise

    client = kernel_test.connect()
    client.send({"type": "wait"})
    gevent.sleep(0)
    kernel_test.kernel.stop(60)
    assert notes == [4013]


def test_a_handler_can_stop_the_kernel(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("stop", lambda message, context, toolkit: kernel_test.kernel.stop(1))
    client = kernel_test.connect()
    client.send({"type": "stop"})
    assert client.wait_closed() == 4013
    deadline = time.monotonic() + PATIENCE
    while kernel_test.kernel.hub._workers is not None and time.monotonic() < deadline:
        gevent.sleep(0)
    assert not kernel_test.kernel.running


def test_a_client_that_does_not_read_does_not_delay_the_stop(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    client.stop_reading()
    kernel_test.kernel.send(client.id, {"type": "news"})
    kernel_test.kernel.stop(60)
    assert client.wait_closed() == 1006
    assert client.received == []


def test_what_a_handler_sends_after_the_stop_is_harmless(kernel_test: KernelTest) -> None:
    toolkits: list[Any] = []
    kernel_test.kernel.on("keep", lambda message, context, toolkit: toolkits.append(toolkit))
    kernel_test.connect().call("keep")
    kernel_test.kernel.stop(1)
    with pytest.raises(ConnectionClosed):
        toolkits[0].reply("too late")
    assert toolkits[0].broadcast({"type": "news"}) == 0
    assert toolkits[0].rooms.join("lobby") is False


def test_disconnect_closes_with_a_code_and_reason_after_what_waits(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    kernel_test.kernel.send(client.id, {"type": "last"})
    kernel_test.kernel.disconnect(client.id, 4503, reason="rules")
    assert client.receive()["type"] == "last"
    with pytest.raises(ConnectionClosed, match="4503 rules"):
        client.receive()
    kernel_test.kernel.disconnect((other := kernel_test.connect()).id)
    assert other.wait_closed() == 4500


@pytest.mark.parametrize("code", [0, 999, 1002, 1005, 1006, 1009, 1015, 2999, 5000, "1000", None])
def test_a_code_that_no_close_frame_may_carry_is_refused(kernel_test: KernelTest, code: Any) -> None:
    client = kernel_test.connect()
    with pytest.raises(ValueError, match="must be 1000, 1001, 1008, 1011 or 3000 to 4999"):
        kernel_test.kernel.disconnect(client.id, code)
    assert not client.closed


def test_a_reason_longer_than_a_control_frame_is_refused(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    with pytest.raises(ValueError, match="123 bytes"):
        kernel_test.kernel.disconnect(client.id, 4000, reason="ü" * 62)
    kernel_test.kernel.disconnect(client.id, 4000, reason="ü" * 61)
    assert client.wait_closed() == 4000


# Numbers --------------------------------------------------------------------------------------


def test_stats_name_everything(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("join", lambda message, context, toolkit: toolkit.rooms.join(message.room))
    client = kernel_test.connect()
    client.call("join", room="lobby")
    stats = kernel_test.kernel.stats()
    assert stats["running"] is True
    assert (stats["clients"], stats["rooms"], stats["workers"], stats["busy_workers"]) == (1, 1, 1, 0)
    assert stats["transports"] == [{"name": "memory", "connections": 1}]
    assert (stats["counters"]["connected"], stats["counters"]["received"], stats["counters"]["sent"]) == (1, 1, 1)


def test_hello_is_welcomed_with_the_clients_id_and_the_limits(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    client.send({"type": "system:hello", "ack": 1})
    payload = client.receive_until("system:welcome")["payload"]
    assert payload["id"] == client.id
    assert payload["codec"] == "json"
    assert payload["heartbeat"] is None
    assert payload["limits"] == {"message_size": 1_000_000, "rooms_per_client": 128, "room_name": 255}
    assert client.receive()["payload"] == {"ack": 1}


# The watchdog -----------------------------------------------------------------------------------


def test_a_handler_that_holds_the_loop_is_named_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = RealtimeKernel(limits=Limits(blocked_loop=0.02))
    said: list[str] = []
    monkeypatch.setattr("realtime.watchdog.log.warning", lambda text, *values: said.append(text % values))

    @kernel.on("compute")
    def compute_pi_the_hard_way(message: Any, context: Any, toolkit: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not any("compute_pi_the_hard_way" in text for text in said) and time.monotonic() < deadline:
            pass
        time.sleep(0.1)  # which is the same hold still

    def held_by(whom: str) -> list[str]:
        return [text for text in said if "event loop is held" in text and whom in text]

    with KernelTest(kernel) as kernel_test:
        kernel_test.connect().call("compute", timeout=2 * PATIENCE)
        # a machine that gives us no time may make others hold the loop too
        wait_until(lambda: kernel.stats()["blocked_loops"] == len(held_by("")))
    (warning,) = held_by("compute_pi_the_hard_way")
    assert "test_kernel_lifecycle.py" in warning


def test_a_loop_that_only_waits_is_not_held() -> None:
    kernel = RealtimeKernel(limits=Limits(blocked_loop=0.5))  # a busy machine may hold us for a tenth of that
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        with pytest.raises(TimedOut):
            client.receive(timeout=0.01)
        before = kernel.stats()["blocked_loops"]
        with pytest.raises(TimedOut):
            client.receive(timeout=0.8)
        assert kernel.stats()["blocked_loops"] == before


def test_who_asks_is_told_of_a_departure_at_once_whatever_the_clients_handlers_do(kernel_test: KernelTest) -> None:
    kernel = kernel_test.kernel
    gone: list[Any] = []
    go_on = gevent.event.Event()
    kernel.hub.on_gone.append(lambda context, code: gone.append((context.id, context.rooms, code)))
    kernel.on("busy", lambda message, context, toolkit: go_on.wait())
    client = kernel_test.connect()
    kernel.rooms.join("tea", client.id)
    client.send({"type": "busy"})
    client.kill()
    assert gone == [(client.id, ["tea"], 1006)]
    go_on.set()
