"""The JavaScript client where nothing is to be lost: cut at random moments, on a server that dies, on another node.

A failure names its seed; ``recovery_rig.py`` says what the environment may ask for.
"""

from __future__ import annotations

import contextlib
import json
import random
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from cutting_proxy import CuttingProxy
from gevent.threadpool import ThreadPool
from javascript_rig import ChromiumScript, NodeScript, Script, websockets_server
from programs import PATIENCE
from recovery_rig import SEEDS, Node, answers_late, beside, messages, unexcused, until
from webrtc_rig import Proxy, launched

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

MESSAGES = messages(2000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """For all tests that leave it alive."""
    with Node(tmp_path_factory.mktemp("server")) as running:
        yield running


# The sender speaks to the server without the proxy: only the client under test is cut.
SPEAKER = """
const direct = connect("ws://127.0.0.1:PORT/realtime", { ...quick, timeout: 600 });
"""

FLOW = """
const client = connect(url, { ...quick, timeout: 600, session: SESSION });
const numbers = [];
const recovered = [];
client.on("number", (n) => numbers.push(n));
client.on("client:recovered", (told) => recovered.push(told));
let sent = 0;
client.answer("question", () => 42);
await client.join("kept:ROOM");
const asking = client.call("quiz");
const flowing = direct.call("flow", [0, COUNT], { room: "kept:ROOM" });
const quiet = told(); // no more cuts
print("flowing");
let done = false;
const talking = (async () => {
  while (!done && sent < 500) {
    try {
      client.send("note", `SEED:${sent}`);
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
direct.send("flow", [COUNT, COUNT + 1], { room: "kept:ROOM" });
while (numbers.at(-1) !== COUNT) await new Promise((resolve) => setTimeout(resolve, 10));
const mine = (await client.call("notes")).filter((text) => text.startsWith("SEED:"));
const heard = mine.map((text) => Number(text.split(":")[1]));
const inOrder = (list) => list.every((n, i) => n === i);
print([inOrder(numbers), numbers.length, recovered, await codeOf(asking), inOrder(heard), heard.length - sent]);
client.close();
direct.close();
"""


def flow(server: Node, seed: int, *, session: bool, room: str) -> str:
    script = SPEAKER.replace("PORT", str(server.port)) + FLOW.replace("SESSION", str(session).lower())
    return script.replace("ROOM", room).replace("COUNT", str(MESSAGES)).replace("SEED", f"{room}-{seed}")


def ask(node: Node, path: str) -> str:
    """Ask a node without a WebSocket; blocks."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.port}/{path}", timeout=10 * PATIENCE) as answer:
        return str(answer.read().decode())


def wait_for_nodes(node: Node, count: int) -> None:
    """Wait until a node knows so many beside itself."""
    until(lambda: beside(ask, node, "nodes") == str(count), f"{count} other nodes")


def cut_at_random(proxy: CuttingProxy, chance: random.Random, count: int) -> None:
    for _ in range(count):
        gevent.sleep(chance.uniform(0.02, 0.3))
        proxy.cut(silently=chance.random() < 0.3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("session", [True, False], ids=["resumed", "anew"])
def test_everything_arrives_once_and_in_order_however_often_it_is_cut(
    server: Node, tmp_path: Path, seed: int, session: bool
) -> None:
    chance = random.Random(seed)
    room = f"{'s' if session else 'a'}{seed}"
    with CuttingProxy(lambda: server.port, seed=seed) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/realtime"
        played = NodeScript(flow(server, seed, session=session, room=room), url, tmp_path)
        try:
            assert beside(played.read) == "flowing"
            cut_at_random(proxy, chance, 5)
            played.tell()
            (printed,) = beside(played.finish)
        finally:
            played.close()
    in_order, length, recovered, asked, heard_in_order, missing = printed
    assert (in_order, length) == (True, MESSAGES + 1), f"seed {seed}: {printed}"
    assert all(told["recovered"] for told in recovered), f"seed {seed}: {printed}"
    if session:
        assert recovered == [], f"seed {seed}: {printed}"
        assert asked == ["no error", 42], f"seed {seed}: {printed}"
        assert (heard_in_order, missing) == (True, 0), f"seed {seed}: {printed}"


def test_chromium_goes_on_where_it_was(server: Node) -> None:
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


# Everything that can happen -------------------------------------------------------------------------------------

WATCH = """
const client = connect(url, { ...quick, timeout: 20 }); // an answer is lost where the node that thinks of it is killed
const log = [];
client.on("number", (n) => log.push(n));
client.on("client:recovered", (told) => log.push(told));
client.on("client:left", (left) => log.push({ left, recovered: true })); // which nothing here should lead to
await client.join("kept:ROOM");
const witness = connect("HOME", quick); // at the node that lives on: it knows what the dying had said by then
await witness.join("kept:ROOM");
const quiet = told();
print("in");
await quiet;
for (let isIn = false; !isIn; ) {
  try {
    await client.join("kept:ROOM"); // not before what was missed is here
    isIn = true;
  } catch ({ code }) {
    if (code !== "closed" && code !== "timeout") throw new Error(code);
  }
}
print("calm");
const last = () => log.findLast((entry) => typeof entry === "number");
for (let turn = 0; turn < 3000 && last() !== COUNT; turn++) await new Promise((resolve) => setTimeout(resolve, 10));
print(log);
client.close();
witness.close();
"""

FAULTS = ("reset", "unnoticed", "silence", "killed", "moved")


class Cluster:
    """Two nodes that clients connect to through a proxy, and a third that lives on, from where messages come."""

    def __init__(self, folder: Path, seed: int, history: int) -> None:
        self._folder = folder
        self._history = history
        self._count = 0
        self.chance = random.Random(seed)
        self.speaker = self._start()
        self._at = 0
        self._nodes = [self._start(), self._start()]
        self.proxy = CuttingProxy(lambda: self._nodes[self._at].port, seed=seed)

    def _start(self) -> Node:
        name = f"n{self._count}"
        self._count += 1
        folder = self._folder / name
        folder.mkdir()
        peers = (self.speaker.peer,) if name != "n0" else ()
        return Node(folder, history=self._history, name=name, peers=peers, pong=2.0).start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.proxy.port}/realtime"

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.speaker.port}/"

    def ask(self, path: str) -> str:
        """Ask the node that lives on; blocks."""
        return ask(self.speaker, path)

    def fault(self, kind: str) -> None:
        """Have something happen to the client. Switches greenlets."""
        if kind == "reset":
            self.proxy.cut()
        elif kind == "unnoticed":
            self.proxy.cut(silently=True)  # by the server
        elif kind == "silence":
            self.proxy.fall_silent()
        elif kind == "moved":
            self._at = 1 - self._at
            self.proxy.cut(silently=self.chance.random() < 0.5)
        else:
            here = self._at
            beside(self._nodes[here].kill)
            if self.chance.random() < 0.5:
                self._at = 1 - here
            self._nodes[here] = beside(self._start)

    def __enter__(self) -> Cluster:
        self.proxy.__enter__()
        wait_for_nodes(self.speaker, 2)
        return self

    def __exit__(self, *error: Any) -> None:
        self.proxy.__exit__(*error)
        for node in (*self._nodes, self.speaker):
            node.kill()


@pytest.fixture(scope="module")
def browser_thread() -> Iterator[Callable[..., Any]]:
    """Run something that uses playwright where that blocks nobody: one thread, as it wants to be called from."""
    pool = ThreadPool(1)
    yield pool.apply
    pool.kill()


class Elsewhere:
    """A script whose methods run elsewhere, while the proxy's greenlets go on here."""

    def __init__(self, run: Callable[..., Any], make: Callable[[], Script]) -> None:
        self._run = run
        self._played = run(make)

    def read(self) -> Any:
        return self._run(self._played.read)

    def tell(self) -> None:
        self._run(self._played.tell)

    def finish(self) -> list[Any]:
        printed: list[Any] = self._run(self._played.finish)
        return printed


@contextlib.contextmanager
def played_in(where: str, script: str, cluster: Cluster, folder: Path, run: Callable[..., Any]) -> Iterator[Script]:
    """Run a script in node or in Chromium."""
    if where == "node":
        played = NodeScript(script, cluster.url, folder)
        try:
            yield Elsewhere(beside, lambda: played)
        finally:
            played.close()
        return
    context = launched()
    launch = run(context.__enter__)
    try:
        page = run(lambda: launch().new_page())
        run(page.set_default_timeout, (PATIENCE * 10_000,))
        yield Elsewhere(run, lambda: ChromiumScript(script, cluster.url, page, cluster.home))
    finally:
        run(context.__exit__, (None, None, None))


@pytest.mark.parametrize("where", ["node", "chromium"])
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_everything_arrives_once_and_in_order_or_is_said_to_be_missing(
    tmp_path: Path, seed: int, where: str, browser_thread: Callable[..., Any]
) -> None:
    chance = random.Random(f"{seed} in {where}")
    history = chance.choice((MESSAGES * 2, MESSAGES * 2, 200))
    kinds = [chance.choice(FAULTS) for _ in range(5)]
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(tmp_path, seed, history))
        script = WATCH.replace("ROOM", "flow").replace("COUNT", str(MESSAGES)).replace("HOME", cluster.speaker.url)
        played = stack.enter_context(played_in(where, script, cluster, tmp_path, browser_thread))
        assert played.read() == "in"
        flowing = gevent.spawn(beside, cluster.ask, f"flow/kept:flow/0/{MESSAGES}")
        for kind in kinds:
            gevent.sleep(chance.uniform(0.02, 0.5))
            cluster.fault(kind)
        flowing.get()
        played.tell()
        assert played.read() == "calm"
        beside(cluster.ask, f"flow/kept:flow/{MESSAGES}/{MESSAGES + 1}")
        (log,) = played.finish()
    told = [entry for entry in log if isinstance(entry, dict)]
    what = f"seed {seed} in {where}, {kinds}, {history} kept: {told}"
    assert not [entry for entry in told if "left" in entry], what
    assert unexcused(log, set(range(MESSAGES + 1))) is None, what
    assert [entry for entry in log if isinstance(entry, int)][-1] == MESSAGES, what
    assert history < MESSAGES or "killed" in kinds or all(entry["recovered"] for entry in told), what


RETURN = """
const client = connect(url, { ...quick, timeout: 600, session: SESSION });
const numbers = [];
client.on("number", (n) => numbers.push(n));
const { cursor } = await client.join("kept:ROOM");
await client.call("flow", [0, 5], { room: "kept:ROOM" });
const { messages } = await client.history("kept:ROOM", { limit: 2 });
print([typeof cursor, client.cursor("kept:ROOM") !== cursor, messages.map(({ payload }) => payload)]);
const before = client.id;
const recovered = next(client, "client:recovered");
"""


def test_a_server_that_was_killed_is_honest_about_what_is_lost(tmp_path: Path) -> None:
    script = RETURN + """
      print(await recovered);
      await client.call("flow", [7, 8], { room: "kept:ROOM" });
      print([client.id !== before, numbers]);
      client.close();
    """
    with Node(tmp_path) as server:
        played = NodeScript(script.replace("SESSION", "true").replace("ROOM", "tea"), server.url, tmp_path)
        try:
            assert played.read() == ["string", True, [3, 4]]
            server.kill()
            server.start()
            told = played.read()
            assert (told["room"], told["recovered"], bool(told["reason"])) == ("kept:tea", False, True)
            assert played.finish() == [[True, [0, 1, 2, 3, 4, 7]]]
        finally:
            played.close()


@pytest.mark.parametrize(("kept", "recovers"), [(10, False), (10_000, True)], ids=["exceeded", "kept"])
def test_what_a_page_missed_that_was_away_is_replayed_or_said_to_be_lost(
    tmp_path: Path, kept: int, recovers: bool
) -> None:
    script = """
      const early = connect();
      await early.join("kept:tea");
      await early.call("flow", [0, 1], { room: "kept:tea" });
      const since = early.cursor("kept:tea");
      await early.leave("kept:tea");
      await early.call("flow", [1, 1000], { room: "kept:tea" });
      const late = connect();
      const numbers = [];
      late.on("number", (n) => numbers.push(n));
      const joined = await late.join("kept:tea", { since });
      await late.call("flow", [1000, 1001], { room: "kept:tea" });
      const { recovered, reason, replayed } = joined;
      const counted = replayed === numbers.length - 1;
      print([recovered, typeof reason, "more" in joined, counted, numbers.length, numbers.at(-1)]);
      print([early.cursor("kept:tea"), joined.cursor !== since]);
      early.close();
      late.close();
    """
    with Node(tmp_path, history=kept) as server:
        played = NodeScript(script, server.url, tmp_path)
        try:
            (recovered, reason, more, counted, count, last), rest = played.finish()
        finally:
            played.close()
    assert (recovered, reason, more, last) == (recovers, "undefined" if recovers else "string", False, 1000)
    assert rest == [None, True]
    if recovers:
        assert (counted, count) == (True, 1000)


def test_asking_to_be_let_in_again_while_away_passes_over_nothing(server: Node, tmp_path: Path) -> None:
    script = SPEAKER.replace("PORT", str(server.port)) + """
      const client = connect(url, { ...quick, timeout: 600, session: false });
      const log = [];
      client.on("number", (n) => log.push(n));
      client.on("client:recovered", ({ recovered }) => log.push(recovered));
      const room = "kept:again";
      await client.join(room);
      await direct.call("flow", [0, 10], { room });
      const cut = told();
      print("in");
      await cut;
      await reached(client, "waiting");
      const again = client.join(room);
      await direct.call("flow", [10, 1010], { room }); // more than is replayed at once
      print("missed");
      await again;
      await direct.call("flow", [1010, 1020], { room });
      while (log.at(-1) !== 1019) await new Promise((resolve) => setTimeout(resolve, 10));
      print(log);
      client.close();
      direct.close();
    """
    with CuttingProxy(lambda: server.port) as proxy:
        played = NodeScript(script, f"ws://127.0.0.1:{proxy.port}/realtime", tmp_path)
        try:
            assert beside(played.read) == "in"
            proxy.refuse(True)
            proxy.cut()
            played.tell()
            assert beside(played.read) == "missed"
            proxy.refuse(False)
            assert beside(played.finish) == [[*range(1010), True, *range(1010, 1020)]]
        finally:
            played.close()


def test_an_answer_that_was_overtaken_says_less_of_where_we_are_than_the_messages(tmp_path: Path) -> None:
    script = """
      for (const since of [undefined, "somewhere", "replay"]) {
        const client = connect();
        await client.join("tea", { since });
        print(client.cursor("tea"));
        client.close();
      }
    """
    with websockets_server(answers_late) as url:
        played = NodeScript(script, url, tmp_path)
        try:
            assert played.finish() == ["at the message", "at the message", "at the answer"]
        finally:
            played.close()


def test_what_is_asked_for_in_parts_is_asked_for_once_on_the_next_connection(tmp_path: Path) -> None:
    script = """
      const client = connect(url, { ...quick, session: false });
      client.on("client:left", print);
      const recovered = next(client, "client:recovered");
      await client.join("tea");
      print(await recovered);
      client.close();
    """
    visits: list[list[str | None]] = []

    def serve(connection: ServerConnection) -> None:
        """End the first connection after it was joined, the second between two parts."""
        visits.append([])
        for text in connection:
            asked = json.loads(text)
            if asked["type"] == "system:hello":
                connection.send(json.dumps({"type": "system:welcome", "payload": {"id": "you"}}))
                continue
            visits[-1].append((asked.get("payload") or {}).get("since"))
            result = {"cursor": f"c{len(visits)}", "recovered": True, "replayed": 0, "more": len(visits) == 2}
            connection.send(json.dumps({"type": "system:ack", "payload": {"ack": asked["ack"], "result": result}}))
            if len(visits) < 3:
                return connection.close(4008)
        return None

    with websockets_server(serve) as url:
        played = NodeScript(script, url, tmp_path)
        try:
            assert played.finish() == [{"room": "tea", "recovered": True, "replayed": 0}]
        finally:
            played.close()
    assert visits == [[None], ["c1"], ["c2"]]


def test_another_node_replays_what_was_missed(tmp_path: Path) -> None:
    script = RETURN + """
      print("ready");
      print(await recovered);
      await client.call("flow", [9, 10], { room: "kept:ROOM" });
      print(numbers);
      client.close();
    """
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    speaker = SPEAKER + """
      await direct.join("kept:ROOM");
      const cut = told();
      print("there");
      await cut;
      await direct.call("flow", [5, 9], { room: "kept:ROOM" });
      const over = told();
      print("said");
      await over;
      direct.close();
    """
    with Node(tmp_path / "one", name="n0") as one, Node(tmp_path / "other", name="n1", peers=(one.peer,)) as other:
        for node in (one, other):
            wait_for_nodes(node, 1)
        chosen = [one.port]
        with CuttingProxy(lambda: chosen[0]) as proxy:
            url = f"ws://127.0.0.1:{proxy.port}/realtime"
            away = NodeScript(script.replace("SESSION", "false").replace("ROOM", "tea"), url, tmp_path / "one")
            text = speaker.replace("PORT", str(other.port)).replace("ROOM", "tea")
            there = NodeScript(text, other.url, tmp_path / "other")
            try:
                assert beside(there.read) == "there"
                assert beside(away.read)[0] == "string"
                assert beside(away.read) == "ready"
                chosen[0] = 1  # where nobody listens
                proxy.cut()
                there.tell()
                assert beside(there.read) == "said"
                chosen[0] = other.port
                assert beside(away.read) == {"room": "kept:tea", "recovered": True, "replayed": 4}
                assert beside(away.finish) == [list(range(10))]
                there.tell()
                beside(there.finish)
            finally:
                away.close()
                there.close()
