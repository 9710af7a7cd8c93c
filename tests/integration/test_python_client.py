"""The Python client against a server of ours, in plain threads: this process is not monkey-patched."""

from __future__ import annotations

import math
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports
from programs import PATIENCE, Program
from python_client_rig import QUICK, States, start_server
from requirements import module
from webrtc_rig import Proxy

from realtime import (
    BadMessage,
    CallFailed,
    CloseCode,
    ConfigurationError,
    ConnectionClosed,
    MessageTooBig,
    QueueFull,
    Reject,
    TimedOut,
)
from realtime.client import Client, ClientLimits, ClientMessage
from realtime.config import MiB
from realtime.errors import HandshakeError

Make = Callable[..., Client]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a server listens for all tests."""
    program, found = start_server(tmp_path_factory.mktemp("server"))
    with program:
        yield found
        program.stop()


def url_of(port: int) -> str:
    return f"ws://127.0.0.1:{port}/realtime"


@pytest.fixture
def make(port: int) -> Iterator[Make]:
    """Make clients, of the server for all tests unless told otherwise, that are closed after the test."""
    clients: list[Client] = []

    def make_client(url: str = url_of(port), **options: Any) -> Client:
        clients.append(Client(url, **{"timeout": PATIENCE, "backoff": QUICK, **options}))
        return clients[-1]

    yield make_client
    for client in clients:
        client.close()
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("realtime-client")]
    assert threads == []


@pytest.fixture(params=["json", "msgpack"])
def client(make: Make, request: pytest.FixtureRequest) -> Client:
    """A client that is connected, in each of the two codecs."""
    made = make(msgpack=request.param == "msgpack")
    made.connect()
    return made


def code_of(function: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(CallFailed) as caught:
        function(*args, **options)
    return caught.value.code


# Messages -------------------------------------------------------------------------------------------------------


def test_the_welcome_tells_the_id_and_what_the_server_bounds(make: Make) -> None:
    client = make(hello={"version": 1})
    assert (client.state, client.id) == ("closed", None)
    with client as same:
        assert same is client
        assert (client.state, str(client.state)) == ("open", "open")
        assert client.id == client.call("who")[0]
        assert client.heartbeat is not None
        assert (client.heartbeat.interval, client.heartbeat.timeout) == (25, 10)
        assert client.server_limits is not None
        assert client.server_limits["message_size"] == 8 * MiB
        client.connect()  # is open already
    assert client.state == "closed"
    assert client.stats()["connects"] == 1


def test_a_call_returns_what_the_handler_returned(client: Client) -> None:
    deep = {"deep": [1, "grüße", None, 2.5, True]}
    assert client.call("echo", deep, room="tea", target=["a", "b"]) == {
        "payload": deep,
        "room": "tea",
        "target": ["a", "b"],
    }
    assert client.call("echo", target="a") == {"payload": None, "room": None, "target": "a"}


def test_bytes_pass_in_messagepack(make: Make) -> None:
    with make(msgpack=True) as client:
        assert client.call("payload", b"\0\xff") == b"\0\xff"


def test_a_call_that_is_refused_raises_with_the_servers_code(client: Client) -> None:
    with pytest.raises(CallFailed, match="not today") as caught:
        client.call("refuse", "too_early")
    assert (caught.value.code, caught.value.message, caught.value.details) == ("too_early", "not today", None)
    assert code_of(client.call, "nobody:knows") == "unknown_type"
    assert code_of(client.call, "fail") == "internal_error"


def test_a_call_without_an_answer_times_out_and_the_next_is_answered(make: Make, port: int) -> None:
    with make() as client, make() as other:
        with pytest.raises(TimedOut, match=r"no answer within 0\.05 s"):
            client.call("hang", timeout=0.05)
        assert other.call("payload", 1) == 1
        client.send("go on")
        assert client.call("payload", 2) == 2


def test_many_threads_share_a_client_and_each_gets_its_own_answers(client: Client) -> None:
    wrong: list[Any] = []

    def ask(who: int) -> None:
        for number in range(50):
            question = [who, number, "x" * number * 100]
            if client.call("payload", question) != question:
                wrong.append(question)

    threads = [threading.Thread(target=ask, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_messages_of_megabytes_pass_both_ways(make: Make) -> None:
    limits = ClientLimits(message_size=8 * MiB)
    text = "grüße " * (5 * MiB // 8)
    with make(limits=limits) as client, make(limits=limits, msgpack=True) as packed:
        assert client.call("payload", text) == text
        assert packed.call("payload", bytes(range(256)) * (5 * MiB // 256)) == bytes(range(256)) * (5 * MiB // 256)


def test_what_cannot_be_sent_is_refused_where_it_is_written(make: Make) -> None:
    with make() as client:
        with pytest.raises(BadMessage, match="cannot be sent as JSON"):
            client.send("chat", object())
        with pytest.raises(BadMessage, match="type="):
            client.call("")
        with pytest.raises(BadMessage, match="target="):
            client.send("chat", target=[1])  # type: ignore[list-item]
        with pytest.raises(BadMessage, match="room="):
            next(client.stream("chat", room=""))
        with pytest.raises(MessageTooBig, match="takes messages of"):
            client.send("chat", "x" * 9 * MiB)
        with pytest.raises(ConfigurationError, match="timeout=0"):
            client.call("payload", timeout=0)
        assert client.call("payload", 1) == 1


# Handlers -------------------------------------------------------------------------------------------------------


def test_handlers_hear_their_type_in_order_and_a_star_hears_everything(client: Client) -> None:
    heard: list[Any] = []
    done = threading.Event()

    @client.on("told")
    def told(message: ClientMessage) -> None:
        heard.append(message.payload)

    @client.on("*")
    def star(message: ClientMessage) -> None:
        heard.append(message.type)
        if message.type == "system:ack":
            done.set()

    assert told.__name__ == "told"
    client.call("tell:me", {"type": "told", "times": 3})
    assert done.wait(PATIENCE)
    client.off("told", told)
    assert heard == [0, "told", 1, "told", 2, "told", "system:ack"]
    with pytest.raises(ConfigurationError, match="was not registered"):
        client.off("told", told)


def test_who_listens_once_it_is_connected_does_not_hear_the_welcome(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    heard: list[str] = []
    done = threading.Event()
    has = client._handlers.has

    def has_after_a_while(type: str) -> bool:
        if type == "system:welcome":
            time.sleep(0.1)  # the thread that reads has no turn just now
        return has(type)

    monkeypatch.setattr(client._handlers, "has", has_after_a_while)
    client.connect()
    client.on("*", lambda message: (heard.append(message.type), done.set()))
    client.call("who")
    assert done.wait(PATIENCE)
    assert heard == ["system:ack"]


def test_a_handler_that_fails_is_logged_and_harms_no_other(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[int] = []
    done = threading.Event()
    with make() as client:

        @client.on("told")
        def fails(message: ClientMessage) -> None:
            if message.payload:
                raise SystemExit("as if it could end the program")
            raise ValueError("the first time")

        @client.on("told")
        def hears(message: ClientMessage) -> None:
            heard.append(message.payload)
            if message.payload == 1:
                done.set()

        client.send("tell:me", {"type": "told", "times": 2})
        assert done.wait(PATIENCE)
    assert heard == [0, 1]
    assert [record.getMessage().split(" of ")[1] for record in caplog.records] == ["'told' failed"] * 2


def test_a_handler_may_call_stream_and_wait_as_answers_go_past_the_messages_that_wait(client: Client) -> None:
    results: list[Any] = []
    done = threading.Event()

    @client.on("told")
    def told(message: ClientMessage) -> None:
        results.append(client.call("payload", message.payload))
        results.append(list(client.stream("count", 2)))
        client.send("tell:me", {"type": "inside", "times": 1})
        results.append(client.wait_for("inside").type)
        if message.payload == 1:
            done.set()

    client.send("tell:me", {"type": "told", "times": 2})
    assert done.wait(PATIENCE)
    assert results == [0, [0, 1], "inside", 1, [0, 1], "inside"]


def test_a_handler_may_close_its_client(make: Make) -> None:
    client = make()
    states = States(client)
    client.on("told", lambda message: client.close(3001, "enough"))
    client.connect()
    client.send("tell:me", {"type": "told", "times": 1})
    assert states.next("closed") == {"name": "closed", "code": 3001, "reason": "enough"}


def test_a_slow_handler_has_the_server_wait_and_loses_nothing(make: Make) -> None:
    heard: list[int] = []
    going, done = threading.Event(), threading.Event()
    with make(limits=ClientLimits(inbox=10)) as client:

        @client.on("told")
        def told(message: ClientMessage) -> None:
            assert going.wait(PATIENCE)
            heard.append(message.payload)
            if message.payload == 19_999:
                done.set()

        asked = threading.Thread(target=client.send, args=("tell:me", {"type": "told", "times": 20_000}))
        asked.start()
        asked.join()
        going.set()
        assert done.wait(PATIENCE)
    assert heard == list(range(20_000))


def test_a_handler_whose_answer_cannot_come_in_is_told_so(make: Make) -> None:
    failures: list[Exception] = []
    done = threading.Event()
    with make(limits=ClientLimits(inbox=10)) as client, make() as other:

        @client.on("told")
        def told(message: ClientMessage) -> None:
            if message.payload == 0:
                for wait in (lambda: client.call("hang"), lambda: client.wait_for("never"), lambda: next(forever)):
                    try:
                        wait()
                    except QueueFull as error:
                        failures.append(error)
            if message.payload == 4999:
                done.set()

        forever = client.stream("hang")
        client.send("tell:me", {"type": "told", "times": 5000})
        assert done.wait(PATIENCE)
        assert [str(failure).endswith("no answer can come in") for failure in failures] == [True] * 3
        assert other.call("payload", 1) == 1


def test_questions_of_the_server_are_answered_with_results_and_refusals(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.answer("double", lambda question: question.payload * 2)
    client.answer("nothing", lambda question: None)
    client.answer("through", lambda question: client.call("payload", "asked back"))

    @client.answer("refuse")
    def refuse(question: ClientMessage) -> None:
        raise Reject("not me", code="shy")

    @client.answer("break")
    def breaks(question: ClientMessage) -> None:
        raise ValueError("a secret")

    client.answer("unsendable", lambda question: object())
    assert client.call("ask:me", "double") == 40
    assert client.call("ask:me", "nothing") is None
    with pytest.raises(CallFailed, match="not me") as caught:
        client.call("ask:me", "refuse")
    assert caught.value.code == "shy"
    with pytest.raises(CallFailed, match="ValueError in the client's answer") as caught:
        client.call("ask:me", "break")
    assert (caught.value.code, "secret" in str(caught.value)) == ("rejected", False)
    assert code_of(client.call, "ask:me", "unsendable") == "rejected"
    assert code_of(client.call, "ask:me", "unheard") == "unknown_type"
    client.answer("*", lambda question: f"any {question.type}")
    assert client.call("ask:me", "unheard") == "any unheard"
    with pytest.raises(ConfigurationError, match="one answer"):
        client.answer("double", print)


# Waiting --------------------------------------------------------------------------------------------------------


def test_what_came_before_the_wait_counts(client: Client) -> None:
    client.call("tell:me", {"type": "first", "times": 2})
    client.call("tell:me", {"type": "second", "times": 1})
    assert [client.wait_for(name).payload for name in ("second", "first", "first")] == [0, 0, 1]
    with pytest.raises(TimedOut, match=r"no 'first' within 0\.01 s"):
        client.wait_for("first", timeout=0.01)
    client.send("tell:me", {"type": "third", "times": 1})
    assert client.wait_for("*", timeout=math.inf).type == "third"


def test_a_message_that_is_waited_for_is_not_its_handlers(client: Client) -> None:
    heard: list[Any] = []
    everything: list[str] = []
    waiting, done = threading.Event(), threading.Event()
    taken: list[ClientMessage] = []
    client.on("told", lambda message: heard.append(message.payload))
    client.on("*", lambda message: everything.append(message.type))
    client.on("end", lambda message: done.set())

    def wait() -> None:
        waiting.set()
        taken.append(client.wait_for("told"))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(PATIENCE)
    while thread.is_alive():  # until one was sent after the wait began
        client.call("tell:me", {"type": "told", "times": 1})
        thread.join(0.01)
    client.call("tell:me", {"type": "end", "times": 1})
    assert done.wait(PATIENCE)
    assert len(taken) == 1
    assert len(heard) == everything.count("told") - 1


def test_messages_that_nobody_wants_are_kept_within_bounds_and_then_counted(make: Make) -> None:
    with make(limits=ClientLimits(unclaimed=3)) as client:
        client.call("tell:me", {"type": "told", "times": 10})
        assert client.stats()["unclaimed"] == 7
        assert [client.wait_for("told").payload for _ in range(3)] == [7, 8, 9]


# Streams --------------------------------------------------------------------------------------------------------


def test_a_streamed_answer_is_iterated_in_order_and_then_gives_its_result(client: Client) -> None:
    def through() -> Any:
        return (yield from client.stream("count", 5))

    items = through()
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration) as caught:
        next(items)
    assert caught.value.value == "counted"
    assert client.call("count", 3) == "counted"


def test_an_error_in_the_middle_of_a_stream_is_raised_after_its_items(client: Client) -> None:
    items = client.stream("count:break", 2)
    assert [next(items), next(items)] == [0, 1]
    assert code_of(next, items) == "tired"


def test_leaving_a_stream_early_ends_it_at_the_server_and_the_next_call_is_answered(make: Make, tmp_path: Path) -> None:
    program, port = start_server(tmp_path)
    with program, make(url_of(port)) as client:
        for number in client.stream("count:forever"):
            assert number == 0
            break
        assert client.call("notes") == ["ended"]
        never = client.stream("note", "never begun")
        never.close()
        assert client.call("notes") == []


def test_a_reader_that_is_too_slow_gets_what_was_kept_and_then_an_error(make: Make) -> None:
    with make(limits=ClientLimits(stream=3)) as client:
        items = client.stream("count", 100)
        found = [next(items)]
        client.call("payload", 1)  # the server has handled the other before it answers this one
        with pytest.raises(CallFailed, match="more than 3 items") as caught:
            found.extend(items)
        assert caught.value.code == "overflow"
        assert found == list(range(len(found)))
        assert client.call("payload", 2) == 2


# Reconnecting ---------------------------------------------------------------------------------------------------


def test_a_first_attempt_that_fails_is_raised_and_with_retry_it_is_not_the_last(make: Make, tmp_path: Path) -> None:
    [port] = free_ports(1)
    client = make(url_of(port))
    with pytest.raises(ConnectionClosed, match=r"cannot connect to 127\.0\.0\.1:.*refused") as caught:
        client.connect()
    assert isinstance(caught.value.__cause__, OSError)
    assert client.state == "closed"
    with pytest.raises(ConnectionClosed, match="cannot connect"):
        client.send("note", 1)

    states = States(client)
    connecting = threading.Thread(target=client.connect, kwargs={"retry": True})
    connecting.start()
    states.next("waiting")
    client.send("note", "early")
    with start_server(tmp_path, port)[0]:
        connecting.join()
        assert client.state == "open"
        assert client.call("notes") == ["early"]


def test_a_server_that_stops_and_starts_gets_what_was_sent_meanwhile_once(make: Make, tmp_path: Path) -> None:
    program, port = start_server(tmp_path, *free_ports(1))
    with program:
        client = make(url_of(port))
        states = States(client)
        client.connect()
        before = client.id
        lost: list[Exception] = []

        def hang() -> None:
            try:
                client.call("hang")
            except ConnectionClosed as error:
                lost.append(error)

        under_way = threading.Thread(target=hang)
        under_way.start()
        program.wait_for("hanging")
        program.stop(signal.SIGKILL)
        states.next("waiting")
        for number in range(5):
            client.send("note", number)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(client.call("notes")))
        asking.start()
        with start_server(tmp_path, port)[0]:
            assert states.next("open")["resumed"] is False
            asking.join()
            under_way.join()
            assert answers == [[0, 1, 2, 3, 4]]
            assert [str(error).startswith("1006 the connection was lost") for error in lost] == [True]
            assert client.id != before


def test_the_queue_is_bounded_and_calls_that_time_out_leave_it(make: Make, tmp_path: Path) -> None:
    program, port = start_server(tmp_path, *free_ports(1))
    with program:
        client = make(url_of(port), limits=ClientLimits(queue=3, queue_bytes=1000))
        states = States(client)
        client.connect()
        program.stop()
    states.next("waiting")
    with pytest.raises(TimedOut):
        client.call("notes", timeout=0.01)
    with pytest.raises(QueueFull, match="no room for"):
        client.send("note", "x" * 1000)
    for number in range(3):
        client.send("note", number)
    with pytest.raises(QueueFull, match=r"3 messages of .* wait already"):
        client.call("notes")
    client.close()
    assert client.stats()["unsent"] == 3


@pytest.mark.parametrize(("code", "reason"), [(4501, "who are you"), (4500, ""), (1008, "policy"), (4999, "")])
def test_a_final_close_code_ends_it_until_somebody_asks_again(make: Make, code: int, reason: str) -> None:
    client = make()
    states = States(client)
    client.connect()
    client.send("close:me", {"code": code, "reason": reason})
    assert states.next("closed") == {"name": "closed", "code": code, "reason": reason}
    with pytest.raises(ConnectionClosed) as caught:
        client.call("payload")
    assert (caught.value.code, caught.value.reason) == (code, reason)
    client.connect()
    assert client.call("payload", 1) == 1


@pytest.mark.parametrize("code", [4008, 4013, 1011, 3000])
def test_after_any_other_close_code_it_comes_back(make: Make, code: int) -> None:
    client = make()
    states = States(client)
    client.connect()
    before = client.id
    states.next("open")
    client.send("close:me", {"code": code, "reason": "later"})
    waiting = states.next("waiting")
    assert (waiting["code"], waiting["reason"]) == (code, "later")
    assert 0 < waiting["retry_in"] < 0.5
    states.next("open")
    assert client.id != before


def test_a_draining_server_says_when_to_come_back(make: Make) -> None:
    client = make()
    states = States(client)
    client.connect()
    states.next("open")
    client.send("close:me", {"code": CloseCode.DRAINING, "reason": "retry_after=0.05"})
    assert states.next("waiting")["retry_in"] == 0.05
    states.next("open")
    client.send("close:me", {"code": CloseCode.DRAINING, "reason": "retry_after=600"})
    assert states.next("waiting")["retry_in"] == 600
    client.close()  # waits no 600 s
    assert states.next("closed")["code"] == 1000


def test_without_reconnect_the_end_of_the_connection_is_the_end(make: Make) -> None:
    client = make(reconnect=False)
    states = States(client)
    client.connect()
    client.send("close:me", {"code": 4008, "reason": "too slow"})
    assert states.next("closed") == {"name": "closed", "code": 4008, "reason": "too slow"}


def test_closing_ends_everything_that_waits_and_a_second_time_does_nothing(make: Make) -> None:
    client = make()
    client.close()  # was never open
    client.connect()
    ended: list[str] = []
    begun = threading.Barrier(4)

    def wait(function: Callable[..., Any], *args: Any) -> None:
        begun.wait(PATIENCE)
        try:
            function(*args)
        except ConnectionClosed as error:
            ended.append(str(error))

    waits: list[tuple[Any, ...]] = [(client.call, "hang"), (client.wait_for, "never"), (next, client.stream("hang"))]
    threads = [threading.Thread(target=wait, args=args) for args in waits]
    for thread in threads:
        thread.start()
    begun.wait(PATIENCE)
    client.close(3001, "enough")
    client.close()
    for thread in threads:
        thread.join()
    assert ended == ["3001 enough"] * 3
    with pytest.raises(ConnectionClosed, match="3001 enough"):
        client.send("note")
    with pytest.raises(ConfigurationError, match="must be 1000"):
        client.close(1001)
    with pytest.raises(ConfigurationError, match="123 bytes"):
        client.close(1000, "ü" * 62)


def test_a_connection_that_is_reset_comes_back(make: Make, port: int) -> None:
    with Proxy(port) as proxy:
        client = make(url_of(proxy.port))
        states = States(client)
        client.connect()
        for _ in range(3):
            states.next("open")
            proxy.reset()
            assert states.next("waiting")["code"] == CloseCode.ABNORMAL
        states.next("open")
        assert client.call("payload", 1) == 1
        client.close()


# Rooms and presence ---------------------------------------------------------------------------------------------


def test_joining_tells_who_is_there_and_a_closed_room_says_no(make: Make) -> None:
    with make() as ada, make() as grace:
        assert ada.presence.update({"name": "Ada"}) == {"id": ada.id, "metadata": {"name": "Ada"}}
        ada.join("open:who")
        joined = grace.join("open:who")
        assert (joined["room"], joined["id"], joined["total"]) == ("open:who", grace.id, 2)
        assert {"id": ada.id, "metadata": {"name": "Ada"}} in joined["members"]
        assert ada.presence.list("open:who")["total"] == 2
        grace.send("tell:room", "hello", room="open:who")
        assert ada.wait_for("told").payload == "hello"
        assert [ada.leave("open:who")["left"], ada.leave("open:who")["left"]] == [True, False]
        assert code_of(ada.join, "private") == "forbidden"
        assert code_of(ada.presence.list, "open:who") == "forbidden"


def test_rooms_and_presence_are_there_again_before_what_was_queued(make: Make) -> None:
    client = make()
    states = States(client)
    client.connect()
    states.next("open")
    client.join("open:again")
    client.join("open:left")
    client.presence.update({"name": "Ada", "mood": "calm"})
    client.presence.update({"mood": "merry"})
    client.leave("open:left")
    client.send("close:me", {"code": CloseCode.DRAINING, "reason": "retry_after=0.3"})
    states.next("waiting")
    client.send("tell:room", "we are back", room="open:again")
    states.next("open")
    assert client.wait_for("told").payload == "we are back"
    there = client.presence.list("open:again")
    assert there["members"] == [{"id": client.id, "metadata": {"name": "Ada", "mood": "merry"}}]
    assert code_of(client.presence.list, "open:left") == "forbidden"


def test_a_room_that_lets_nobody_in_again_is_told(make: Make, tmp_path: Path) -> None:
    program, port = start_server(tmp_path)
    with program:
        client = make(url_of(port))
        lefts: list[Any] = []
        left = threading.Event()
        client.on("client:left", lambda message: (lefts.append(message.payload), left.set()))
        client.connect()
        client.join("first visit")
        client.send("close:me", {"code": 4008, "reason": ""})
        assert left.wait(PATIENCE)
        states = States(client)
        client.send("close:me", {"code": 4008, "reason": ""})
        states.next("open")
        client.call("payload")
        client.close()
    assert [(one["room"], one["code"]) for one in lefts] == [("first visit", "forbidden")]


# The handshake --------------------------------------------------------------------------------------------------


def test_headers_reach_the_server_and_a_function_is_asked_for_every_attempt(make: Make) -> None:
    with make(headers={"X-Name": "ada"}) as client:
        assert client.call("who")[1] == "ada"
    names = iter(["first", "second"])
    client = make(headers=lambda: [("X-Name", next(names))])
    states = States(client)
    client.connect()
    states.next("open")
    client.send("close:me", {"code": 4008, "reason": ""})
    states.next("open")
    assert client.call("who")[1] == "second"


def test_a_function_for_the_headers_that_fails_ends_the_attempt_and_not_the_client(make: Make) -> None:
    answers: list[Any] = [LookupError("no token now"), LookupError("still none"), {"X-Name": "ada"}]

    def headers() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = make(headers=headers)
    with pytest.raises(ConnectionClosed, match="for the headers failed: LookupError: no token now") as caught:
        client.connect()
    assert isinstance(caught.value.__cause__, LookupError)
    client.connect(retry=True)
    assert client.call("who")[1] == "ada"


def test_a_refusal_is_raised_with_its_status_and_words_and_is_final(make: Make) -> None:
    client = make(headers={"X-Name": "mallory"})
    with pytest.raises(HandshakeError, match=r"the server refused: 401 Unauthorized: not you") as caught:
        client.connect(retry=True)
    assert caught.value.status == 401
    with pytest.raises(HandshakeError, match="404"):
        make(client.url + "/elsewhere").connect()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate of an authority, and a server's with its key."""
    folder = tmp_path_factory.mktemp("certificates")
    trustme = module("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    return folder


@pytest.fixture
def tls_server(certificates: Path, tmp_path: Path) -> Iterator[tuple[Program, str]]:
    """A server with TLS, and its address."""
    files = (str(certificates / "cert.pem"), str(certificates / "key.pem"))
    program, port = start_server(tmp_path, *free_ports(1), tls=files)
    with program:
        yield program, f"wss://127.0.0.1:{port}/realtime"


def test_tls_with_a_trusted_certificate(make: Make, tls_server: tuple[Program, str], certificates: Path) -> None:
    program, url = tls_server
    cafile = certificates / "ca.pem"
    context = ssl.create_default_context(cafile=cafile)
    limits = ClientLimits(message_size=8 * MiB)
    by_name = url.replace("127.0.0.1", "localhost")
    with make(url, tls=context, limits=limits) as client, make(by_name, tls=cafile, msgpack=True) as other:
        text = "grüße " * (3 * MiB // 8)
        results: list[bool] = []

        def ask() -> None:
            for _ in range(3):
                results.append(client.call("payload", text) == text)

        threads = [threading.Thread(target=ask) for _ in range(3)]  # who send while others receive
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 9
        assert other.call("payload", b"\0") == b"\0"
        states = States(client)
        program.stop()
        states.next("waiting")


def test_tls_without_trust_is_refused_and_says_why(make: Make, tls_server: tuple[Program, str]) -> None:
    with pytest.raises(ConnectionClosed, match="certificate verify failed"):
        make(tls_server[1]).connect()
    with pytest.raises((ConnectionClosed, HandshakeError)):  # as the server says it in TLS or not at all
        make(tls_server[1].replace("wss:", "ws:")).connect()
