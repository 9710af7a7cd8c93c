"""The JavaScript client where nothing is to be lost: cut at random moments, on a server that dies, on another node."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from cutting_proxy import CuttingProxy
from javascript_rig import ChromiumScript, NodeScript
from programs import PATIENCE, Program
from webrtc_rig import Proxy, launched

SEEDS = int(os.environ.get("REALTIME_RECOVERY_SEEDS", "2"))
MESSAGES = 2000

SERVER = '''
import sys
import gevent
import gevent.event
from realtime import Heartbeat, Limits, RealtimeKernel, WebSocketTransport
from realtime import MeshOptions, PeerMeshTransport

def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [b"<!doctype html><title>empty</title><link rel='icon' href='data:,'>"]

port, history, grace, name, *peers = sys.argv[1:]
mesh = PeerMeshTransport(0, node_id=name, peers=peers)
sockets = WebSocketTransport(
    int(port), "/realtime", app=page, allowed_origins="*", heartbeat=Heartbeat(interval=0.5, timeout=2.0)
)
kernel = RealtimeKernel([sockets, mesh], limits=Limits(session_grace=float(grace)))
kernel.rooms.configure("chat:*", join=True, history=int(history), ttl=600.0, recover=True)
got = []

@kernel.on("number")
def number(message, context, toolkit):
    got.append(message.payload)

@kernel.on("numbers")
def numbers(message, context, toolkit):
    return got

@kernel.on("question")
def question(message, context, toolkit):
    return toolkit.call(context.id, {"type": "answer?"}, timeout=600)

@kernel.on("flow")
def flow(message, context, toolkit):
    first, last = message.payload
    for n in range(first, last):
        kernel.broadcast({"type": "n", "payload": n}, message.room)
        if n % 20 == 0:
            gevent.sleep(0.005)
    return last

@kernel.on("members")
def members(message, context, toolkit):
    return len(kernel.rooms.members(message.room))

kernel.start()
print(f"ports {sockets.port} {mesh.port}", flush=True)
gevent.event.Event().wait()  # until it is killed
'''


class Server:
    """A node in a process of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        history: int = 10_000,
        grace: float = 600.0,
        name: str = "n0",
        peers: tuple[str, ...] = (),
    ) -> None:
        script = folder / "server.py"
        script.write_text(SERVER)
        self.program = Program(script, str(port), str(history), str(grace), name, *peers)
        found = self.program.wait_for(r"ports (\d+) (\d+)")
        self.port, self.mesh = int(found[1]), int(found[2])

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/realtime"

    def __enter__(self) -> Server:
        self.program.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.program.__exit__(*error)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For all tests that leave it alive."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def in_hub(function: Any, *arguments: Any) -> Any:
    """Call what blocks in a thread, while the proxy's greenlets go on in this one."""
    return gevent.get_hub().threadpool.apply(function, arguments)


# The sender speaks to the server without the proxy: only the client under test is cut.
SPEAKER = """
const direct = connect("ws://127.0.0.1:PORT/realtime", { ...quick, timeout: 600 });
"""

FLOW = """
const client = connect(url, { ...quick, timeout: 600, session: SESSION });
const numbers = [];
const recovered = [];
client.on("n", (n) => numbers.push(n));
client.on("client:recovered", (told) => recovered.push(told));
let sent = 0;
client.answer("answer?", () => 42);
await client.join("chat:ROOM");
const asking = client.call("question");
const flowing = direct.call("flow", [0, COUNT], { room: "chat:ROOM" });
const quiet = told(); // no more cuts
print("flowing");
let done = false;
const talking = (async () => {
  while (!done && sent < 500) {
    try {
      client.send("number", `SEED:${sent}`);
      sent++;
    } catch ({ code }) {
      if (code !== "queue_full") throw new Error(code);
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
})();
await flowing;
await quiet;
done = true;
await talking;
direct.send("flow", [COUNT, COUNT + 1], { room: "chat:ROOM" });
while (numbers.at(-1) !== COUNT) await new Promise((resolve) => setTimeout(resolve, 10));
const mine = (await client.call("numbers")).filter((text) => text.startsWith("SEED:"));
const heard = mine.map((text) => Number(text.split(":")[1]));
const inOrder = (list) => list.every((n, i) => n === i);
print([inOrder(numbers), numbers.length, recovered, await codeOf(asking), inOrder(heard), heard.length - sent]);
client.close();
direct.close();
"""


def flow(server: Server, seed: int, *, session: bool, room: str) -> str:
    script = SPEAKER.replace("PORT", str(server.port)) + FLOW.replace("SESSION", str(session).lower())
    return script.replace("ROOM", room).replace("COUNT", str(MESSAGES)).replace("SEED", f"{room}-{seed}")


def cut_at_random(proxy: CuttingProxy, chance: random.Random, count: int) -> None:
    for _ in range(count):
        gevent.sleep(chance.uniform(0.02, 0.3))
        proxy.cut(silently=chance.random() < 0.3)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("session", [True, False], ids=["resumed", "anew"])
def test_everything_arrives_once_and_in_order_however_often_it_is_cut(
    server: Server, tmp_path: Path, seed: int, session: bool
) -> None:
    chance = random.Random(seed)
    room = f"{'s' if session else 'a'}{seed}"
    with CuttingProxy(lambda: server.port, seed=seed) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/realtime"
        played = NodeScript(flow(server, seed, session=session, room=room), url, tmp_path)
        try:
            assert in_hub(played.read) == "flowing"
            cut_at_random(proxy, chance, 5)
            played.tell()
            (printed,) = in_hub(played.finish)
        finally:
            played.close()
    in_order, length, recovered, asked, heard_in_order, missing = printed
    assert (in_order, length) == (True, MESSAGES + 1), f"seed {seed}: {printed}"
    assert all(told["recovered"] for told in recovered), f"seed {seed}: {printed}"
    if session:
        assert recovered == [], f"seed {seed}: {printed}"
        assert asked == ["no error", 42], f"seed {seed}: {printed}"
        assert (heard_in_order, missing) == (True, 0), f"seed {seed}: {printed}"


def test_chromium_goes_on_where_it_was(server: Server) -> None:
    script = flow(server, 0, session=True, room="chromium")
    chance = random.Random(0)
    with Proxy(server.port) as proxy, launched() as launch:
        page = launch().new_page()
        page.set_default_timeout(PATIENCE * 1000)
        url = f"ws://127.0.0.1:{proxy.port}/realtime"
        played = ChromiumScript(script, url, page, f"http://127.0.0.1:{server.port}/")
        assert played.read() == "flowing"
        for _ in range(4):
            page.wait_for_timeout(chance.uniform(20, 200))
            proxy.reset()
        played.tell()
        (printed,) = played.finish()
    assert printed == [True, MESSAGES + 1, [], ["no error", 42], True, 0]


RETURN = """
const client = connect(url, { ...quick, timeout: 600, session: SESSION });
const numbers = [];
client.on("n", (n) => numbers.push(n));
const { cursor } = await client.join("chat:ROOM");
await client.call("flow", [0, 5], { room: "chat:ROOM" });
const { messages } = await client.history("chat:ROOM", { limit: 2 });
print([typeof cursor, client.cursor("chat:ROOM") !== cursor, messages.map(({ payload }) => payload)]);
const before = client.id;
const recovered = next(client, "client:recovered");
"""


def test_a_server_that_was_killed_is_honest_about_what_is_lost(tmp_path: Path) -> None:
    script = RETURN + """
      print(await recovered);
      await client.call("flow", [7, 8], { room: "chat:ROOM" });
      print([client.id !== before, numbers]);
      client.close();
    """
    first = Server(tmp_path)
    with first:
        played = NodeScript(script.replace("SESSION", "true").replace("ROOM", "tea"), first.url, tmp_path)
        try:
            assert played.read() == ["string", True, [3, 4]]
            first.program.stop(signal.SIGKILL)
            with Server(tmp_path, port=first.port):
                told = played.read()
                assert (told["room"], told["recovered"], bool(told["reason"])) == ("chat:tea", False, True)
                assert played.finish() == [[True, [0, 1, 2, 3, 4, 7]]]
        finally:
            played.close()


@pytest.mark.parametrize(("kept", "recovers"), [(10, False), (10_000, True)], ids=["exceeded", "kept"])
def test_what_a_page_missed_that_was_away_is_replayed_or_said_to_be_lost(
    tmp_path: Path, kept: int, recovers: bool
) -> None:
    script = """
      const early = connect();
      await early.join("chat:tea");
      await early.call("flow", [0, 1], { room: "chat:tea" });
      const since = early.cursor("chat:tea");
      await early.leave("chat:tea");
      await early.call("flow", [1, 1000], { room: "chat:tea" });
      const late = connect();
      const numbers = [];
      late.on("n", (n) => numbers.push(n));
      const joined = await late.join("chat:tea", { since });
      await late.call("flow", [1000, 1001], { room: "chat:tea" });
      const { recovered, reason, replayed } = joined;
      const counted = replayed === numbers.length - 1;
      print([recovered, typeof reason, "more" in joined, counted, numbers.length, numbers.at(-1)]);
      print([early.cursor("chat:tea"), joined.cursor !== since]);
      early.close();
      late.close();
    """
    with Server(tmp_path, history=kept) as server:
        played = NodeScript(script, server.url, tmp_path)
        try:
            (recovered, reason, more, counted, count, last), rest = played.finish()
        finally:
            played.close()
    assert (recovered, reason, more, last) == (recovers, "undefined" if recovers else "string", False, 1000)
    assert rest == [None, True]
    if recovers:
        assert (counted, count) == (True, 1000)


def test_another_node_replays_what_was_missed(tmp_path: Path) -> None:
    script = RETURN + """
      print("ready");
      print(await recovered);
      await client.call("flow", [9, 10], { room: "chat:ROOM" });
      print(numbers);
      client.close();
    """
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    speaker = SPEAKER + """
      await direct.join("chat:ROOM");
      const cut = told();
      print("there");
      await cut;
      await direct.call("flow", [5, 9], { room: "chat:ROOM" });
      const over = told();
      print("said");
      await over;
      direct.close();
    """
    with Server(tmp_path / "one", name="n0") as one:
        peers = (f"127.0.0.1:{one.mesh}",)
        with Server(tmp_path / "other", name="n1", peers=peers) as other:
            chosen = [one.port]
            with CuttingProxy(lambda: chosen[0]) as proxy:
                url = f"ws://127.0.0.1:{proxy.port}/realtime"
                away = NodeScript(script.replace("SESSION", "false").replace("ROOM", "tea"), url, tmp_path / "one")
                text = speaker.replace("PORT", str(other.port)).replace("ROOM", "tea")
                there = NodeScript(text, other.url, tmp_path / "other")
                try:
                    assert in_hub(there.read) == "there"
                    assert in_hub(away.read)[0] == "string"
                    assert in_hub(away.read) == "ready"
                    chosen[0] = 1  # where nobody listens
                    proxy.cut()
                    there.tell()
                    assert in_hub(there.read) == "said"
                    chosen[0] = other.port
                    assert in_hub(away.read) == {"room": "chat:tea", "recovered": True, "replayed": 4}
                    assert in_hub(away.finish) == [list(range(10))]
                    there.tell()
                    in_hub(there.finish)
                finally:
                    away.close()
                    there.close()
