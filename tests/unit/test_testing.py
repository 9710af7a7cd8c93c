"""The clients without sockets that applications test with."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from realtime import (
    CallFailed,
    ConfigurationError,
    ConnectionClosed,
    NotRunning,
    RealtimeKernel,
    TimedOut,
    WebSocketTransport,
)
from realtime.testing import KernelTest, MemoryTransport


@pytest.fixture
def kernel() -> RealtimeKernel:
    kernel = RealtimeKernel()
    kernel.on("echo", lambda message, context, toolkit: message.payload)
    kernel.on("reply", lambda message, context, toolkit: toolkit.reply({"type": "news", "payload": message.payload}))
    return kernel


def test_the_kernels_own_transports_stay_out_of_it_and_come_back(kernel: RealtimeKernel) -> None:
    own = WebSocketTransport(port=1)  # which could not be bound
    kernel.use_transport(own)
    for _ in range(2):
        with KernelTest(kernel) as kernel_test:
            assert kernel.transports == (kernel_test.transport,)
            assert kernel_test.connect().call("echo", 1) == 1
        assert kernel.transports == (own,)
        assert not kernel.running


def test_a_kernel_that_runs_already_is_left_alone(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        with pytest.raises(ConfigurationError, match="running already"):
            KernelTest(kernel).start()
        assert kernel.transports == (kernel_test.transport,)
        assert kernel_test.connect().call("echo", 1) == 1


def test_the_kernel_is_stopped_though_the_test_fails(kernel: RealtimeKernel) -> None:
    with pytest.raises(ZeroDivisionError), KernelTest(kernel):
        raise ZeroDivisionError
    assert not kernel.running


def test_a_memory_transport_can_stand_beside_others(kernel: RealtimeKernel) -> None:
    transport = MemoryTransport()
    kernel.use_transport(transport)
    kernel.start()
    assert transport.connect().call("echo", 1) == 1
    kernel.stop()


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_what_is_sent_goes_through_the_codec(kernel: RealtimeKernel, codec: str) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect(codec=codec)
        value = {"a": [1, None, True, 1.5, "ü"]}
        assert client.call("echo", value) == value
        client.send(b"\xc1 garbage")
        assert client.receive()["payload"]["code"] == "bad_message"


def test_text_is_sent_as_it_is(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.send('{"type": "echo", "payload": 7, "ack": 1}')
        assert client.receive()["payload"] == {"ack": 1, "result": 7}
        client.send('{"type": "\ud800"}')
        assert client.receive()["payload"]["code"] == "bad_message"


def test_an_unknown_codec_is_refused(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test, pytest.raises(ConfigurationError, match="json, msgpack"):
        kernel_test.connect(codec="xml")


def test_receive_times_out_and_says_what_it_waited_for(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        with pytest.raises(TimedOut, match=r"no message within 0\.001 s"):
            client.receive(timeout=0.001)
        client.send({"type": "reply", "payload": 1})
        with pytest.raises(TimedOut, match=r"no 'other' within .* what came: .*news"):
            client.receive_until("other", timeout=0.05)
        with pytest.raises(TimedOut, match=r"no answer within .* what came: nothing"):
            client._take_about(7, ("system:ack",), 0.001)


def test_receive_until_passes_over_what_comes_before(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        for number in range(3):
            client.send({"type": "echo", "ack": number})
        client.send({"type": "reply", "payload": "last"})
        assert client.receive_until("news")["payload"] == "last"
        assert client.received == []


def test_call_leaves_other_messages_where_they_are(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.send({"type": "reply", "payload": 1})
        assert client.call("echo", 2) == 2
        assert client.receive()["payload"] == 1


def test_call_raises_what_the_server_answered(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        with pytest.raises(CallFailed) as caught:
            kernel_test.connect().call("nobody")
        assert caught.value.code == "unknown_type"


def test_settle_waits_until_all_has_arrived_and_then_nothing_more_comes(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        for number in range(50):
            client.send({"type": "reply", "payload": number})
        kernel_test.settle()
        assert [message["payload"] for message in client.received] == list(range(50))


def test_settle_says_that_a_handler_still_works(kernel: RealtimeKernel) -> None:
    kernel.on("wait", lambda message, context, toolkit: toolkit.wait_for("never"))
    with KernelTest(kernel) as kernel_test:
        kernel_test.connect().send({"type": "wait"})
        with pytest.raises(TimedOut, match="1 handler"):
            kernel_test.settle(timeout=0.01)


def test_a_closed_client_gives_out_what_came_before_and_then_says_so(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.send({"type": "reply", "payload": 1})
        kernel_test.settle()
        client.close(4000, "enough")
        assert client.closed
        assert (client.close_code, client.close_reason) == (4000, "enough")
        assert client.receive()["payload"] == 1
        for attempt in (client.receive, lambda: client.send({"type": "echo"}), lambda: client.call("echo")):
            with pytest.raises(ConnectionClosed, match="4000 enough"):
                attempt()
        client.close()
        client.kill()
        assert client.close_code == 4000
        assert "closed with 4000" in repr(client)


def test_a_client_that_stops_reading_gets_everything_when_it_resumes(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.stop_reading()
        for number in range(10):
            client.send({"type": "reply", "payload": number})
        kernel_test.settle()
        assert client.received == []
        client.resume_reading()
        assert [client.receive()["payload"] for _ in range(10)] == list(range(10))


def test_a_client_whose_test_never_takes_anything_is_a_slow_reader_at_last(
    kernel: RealtimeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.transports.memory_client.RECEIVE_BUFFER", 10_000)
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        for number in range(20):
            kernel.send(client.id, {"type": "news", "payload": [number, "x" * 1000]})
        kernel_test.settle()
        assert len(client.received) == 10
        assert [client.receive()["payload"][0] for _ in range(20)] == list(range(20))


def test_two_greenlets_can_use_one_client(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        calls = [gevent.spawn(client.call, "echo", number) for number in range(20)]
        assert [call.get(timeout=60) for call in calls] == list(range(20))


def test_killing_drops_and_counts_what_was_on_its_way(kernel: RealtimeKernel) -> None:
    ends: list[Any] = []
    kernel.on("client:disconnected", lambda message, context, toolkit: ends.append(message.payload))
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.stop_reading()
        kernel.send(client.id, {"type": "news"})
        client.kill()
        kernel_test.settle()
        assert (client.close_code, client.received) == (1006, [])
        assert ends == [{"reason": "connection lost", "code": 1006, "rooms": []}]
        assert kernel.stats()["counters"]["dropped_undelivered"] == 1


def test_a_stopped_kernel_takes_no_clients(kernel: RealtimeKernel) -> None:
    with KernelTest(kernel) as kernel_test:
        pass
    with pytest.raises(NotRunning):
        kernel_test.connect()
