"""The JavaScript client in node (with npm's ws) and in Chromium, against servers of ours and one that is not."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from javascript_rig import ChromiumScript, NodeScript, Script, start_server, websockets_server
from ports import free_ports
from programs import PATIENCE
from webrtc_rig import Proxy, launched

from realtime.codes import CloseCode, may_reconnect

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from websockets.sync.server import ServerConnection

Play = Callable[..., Script]
Run = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a server listens for all tests."""
    program, found = start_server(tmp_path_factory.mktemp("server"))
    with program:
        yield found
        program.stop()


@pytest.fixture(scope="module", params=["node", "chromium"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser | None]:
    """Where scripts run: a browser, or None for node."""
    if request.param == "node":
        yield None
        return
    with launched() as launch:
        yield launch()


@pytest.fixture
def play(browser: Browser | None, tmp_path: Path, port: int) -> Iterator[Play]:
    """Run a script; see ``javascript_rig``. It connects to ``url``, by itself that of the server for all tests."""
    closers: list[Callable[[], None]] = []
    errors: list[str] = []

    def start(script: str, url: str = f"ws://127.0.0.1:{port}/realtime") -> Script:
        if browser is None:
            played = NodeScript(script, url, tmp_path)
            closers.append(played.close)
            return played
        context = browser.new_context()
        closers.append(context.close)
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return ChromiumScript(script, url, page, f"http://127.0.0.1:{port}/")

    yield start
    for close in closers:
        close()
    assert errors == []


@pytest.fixture
def run_in_node(tmp_path: Path, port: int) -> Iterator[Run]:
    """Run a script to its end where the surroundings make no difference; return what it printed."""
    played: list[NodeScript] = []

    def run(script: str) -> list[Any]:
        played.append(NodeScript(script, f"ws://127.0.0.1:{port}/realtime", tmp_path))
        return played[-1].finish()

    yield run
    for one in played:
        one.close()


# Messages -------------------------------------------------------------------------------------------------------


def test_welcome_tells_the_id_and_what_the_server_bounds(play: Play) -> None:
    script = """
      const client = connect(url, { hello: { version: 1 } });
      print([client.state, client.id]);
      await client.ready;
      print([client.state, typeof client.id, client.heartbeat, client.limits.message_size, client.url === url]);
      print(client.socket.readyState);
      client.close();
      print([client.state, client.socket]);
    """
    printed = play(script).finish()
    assert printed[0] == ["connecting", None]
    assert printed[1] == ["open", "string", {"interval": 25, "timeout": 10}, 1_000_000, True]
    assert printed[2:] == [1, ["closed", None]]


def test_a_call_returns_what_the_handler_returned(play: Play) -> None:
    script = """
      const client = connect();
      print(await client.call("echo", { deep: [1, "grüße", null] }, { room: "tea", target: ["a", "b"] }));
      print(await client.call("echo"));
      print(await Promise.all([1, 2, 3].map(async (n) => (await client.call("echo", n)).payload)));
      client.close();
    """
    whole = {"payload": {"deep": [1, "grüße", None]}, "room": "tea", "target": ["a", "b"]}
    nothing = {"payload": None, "room": None, "target": None}
    assert play(script).finish() == [whole, nothing, [1, 2, 3]]


def test_a_call_that_is_refused_rejects_with_the_servers_code(play: Play) -> None:
    script = """
      const client = connect();
      const error = await client.call("refuse", "too_early").catch((error) => error);
      print([error instanceof RealtimeError, error instanceof Error, error.name, error.code, error.message]);
      print(await codeOf(client.call("nobody:knows")));
      print(await codeOf(client.call("fail")));
      print(await codeOf(client.call("hang", null, { timeout: 0.05 })));
      client.close();
    """
    expected = [True, True, "RealtimeError", "too_early", "not today"]
    assert play(script).finish() == [expected, "unknown_type", "internal_error", "timeout"]


def test_listeners_hear_their_type_and_a_star_hears_everything(play: Play) -> None:
    script = """
      const client = connect();
      const heard = [];
      const off = client.on("told", (payload, { room }) => heard.push(["told", payload, room]));
      const second = (payload) => heard.push(["second", payload]);
      client.on("told", second);
      client.on("*", (payload, { type }) => heard.push(["*", type]));
      client.on("system:ack", () => heard.push(["an answer to a call"]));
      await client.join("open:tea");
      await client.call("tell:room", 1, { room: "open:tea" });
      off();
      client.off("told", second);
      await client.call("tell:room", 2, { room: "open:tea" });
      print(heard);
      client.close();
    """
    welcomed = [["*", "system:welcome"], ["*", "system:ack"]]
    first = [["told", 1, "open:tea"], ["second", 1], ["*", "told"], ["*", "system:ack"]]
    assert play(script).finish() == [[*welcomed, *first, ["*", "told"], ["*", "system:ack"]]]


def test_a_listener_that_throws_is_reported_and_the_others_are_called(play: Play) -> None:
    script = """
      const reported = [];
      globalThis.reportError = (error) => reported.push(error.message);
      const client = connect();
      const heard = new Promise((resolve) => {
        client.on("told", () => { throw new Error("mine"); });
        client.on("told", resolve);
      });
      await client.join("open:tea");
      client.send("tell:room", "still", { room: "open:tea" });
      print([await heard, reported]);
      client.close();
    """
    assert play(script).finish() == [["still", ["mine"]]]


# Streams --------------------------------------------------------------------------------------------------------


def test_a_streamed_answer_is_iterated_in_order_and_then_resolves(play: Play) -> None:
    script = """
      const client = connect();
      const answer = client.call("count", 300);
      const items = await all(answer);
      print([items.length, items.every((item, index) => item === index), await answer]);
      print([await all(client.call("echo")), await client.call("count", 5)]);
      const late = client.call("count", 5);
      await late;
      print([await all(late), await all(late)]); // what came before anybody read is for the first reader
      client.close();
    """
    assert play(script).finish() == [[300, True, "counted"], [[], "counted"], [[0, 1, 2, 3, 4], []]]


def test_an_error_in_the_middle_of_a_stream_is_thrown_after_its_items(play: Play) -> None:
    script = """
      const client = connect();
      const items = [];
      print(await codeOf(all(client.call("count:break", 3), items)));
      print(items);
      const refused = client.call("refuse", "no");
      await refused.catch(() => {});
      print(await codeOf(all(refused)));
      client.close();
    """
    assert play(script).finish() == ["tired", [0, 1, 2], "no"]


def test_a_reader_that_is_too_slow_gets_what_was_kept_and_then_an_error(play: Play) -> None:
    script = """
      const client = connect(url, { stream: 3 });
      const answer = client.call("count", 10);
      const reader = answer[Symbol.asyncIterator]();
      print(await answer);
      const items = [];
      print(await codeOf(all({ [Symbol.asyncIterator]: () => reader }, items)));
      print(items);
      client.close();
    """
    assert play(script).finish() == ["counted", "overflow", [0, 1, 2]]


def test_items_that_come_before_the_first_reader_are_kept_within_bounds(play: Play) -> None:
    script = """
      const client = connect(url, { stream: 3 });
      for (const count of [3, 4]) {
        const answer = client.call("count", count);
        await client.call("echo"); // answered after all of them
        const items = [];
        print([await codeOf(all(answer, items)), items]);
      }
      client.close();
    """
    read, overflowed = play(script).finish()
    assert read == [["no error", [0, 1, 2]], [0, 1, 2]]
    assert overflowed == ["overflow", [0, 1, 2]]


def test_leaving_a_stream_early_ends_it_at_the_server_and_the_next_call_is_answered(play: Play, tmp_path: Path) -> None:
    script = """
      const client = connect();
      client.on("system:error", () => print("an answer to a cancelled call is told to listeners"));
      const answer = client.call("count:forever");
      answer.catch(() => {}); // who only catches errors does not wait for the result
      for await (const item of answer) {
        print(item);
        break;
      }
      print(await client.call("notes"));
      print(await codeOf(answer));
      const other = client.call("count:forever");
      const reader = other[Symbol.asyncIterator]();
      print((await reader.next()).value);
      const never = reader.next(); // the server yields no more by itself
      await reader.return();
      print((await never).done);
      print(await client.call("notes"));
      client.close();
    """
    program, port = start_server(tmp_path)
    with program:
        printed = play(script, f"ws://127.0.0.1:{port}/realtime").finish()
    assert printed == [0, ["ended"], "cancelled", 0, True, ["ended", "ended"]]


def test_a_stream_goes_on_while_somebody_reads_it_or_waits_for_its_result(play: Play) -> None:
    script = """
      const client = connect();
      const awaited = client.call("count:slowly", { items: 2 });
      const result = awaited.then((value) => ["result", value]);
      client.send("go");
      for await (const item of awaited) break;
      client.send("go");
      print(await result);
      const shared = client.call("count:slowly", { items: 2 });
      const others = all(shared);
      client.send("go");
      for await (const item of shared) break;
      client.send("go");
      print(await others);
      client.close();
    """
    assert play(script).finish() == [["result", None], [0, 1]]


def test_a_stream_that_is_left_before_it_was_asked_for_never_is(play: Play, tmp_path: Path) -> None:
    script = """
      const client = connect(url, quick);
      const answer = client.call("count:forever");
      const reader = answer[Symbol.asyncIterator]();
      const first = reader.next().catch(({ code }) => code);
      await reader.return();
      print([(await first).done, await codeOf(answer)]);
      await told();
      print(await client.call("notes"));
      client.close();
    """
    (free,) = free_ports(1)
    played = play(script, f"ws://127.0.0.1:{free}/realtime")
    assert played.read() == [True, "cancelled"]
    with start_server(tmp_path, free)[0]:
        played.tell()
        assert played.finish() == [[]]


def test_every_item_gives_a_stream_more_time(play: Play) -> None:
    script = """
      const timers = [];
      const { setTimeout } = globalThis;
      globalThis.setTimeout = (action, delay) => {
        if (delay === 7000) timers.push(delay);
        return setTimeout(action, delay);
      };
      const client = connect();
      const stream = client.call("count:slowly", { items: 4 }, { timeout: 7 });
      client.send("go");
      for await (const item of stream) {
        print([item, timers.length]);
        client.send("go");
      }
      client.close();
    """
    assert play(script).finish() == [[0, 2], [1, 3], [2, 4], [3, 5]]


# Questions of the server ----------------------------------------------------------------------------------------


def test_questions_are_answered_with_values_promises_and_refusals(play: Play) -> None:
    script = """
      globalThis.reportError = (error) => print(["reported", error.message]);
      const client = connect();
      const off = client.answer("value", (payload, { type }) => [payload + 1, type]);
      client.answer("promise", async (payload) => payload + 2);
      client.answer("refusal", () => { throw new RealtimeError("not me", "not_me"); });
      client.answer("fault", async () => { throw new Error("oops"); });
      client.answer("circle", () => { const circle = {}; return (circle.circle = circle); });
      for (const type of ["value", "promise"]) print(await client.call("ask:me", type));
      for (const type of ["refusal", "fault", "nobody"]) {
        print(await client.call("ask:me", type).catch(({ code, message }) => [code, message]));
      }
      print(await codeOf(client.call("ask:me", "circle")));
      off();
      print(await codeOf(client.call("ask:me", "value")));
      client.answer("*", (payload, { type }) => `${type}?`);
      print(await client.call("ask:me", "value"));
      client.close();
    """
    printed = play(script).finish()
    assert printed[:2] == [[21, "value"], 22]
    assert printed[2][1] == "not me"
    assert printed[3:5] == [["reported", "oops"], [printed[4][0], "oops"]]
    assert [printed[2][0], printed[4][0], printed[5][0]] == ["not_me", "rejected", "unknown_type"]
    assert printed[6][0] == "reported"
    assert printed[7:] == ["rejected", "unknown_type", "value?"]


# Coming and going -----------------------------------------------------------------------------------------------


def test_what_is_sent_before_the_server_is_there_waits_in_order(play: Play, tmp_path: Path, port: int) -> None:
    script = """
      const states = [];
      const client = connect(url, quick);
      client.on("client:state", ({ name }) => states.push(name));
      for (const n of [1, 2, 3]) client.send("note", n);
      const answer = client.call("notes", null, { timeout: 60 });
      client.send("note", 4);
      await reached(client, "waiting");
      print("waiting");
      print(await answer);
      print([await client.call("notes"), states.at(-1)]);
      client.close();
    """
    (free,) = free_ports(1)
    played = play(script, f"ws://127.0.0.1:{free}/realtime")
    assert played.read() == "waiting"
    with start_server(tmp_path, free)[0]:
        assert played.finish() == [[1, 2, 3], [[1, 2, 3, 4], "open"]]


def test_a_server_that_stops_and_starts_gets_what_was_sent_meanwhile_once(play: Play, tmp_path: Path) -> None:
    script = """
      const client = connect(url, quick);
      await client.ready;
      const before = client.id;
      client.send("note", "before");
      const cut = client.call("hang", null, { timeout: 600 });
      print("asked");
      await reached(client, "waiting");
      for (let n = 0; n < 100; n++) client.send("note", n);
      print("sent");
      print(await codeOf(cut));
      print([(await reached(client, "open")).resumed ?? false, client.id !== before, await client.call("notes")]);
      client.close();
    """
    (port,) = free_ports(1)
    with start_server(tmp_path, port)[0] as program:
        played = play(script, f"ws://127.0.0.1:{port}/realtime")
        program.wait_for("hanging")
        assert played.read() == "asked"
        program.stop(signal.SIGKILL)
    assert played.read() == "sent"
    with start_server(tmp_path, port)[0] as program:
        assert played.finish() == ["closed", [False, True, list(range(100))]]
        assert "hanging\n" not in program.output


def test_the_queue_is_bounded_and_calls_that_time_out_leave_it(play: Play) -> None:
    script = """
      const client = connect(url, { queue: { messages: 2, bytes: 1000 } });
      client.send("note", 1);
      print(await codeOf(client.call("echo", 2, { timeout: 0.05 })));
      client.send("note", 3);
      print(thrown(() => client.send("note", 4)));
      print(await codeOf(client.call("echo", 5)));
      client.close();
      const other = connect(url, { queue: { messages: 10, bytes: 1000 } });
      print(thrown(() => other.send("note", "ü".repeat(500))));
      other.send("note", "ü".repeat(400));
      print(thrown(() => other.send("note", "x".repeat(200))));
      other.close();
    """
    (port,) = free_ports(1)
    expected = ["timeout", "queue_full", "queue_full", "queue_full", "queue_full"]
    assert play(script, f"ws://127.0.0.1:{port}/realtime").finish() == expected


def test_a_message_the_server_would_not_take_is_refused_here(play: Play) -> None:
    script = """
      const client = connect(url, { queue: { bytes: 10_000_000 } });
      client.send("note", "x".repeat(1_000_000)); // nobody knows yet what the server takes
      const queued = client.call("echo", "x".repeat(1_000_000));
      globalThis.reportError = ({ code }) => print(["reported", code]);
      await client.ready;
      print(await codeOf(queued));
      print(thrown(() => client.send("note", "x".repeat(1_000_000))));
      print(await codeOf(client.call("echo", "ü".repeat(500_000))));
      print([(await client.call("echo", "alive")).payload, client.state]);
      client.close();
    """
    expected = [["reported", "message_too_big"], *["message_too_big"] * 3, ["alive", "open"]]
    assert play(script).finish() == expected


def test_a_network_that_takes_no_more_is_not_filled_without_end(play: Play, port: int) -> None:
    script = """
      const client = connect();
      await client.ready;
      print("open");
      await told();
      let sent = 0;
      const flood = () => { for (; sent < 1000; sent++) client.send("echo", "x".repeat(100_000)); };
      print([thrown(flood), sent < 1000, client.socket.bufferedAmount > 1024 * 1024]);
      print(await codeOf(client.call("echo")));
      client.close();
    """
    with Proxy(port) as proxy:
        played = play(script, f"ws://127.0.0.1:{proxy.port}/realtime")
        assert played.read() == "open"
        proxy.hold()
        played.tell()
        assert [played.read(), played.read()] == [["queue_full", True, True], "queue_full"]
        proxy.reset()
        played.finish()


@pytest.mark.parametrize(("code", "reason"), [(4503, "not today"), (4500, ""), (1008, "policy"), (1000, "done")])
def test_a_final_close_code_ends_it_until_somebody_asks_again(play: Play, code: int, reason: str) -> None:
    script = f"""
      const client = connect(url, quick);
      client.send("close:me", {{ code: {code}, reason: {json.dumps(reason)} }});
      const states = [];
      client.on("client:state", (state) => states.push(state));
      await reached(client, "closed");
      print(states.at(-1));
      print([thrown(() => client.send("note")), await codeOf(client.call("echo")), await codeOf(client.join("x"))]);
      client.reconnect();
      await client.ready;
      print([client.state, states.map(({{ name }}) => name)]);
      client.close();
    """
    printed = play(script).finish()
    assert printed[0] == {"name": "closed", "code": code, "reason": reason}
    assert printed[1] == ["closed"] * 3
    assert printed[2] == ["open", ["open", "closed", "connecting", "open"]]


@pytest.mark.parametrize("code", [4008, 4013, 1011, 3000])
def test_after_any_other_close_code_it_comes_back(play: Play, code: int) -> None:
    script = f"""
      const client = connect(url, quick);
      await client.ready;
      const before = client.id;
      client.send("close:me", {{ code: {code}, reason: "later" }});
      const state = await reached(client, "waiting");
      print([state.code, state.reason, state.retryIn > 0, state.retryIn < 0.5]);
      await reached(client, "open");
      print(client.id !== before);
      client.close();
    """
    assert play(script).finish() == [[code, "later", True, True], True]


def test_a_draining_server_says_when_to_come_back(play: Play) -> None:
    script = """
      const client = connect(url, quick);
      client.send("close:me", { code: 4013, reason: "retry_after=600" });
      print((await reached(client, "waiting")).retryIn);
      client.send("note", "kept");
      client.reconnect();
      await reached(client, "open");
      print((await client.call("notes")).at(-1) === "kept");
      client.send("close:me", { code: 4013, reason: "retry_after=0.05" });
      print((await reached(client, "waiting")).retryIn);
      await reached(client, "open");
      client.close();
    """
    assert play(script).finish() == [600, True, 0.05]


def test_without_reconnect_the_end_of_the_connection_is_the_end(play: Play) -> None:
    script = """
      const client = connect(url, { reconnect: false });
      await client.ready;
      client.send("close:me", { code: 4008, reason: "too slow" });
      print(await reached(client, "closed"));
      const other = connect("ws://127.0.0.1:1/", { reconnect: false });
      print(await codeOf(other.ready));
      print([other.state, other.id]);
    """
    closed = {"name": "closed", "code": 4008, "reason": "too slow"}
    assert play(script).finish() == [closed, "closed", ["closed", None]]


def test_closing_rejects_everything_that_waits_and_a_second_time_does_nothing(play: Play) -> None:
    script = """
      const early = connect();
      const queued = early.call("echo");
      early.close(4000, "changed my mind");
      early.close();
      print([await codeOf(early.ready), await codeOf(queued), early.state]);
      const client = connect();
      await client.ready;
      const states = [];
      client.on("client:state", (state) => states.push(state));
      const items = [];
      const reading = codeOf(all(client.call("count:slowly", { items: 3 }), items));
      const asked = client.call("hang");
      client.close(3001, "enough");
      client.close();
      print([await codeOf(asked), await reading, items, states]);
    """
    closed = {"name": "closed", "code": 3001, "reason": "enough"}
    assert play(script).finish() == [["closed", "closed", "closed"], ["closed", "closed", [], [closed]]]


def test_somebody_may_reconnect_while_it_is_open(play: Play) -> None:
    script = """
      const client = connect(url, quick);
      await client.ready;
      const before = client.id;
      const asked = client.call("count:slowly", { items: 1 });
      client.reconnect();
      client.reconnect(); // is on its way already
      print(client.state);
      const { resumed } = await reached(client, "open");
      client.send("go");
      print([resumed, client.id === before, await all(asked)]);
      client.close();
    """
    assert play(script).finish() == ["connecting", [True, True, [0]]]


def test_without_a_session_a_reconnect_makes_another_client(play: Play) -> None:
    script = """
      const client = connect(url, { ...quick, session: false });
      await client.ready;
      const before = client.id;
      const asked = client.call("hang");
      client.reconnect();
      print([client.state, await codeOf(asked)]);
      const { resumed } = await reached(client, "open");
      print([resumed, client.id !== before, (await client.call("echo", 1)).payload]);
      client.close();
    """
    assert play(script).finish() == [["connecting", "closed"], [False, True, 1]]


def test_a_connection_that_went_dead_is_noticed_and_replaced(play: Play, tmp_path: Path) -> None:
    script = """
      const client = connect(url, quick);
      await client.ready;
      print("open");
      await told();
      const lost = new Promise((resolve) => {
        client.on("client:state", ({ name, code }) => name === "waiting" && resolve(code));
      });
      const asked = client.call("echo", "into the void", { timeout: 600 });
      print(await lost);
      print((await asked).payload);
      print((await client.call("echo", "back")).payload);
      client.close();
    """
    program, port = start_server(tmp_path, heartbeat=(0.2, 2.0))
    with program, Proxy(port) as proxy:
        played = play(script, f"ws://127.0.0.1:{proxy.port}/realtime")
        assert played.read() == "open"
        proxy.hold()
        played.tell()
        assert played.read() == 4009
        proxy.reset()
        assert played.finish() == ["into the void", "back"]


def test_an_idle_connection_is_asked_for_a_sign_of_life_and_kept(play: Play, tmp_path: Path) -> None:
    script = """
      const states = [];
      let welcomes = 0;
      let enough = () => {};
      const client = connect(url, quick);
      client.on("client:state", ({ name }) => states.push(name));
      client.on("system:welcome", () => ++welcomes === 2 && enough());
      await new Promise((resolve) => (enough = resolve));
      print(states);
      client.close();
    """
    program, port = start_server(tmp_path, heartbeat=(0.1, 3.0))
    with program:
        assert play(script, f"ws://127.0.0.1:{port}/realtime").finish() == [["open"]]


def test_a_server_that_does_not_welcome_is_given_up(play: Play) -> None:
    script = """
      const client = connect(url, { ...quick, timeout: 0.1 });
      const { code, reason } = await reached(client, "waiting");
      print([code, reason]);
      client.close();
    """

    def silent(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    with websockets_server(silent) as url:
        assert play(script, url).finish() == [[4009, "the server did not welcome us in time"]]


def test_the_network_coming_back_ends_the_waiting(play: Play, browser: Browser | None) -> None:
    script = """
      let online = () => {};
      if (!globalThis.addEventListener) {
        globalThis.addEventListener = (type, listener) => type === "online" && (online = listener);
        globalThis.removeEventListener = (type) => type === "online" && (online = () => {});
      } else online = () => dispatchEvent(new Event("online"));
      const client = connect(url, quick);
      let welcomes = 0;
      client.on("system:welcome", () => welcomes++);
      client.send("close:me", { code: 4013, reason: "retry_after=600" });
      await reached(client, "waiting");
      online();
      await reached(client, "open");
      online(); // while open: asks whether the connection still lives
      await next(client, "system:welcome");
      print([client.state, welcomes]);
      client.close();
      online();
      print(client.state);
    """
    assert play(script).finish() == [["open", 3], "closed"]


def test_two_clients_of_one_page_do_not_disturb_each_other(play: Play) -> None:
    script = """
      const [ada, grace] = [connect(url, quick), connect(url, quick)];
      await Promise.all([ada.join("open:two"), grace.join("open:two")]);
      const states = [];
      grace.on("client:state", ({ name }) => states.push(name));
      ada.answer("name", () => "Ada");
      grace.answer("name", () => "Grace");
      print(await Promise.all([ada.call("ask:me", "name"), grace.call("ask:me", "name")]));
      const items = await Promise.all([all(ada.call("count", 4)), all(grace.call("count", 2))]);
      print([items, ada.id !== grace.id]);
      ada.send("close:me", { code: 4008, reason: "" });
      await reached(ada, "waiting");
      await reached(ada, "open");
      const heard = next(grace, "told");
      await ada.call("tell:room", "hello", { room: "open:two" });
      print(await heard);
      ada.close();
      print([(await grace.call("echo", 1)).payload, states]);
      grace.close();
    """
    assert play(script).finish() == [["Ada", "Grace"], [[[0, 1, 2, 3], [0, 1]], True], "hello", [1, []]]


# Rooms and presence ---------------------------------------------------------------------------------------------


def test_joining_tells_who_is_there_and_a_closed_room_says_no(play: Play) -> None:
    script = """
      const [ada, grace] = [connect(), connect()];
      print(await ada.presence.update({ name: "Ada" }).then(({ id, metadata }) => [id === ada.id, metadata]));
      await ada.join("open:who");
      const { room, id, members, total } = await grace.join("open:who");
      print([room, id === grace.id, members.map(({ metadata }) => metadata), total]);
      print((await ada.presence.list("open:who")).total);
      print([(await ada.leave("open:who")).left, (await ada.leave("open:who")).left]);
      print([await codeOf(ada.join("private")), await codeOf(ada.presence.list("open:who"))]);
      ada.close();
      grace.close();
    """
    there = ["open:who", True, [{"name": "Ada"}, {}], 2]
    assert play(script).finish() == [[True, {"name": "Ada"}], there, 2, [True, False], ["forbidden", "forbidden"]]


def test_rooms_and_presence_are_there_again_before_what_was_queued(play: Play) -> None:
    script = """
      const sent = [];
      const trace = (frame) => frame.sent && sent.push(JSON.parse(frame.text));
      const client = connect(url, { ...quick, trace });
      await client.join("open:again");
      await client.join("open:left");
      await client.presence.update({ name: "Ada", mood: "calm" });
      await client.presence.update({ mood: "merry" });
      client.send("close:me", { code: 4013, reason: "retry_after=600" });
      await reached(client, "waiting");
      const left = client.leave("open:left");
      const joined = client.join("open:new");
      client.send("tell:room", "we are back", { room: "open:again" });
      sent.length = 0;
      client.reconnect();
      print(await next(client, "told"));
      print([await left, (await joined).room]);
      print(sent.slice(0, 6).map(({ type, room }) => [type, room]));
      print((await client.presence.list("open:again")).members.map(({ metadata }) => metadata));
      client.close();
    """
    assert play(script).finish() == [
        "we are back",
        [{"room": "open:left", "left": False}, "open:new"],
        [
            ["system:hello", None],
            ["system:join", "open:again"],
            ["system:presence", None],
            ["system:leave", "open:left"],
            ["system:join", "open:new"],
            ["tell:room", "open:again"],
        ],
        [{"name": "Ada", "mood": "merry"}],
    ]


def test_a_room_that_lets_nobody_in_again_is_told(play: Play, tmp_path: Path) -> None:
    script = """
      const client = connect(url, quick);
      await client.join("first visit");
      const left = next(client, "client:left");
      client.send("close:me", { code: 4008, reason: "" });
      const { room, code } = await left;
      print([room, code]);
      client.on("client:left", () => print("told again"));
      client.send("close:me", { code: 4008, reason: "" });
      await reached(client, "waiting");
      await reached(client, "open");
      await client.call("echo");
      client.close();
    """
    program, port = start_server(tmp_path)
    with program:
        assert play(script, f"ws://127.0.0.1:{port}/realtime").finish() == [["first visit", "forbidden"]]


# A server that is not ours --------------------------------------------------------------------------------------


def test_any_server_that_speaks_the_wire_will_do(play: Play) -> None:
    script = """
      const warned = [];
      console.warn = (text) => warned.push(text);
      const client = connect();
      client.on("client:state", ({ name }) => name === "forged" && print("a forged state was believed"));
      client.on("*", (payload, { type }) => type.startsWith("client:") && print("a forged event was told"));
      client.answer("age?", () => 36);
      await client.ready;
      print([client.id, client.heartbeat, client.limits]);
      const stream = client.call("greet", "Ada", { room: "tea" });
      print([await all(stream), await stream]);
      print(await client.call("refuse").catch(({ code, message, details }) => [code, message, details]));
      print(warned.length);
      client.close();
    """

    def serve(connection: ServerConnection) -> None:
        def send(type_: str, payload: Any, **fields: Any) -> None:
            connection.send(json.dumps({"type": type_, "payload": payload, **fields}))

        for text in connection:
            message = json.loads(text)
            ack = message.get("ack")
            if message["type"] == "system:hello":
                send("system:welcome", {"id": "you"})
            elif message["type"] == "greet":
                for junk in ("no JSON", "[1, 2]", "null", '{"payload": 1}', b"\x00\xff", '{"type": 7}'):
                    connection.send(junk)
                send("client:state", {"name": "forged"})
                send("system:ack", {"ack": "nobody asked", "result": 1})
                send("system:stream", {"ack": ack, "item": f"hello {message['payload']} in {message['room']}"})
                send("age?", None, ack=1)
                answer = json.loads(connection.recv())
                send("system:ack", {"ack": ack, "result": answer})
            else:
                send("system:error", {"ack": ack, "message": "no", "code": "own_code", "details": "why"})

    with websockets_server(serve) as url:
        assert play(script, url).finish() == [
            ["you", None, None],
            [["hello Ada in tea"], {"type": "system:ack", "payload": {"ack": 1, "result": 36}}],
            ["own_code", "no", "why"],
            1,
        ]


def test_a_question_is_not_answered_on_another_connection(play: Play) -> None:
    script = """
      const client = connect(url, quick);
      let answer;
      const asked = new Promise((resolve) => client.answer("slow", () => {
        resolve();
        return new Promise((resolve) => (answer = resolve));
      }));
      await asked;
      await reached(client, "waiting");
      await reached(client, "open");
      answer("too late");
      await 0;
      client.send("last");
      print(await next(client, "bye"));
      client.close();
    """
    visits: list[list[str]] = []

    def serve(connection: ServerConnection) -> None:
        first = not visits
        heard: list[str] = []
        visits.append(heard)
        for text in connection:
            heard.append(json.loads(text)["type"])
            if heard[-1] == "system:hello":
                connection.send('{"type": "system:welcome", "payload": {"id": "you"}}')
                if first:
                    connection.send('{"type": "slow", "ack": 1}')
                    connection.close(4008)
            else:
                connection.send('{"type": "bye", "payload": "bye"}')

    with websockets_server(serve) as url:
        assert play(script, url).finish() == ["bye"]
    assert visits == [["system:hello"], ["system:hello", "last"]]


# Options and codes ----------------------------------------------------------------------------------------------


WRONG = [
    ("connect(7)", "url: must be a ws://"),
    ("connect('ftp://example')", "url: must be a ws://"),
    ("connect(url, { retries: 3 })", 'no "retries", only backoff, reconnect'),
    ("connect(url, { backoff: { min: 0 } })", "options.backoff.min: must be a number of seconds"),
    ("connect(url, { backoff: { min: 3, max: 2 } })", "options.backoff.max: must be at least backoff.min, 3"),
    ("connect(url, { backoff: { jitter: 2 } })", "options.backoff.jitter: must be from 0 to 1"),
    ("connect(url, { backoff: { least: 1 } })", 'options.backoff: there is no "least"'),
    ("connect(url, { reconnect: 'no' })", "options.reconnect: must be true or false"),
    ("connect(url, { timeout: '10' })", 'options.timeout: must be a number of seconds above 0, not "10"'),
    ("connect(url, { timeout: Infinity })", "options.timeout: must be a number of seconds"),
    ("connect(url, { queue: { messages: 1.5 } })", "options.queue.messages: must be a whole number"),
    ("connect(url, { queue: { bytes: -1 } })", "options.queue.bytes: must be a whole number"),
    ("connect(url, { stream: 0 })", "options.stream: must be a whole number"),
    ("connect(url, { hello: 'me' })", "options.hello: must be an object"),
    ("connect(url, { session: 'yes' })", "options.session: must be true or false"),
    ("connect(url, { trace: true })", "options.trace: must be a function"),
    ("connect(url, { WebSocket: 'ws' })", "options.WebSocket: must be a class"),
    ("client.on('', () => {})", "on(type): must be a string, not empty"),
    ("client.on('chat', null)", 'on("chat", listener): must be a function'),
    ("client.answer('chat')", 'answer("chat", answerer): must be a function'),
    ("client.answer('name', () => 1), client.answer('name', () => 2)", "a question has one answer"),
    ("client.send({ type: 'chat' })", "send(type): must be a string"),
    ("client.send('chat', 1, { rooms: 'tea' })", 'no "rooms", only room, target'),
    ("client.send('chat', 1, { room: '' })", "{room}): must be a string, not empty"),
    ("client.send('chat', 1, { target: ['a', 7] })", "{target}): must be a string, not empty"),
    ("client.send('chat', 10n)", "BigInt"),
    ("client.call('chat', 1, { timeout: 0 })", "{timeout}): must be a number of seconds"),
    ("client.call('chat', 10n)", "BigInt"),
    ("client.join()", "join(room): must be a string, not empty"),
    ("client.join('tea', { after: 1 })", 'no "after", only since, presence'),
    ("client.join('tea', { presence: 1 })", "{presence}): must be true or false, not 1"),
    ("client.presence.state()", "presence.state(room): must be a string, not empty"),
    ("client.presence.page('tea', 7)", 'presence.page("tea", after): must be a string, not empty'),
    ("client.join('tea', { since: 7 })", "{since}): must be a string, not empty"),
    ("client.history('tea', { most: 7 })", 'no "most", only limit, since'),
    ("client.close(1001)", "close(code): must be 1000 or from 3000 to 4999, not 1001"),
    ("client.close(1000, 'ü'.repeat(62))", "must be a string of at most 123 bytes"),
]


def test_what_cannot_work_is_a_type_error_that_says_what_can(run_in_node: Run) -> None:
    attempt = "try { %s; print('no error') } catch (e) { print(e instanceof TypeError ? e.message : `${e.stack}`) }"
    attempts = "\n".join(attempt % expression for expression, _ in WRONG)
    printed = run_in_node(f"const client = connect();\n{attempts}\nclient.close();")
    assert [said in text for (_, said), text in zip(WRONG, printed, strict=True)] == [True] * len(WRONG), printed


def test_the_close_codes_are_those_of_the_server(run_in_node: Run) -> None:
    script = """
      print(CloseCode);
      print(Array.from({ length: 4100 }, (_, n) => n + 900).filter(mayReconnect));
    """
    codes, allowed = run_in_node(script)
    assert codes == {code.name: code.value for code in CloseCode}
    assert allowed == [code for code in range(900, 5000) if may_reconnect(code)]


def test_the_pauses_grow_to_the_longest_with_jitter(run_in_node: Run) -> None:
    script = """
      const pauses = [];
      Math.random = () => [0, 0.5, 1][pauses.length % 3];
      const { setTimeout } = globalThis;
      globalThis.setTimeout = (action, delay) => setTimeout(action, delay === 10_000 ? delay : 1);
      const client = connect("ws://127.0.0.1:1/", { backoff: { min: 1, max: 5, jitter: 0.5 } });
      await new Promise((resolve) => client.on("client:state", ({ name, retryIn }) => {
        if (name === "waiting" && pauses.push(retryIn) === 6) resolve();
      }));
      client.close();
      print(pauses);
    """
    assert run_in_node(script) == [[0.5, 2, 6, 2.5, 5, 7.5]]
