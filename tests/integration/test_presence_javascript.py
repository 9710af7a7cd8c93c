"""Live presence as the JavaScript client keeps it, in node."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from javascript_rig import NodeScript
from programs import Program
from requirements import module

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

SERVER = '''
from urllib.parse import unquote
from realtime import Limits, RealtimeKernel, WebSocketTransport

transport = WebSocketTransport(
    0, "/realtime", allowed_origins="*", authenticate=lambda request: unquote(request.query_string) or None
)
limits = Limits(presence_quiet=0.01, presence_busy=0.02, presence_listed=4)
kernel = RealtimeKernel([transport], limits=limits)
kernel.presence.configure(update=True)
kernel.rooms.configure("*", join=True)

@kernel.on("close:me")
def close_me(message, context, toolkit):
    kernel.disconnect(context.id, 4013, reason="retry_after=600")

kernel.run()
'''

# `until` waits for what is told: as much as is needed of it comes, in however many batches.
HELPERS = """
const person = (name) => connect(`${url}?${name}`);
const ids = (presences) => Object.entries(presences).map(([key, { metas }]) => [key, metas.length]).sort();
function until(client, holds) {
  return new Promise((resolve) => {
    const look = () => holds() && resolve(off());
    const off = client.on("client:presence", look);
    look();
  });
}
function watching(client) {
  const seen = { joins: [], leaves: [], updates: [] };
  client.on("client:presence", ({ room, total, ...change }) => {
    for (const kind in change) seen[kind].push(...Object.keys(change[kind]));
  });
  return seen;
}
"""

Run = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    script = tmp_path_factory.mktemp("server") / "server.py"
    script.write_text(SERVER)
    program = Program(script)
    with program:
        yield program.wait_for(r"ws://127\.0\.0\.1:\d+/realtime")[0]
        program.stop()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a script to its end; return what it printed."""
    played: list[NodeScript] = []

    def start(script: str, url: str) -> list[Any]:
        played.append(NodeScript(HELPERS + script, url, tmp_path))
        return played[-1].finish()

    yield start
    for one in played:
        one.close()


def test_who_comes_changes_and_goes_is_told_and_kept(run: Run, address: str) -> None:
    script = """
      const [watcher, ada, second, odd] = ["watcher", "ada", "ada", "__proto__"].map(person);
      const seen = watching(watcher);
      const state = () => watcher.presence.state("tea")?.presences ?? {};
      print(watcher.presence.state("tea"));
      await watcher.join("tea", { presence: true });
      print([ids(state()), seen.joins]);
      await ada.join("tea");
      await until(watcher, () => state().ada);
      await second.join("tea");
      await until(watcher, () => state().ada.metas.length === 2);
      await second.presence.update({ mood: "merry" });
      await until(watcher, () => state().ada.metas.some(({ id, mood }) => id === second.id && mood === "merry"));
      await odd.join("tea");
      await until(watcher, () => Object.hasOwn(state(), "__proto__"));
      print([ids(state()), watcher.presence.state("tea").total]);
      await Promise.all([odd, second].map((client) => client.leave("tea")));
      await until(watcher, () => seen.leaves.length && state().ada.metas.length === 1);
      await ada.leave("tea");
      await until(watcher, () => !state().ada);
      print([seen.joins, seen.leaves, new Set(seen.updates).has("ada"), ids(state())]);
      await watcher.leave("tea");
      print(watcher.presence.state("tea"));
      for (const client of [watcher, ada, second, odd]) client.close();
    """
    nothing, first, full, end, left = run(script, address)
    assert (nothing, first, left) == (None, [[["watcher", 1]], ["watcher"]], None)
    assert full == [[["__proto__", 1], ["ada", 2], ["watcher", 1]], 3]
    assert end == [["watcher", "ada", "__proto__"], ["__proto__", "ada"], True, [["watcher", 1]]]


def test_what_changed_is_told_after_a_reconnect_that_resumed_nothing(run: Run, address: str) -> None:
    script = """
      const [watcher, ada, ben] = ["watcher", "ada", "ben"].map(person);
      await ada.join("late");
      await watcher.join("late", { presence: true });
      watcher.send("close:me");
      await reached(watcher, "waiting");
      print(ids(watcher.presence.state("late").presences));
      await ada.leave("late");
      await ben.join("late");
      const change = next(watcher, "client:presence");
      watcher.reconnect();
      const { room, joins, leaves, updates, total } = await change;
      print([room, ids(joins), ids(leaves), Object.keys(updates).filter((key) => key !== "watcher"), total]);
      await ben.leave("late");
      await until(watcher, () => watcher.presence.state("late").total === 1);
      print(ids(watcher.presence.state("late").presences));
      for (const client of [watcher, ada, ben]) client.close();
    """
    before, change, after = run(script, address)
    assert before == [["ada", 1], ["watcher", 1]]
    assert change == ["late", [["ben", 1]], [["ada", 1]], [], 2]
    assert after == [["watcher", 1]]


def test_a_crowded_room_is_a_number_and_told_in_pages(run: Run, address: str) -> None:
    script = """
      const people = ["a", "b", "c", "d", "e", "f"].map(person);
      const [watcher] = people;
      await watcher.join("crowd", { presence: true });
      await Promise.all(people.map((client) => client.join("crowd")));
      await until(watcher, () => watcher.presence.state("crowd").total === 6);
      print(watcher.presence.state("crowd"));
      const found = [];
      let page;
      do {
        const part = await watcher.presence.page("crowd", page);
        found.push(...Object.keys(part.presences));
        page = part.page;
      } while (page !== undefined);
      print(found);
      print(await codeOf(watcher.presence.page("elsewhere")));
      for (const client of people) client.close();
    """
    assert run(script, address) == [{"total": 6}, ["a", "b", "c", "d", "e", "f"], "forbidden"]


TOLD: list[dict[str, Any]] = [
    {"type": "presence:diff", "room": "tea", "payload": {"total": 1}},  # before any state
    {"type": "presence:state", "payload": {"total": 1}},
    {"type": "presence:state", "room": "tea"},
    {"type": "presence:state", "room": "tea", "payload": {"total": "1"}},
    {"type": "said", "room": "tea", "payload": {"total": 1}},
    {
        "type": "presence:state",
        "room": "tea",
        "payload": {"presences": {"constructor": {"metas": [{"id": "1", "a": [1], "b": None}]}}, "total": 1},
    },
    {
        "type": "presence:state",
        "room": "tea",
        "payload": {"presences": {"constructor": {"metas": [{"b": None, "a": [1], "id": "1"}]}}, "total": 1},
    },
    {"type": "presence:state", "room": "tea", "payload": {"total": 101}},
    {"type": "presence:diff", "room": "tea", "payload": {"total": 150}},
    {"type": "end"},
]


def test_what_makes_no_sense_changes_nothing(run: Run) -> None:
    def serve(connection: ServerConnection) -> None:
        for text in connection:
            if json.loads(text)["type"] == "system:hello":
                connection.send('{"type": "system:welcome", "payload": {"id": "you"}}')
                for message in TOLD:
                    connection.send(json.dumps(message))

    script = """
      const client = connect();
      const changes = [];
      client.on("client:presence", (change) => changes.push(change));
      await next(client, "end");
      print(changes);
      print(client.presence.state("tea"));
      client.close();
    """
    with module("websockets.sync.server").serve(serve, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        changes, state = run(script, f"ws://127.0.0.1:{server.socket.getsockname()[1]}/")
        server.shutdown()
        thread.join()
    shown = TOLD[5]["payload"]["presences"]
    empty: dict[str, Any] = {"joins": {}, "leaves": {}, "updates": {}}
    assert changes == [
        {"room": "tea", **empty, "joins": shown, "total": 1},
        {"room": "tea", **empty, "total": 1},
        {"room": "tea", "total": 101},
        {"room": "tea", "total": 150},
    ]
    assert state == {"total": 150}
