"""The JavaScript client as a file: served to browsers, typed, and in the package."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from javascript_rig import CLIENT
from programs import PATIENCE, ROOT
from requirements import NPM_PACKAGES, node_with

from realtime import RealtimeKernel, WebSocketTransport
from realtime.transports.websocket import WebSocket, serve

if TYPE_CHECKING:
    from tests.conftest import InThread

COMPILER_PATIENCE = 120.0
CONTENT = (CLIENT / "realtime.js").read_bytes()


# Served ---------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


Ask = Callable[..., Answer]


def answer_of(port: int, path: str, method: str, headers: dict[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers every path that is left to it."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the application's"]


@pytest.fixture
def ask(in_thread: InThread) -> Iterator[Callable[..., Ask]]:
    """Start a kernel's server with these options; return a function that asks it over HTTP."""
    kernels: list[RealtimeKernel] = []

    def start(path: str = "/realtime", **options: Any) -> Ask:
        transport = WebSocketTransport(0, path, **options)
        kernel = RealtimeKernel([transport], log_level="error")
        kernels.append(kernel)
        kernel.start()

        def request(path: str, method: str = "GET", **headers: str) -> Answer:
            return in_thread(answer_of, transport.port, path, method, headers)

        return request

    yield start
    for kernel in kernels:
        kernel.stop()


@pytest.mark.parametrize(
    ("path", "found"),
    [("/realtime", "/realtime/client.js"), ("/", "/client.js"), ("/a/b/", "/a/b/client.js")],
)
@pytest.mark.parametrize("application", [None, app], ids=["alone", "before an application"])
def test_the_client_is_below_the_path_of_the_websocket(
    ask: Callable[..., Ask], path: str, found: str, application: Any
) -> None:
    asked = ask(path, app=application)
    answer = asked(found)
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert asked(f"{found}?v=2", Origin="https://elsewhere.example").body == CONTENT
    assert asked("/elsewhere/client.js").status == (404 if application is None else 200)
    assert asked(path).status == 426  # as before: that is where WebSockets connect


def test_head_has_the_headers_of_get_and_other_methods_are_refused(ask: Callable[..., Ask]) -> None:
    asked = ask(app=app)
    got, head = asked("/realtime/client.js"), asked("/realtime/client.js", "HEAD")
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Cache-Control"):
        assert head.headers[name] == got.headers[name]
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refused = asked("/realtime/client.js", method)
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_a_browser_that_has_it_already_is_told_so(ask: Callable[..., Ask]) -> None:
    asked = ask()
    tag = asked("/realtime/client.js").headers["ETag"]
    for known in (tag, f"W/{tag}", f'"older", {tag}', "*"):
        current = asked("/realtime/client.js", **{"If-None-Match": known})
        assert (current.status, current.body, current.headers["ETag"]) == (304, b"", tag)
    assert asked("/realtime/client.js", "HEAD", **{"If-None-Match": tag}).status == 304
    for other in ('"older"', tag.strip('"'), ""):
        assert asked("/realtime/client.js", **{"If-None-Match": other}).status == 200


def test_the_plain_layer_does_not_serve_it(in_thread: InThread) -> None:
    def echo(ws: WebSocket) -> None:
        for data in ws:
            ws.send(data)

    server = serve(echo, 0, path="/echo")
    try:
        assert in_thread(answer_of, server.port, "/echo/client.js", "GET", {}).status == 404
    finally:
        server.stop()


# Typed ----------------------------------------------------------------------------------------------------------


def compile_with(*arguments: str, cwd: Path) -> str:
    """Run the TypeScript compiler; return what it says."""
    node, modules = node_with("typescript")
    command = [node, str(modules / "typescript/bin/tsc"), *arguments]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=COMPILER_PATIENCE, check=False
    )
    assert bool(done.stdout) is (done.returncode != 0), done.stderr
    return done.stdout


def test_the_client_is_typed_strictly_and_its_declarations_are_in_step(tmp_path: Path) -> None:
    options = json.loads((CLIENT / "tsconfig.json").read_text())["compilerOptions"]
    assert (options["strict"], options["checkJs"]) == (True, True)
    assert compile_with("-p", str(CLIENT), "--outDir", str(tmp_path), cwd=tmp_path) == ""
    remedy = f"npx -p typescript@{NPM_PACKAGES['typescript']} tsc -p realtime/client/javascript"
    in_step = (tmp_path / "realtime.d.ts").read_text() == (CLIENT / "realtime.d.ts").read_text()
    assert in_step, f"realtime.d.ts is not what realtime.js says: run {remedy}"


CONSUMER = """
import { connect, CloseCode, RealtimeError, mayReconnect } from "realtime-client";
import type { Answer, Message, Options, RealtimeClient, State } from "realtime-client";

const trace: Options["trace"] = ({ sent, text }) => console.log(sent ? "sent" : "received", text.length);
const options: Options = { backoff: { max: 30 }, queue: { messages: 10 }, trace };
const client: RealtimeClient = connect("ws://localhost/realtime", options);

client.on("client:state", (state: State) => console.log(state.name, state.retryIn?.toFixed(1)));
client.on("client:recovered", ({ room, recovered, replayed }) => console.log(room.length, recovered, replayed));
client.on("client:presence", ({ joins, total }) => console.log(joins?.["ada"]?.metas[0]?.id.length, total));
client.on("client:left", ({ room, code }) => console.log(room.length, code.length));
const off: () => void = client.on("chat:message", (payload: { body: string }, message: Message) => {
  console.log(payload.body.length, message.room?.length);
});
off();
client.send("chat:message", { any: ["thing"] }, { room: "lobby", target: ["a"] });
client.answer("name?", async () => "Ada");

async function talk(): Promise<number> {
  await client.ready;
  const answer: Answer<{ total: number }, string> = client.call("log:tail", null, { timeout: 3 });
  for await (const line of answer) console.log(line.toUpperCase());
  const { members, total } = await client.join("lobby");
  const { cursor } = await client.join("chat:7", { since: client.cursor("chat:7") ?? undefined });
  const { messages, more } = await client.history("chat:7", { limit: 10, since: cursor });
  console.log(messages[0]?.type.length, more);
  await client.presence.update({ name: "Ada" });
  const here = await client.presence.list("lobby");
  await client.join("lobby", { presence: true });
  console.log(client.presence.state("lobby")?.presences?.["ada"]?.metas.length);
  console.log((await client.presence.page("lobby", null)).page?.length);
  console.log(members[0]?.id, total, here.total, client.id?.length, client.heartbeat?.interval);
  try {
    return (await client.call<number>("sum", [1, 2])) + (await answer).total;
  } catch (error) {
    if (error instanceof RealtimeError && error.code === "timeout") return CloseCode.NORMAL;
    throw error;
  } finally {
    await client.leave("lobby");
    client.close(1000, "done");
  }
}

talk().then((sum) => console.log(sum, mayReconnect(4008)));
"""

MISTAKES = {
    'client.send(7);': "not assignable to parameter of type 'string'",
    'client.send("chat", 1, { rooms: "lobby" });': "'rooms' does not exist",
    'connect("/realtime", { retries: 3 });': "'retries' does not exist",
    'client.call<number>("sum").then((sum) => sum.length);': "Property 'length' does not exist on type 'number'",
    'client.state = "open";': "read-only property",
    'client.presence = client.presence;': "read-only property",
    'client.id.length;': "possibly 'null'",
}
STRICT = ("--strict", "--noEmit", "--target", "es2022", "--module", "nodenext")


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    """A folder into which the client is installed as ``realtime-client``."""
    (tmp_path / "node_modules").mkdir()
    shutil.copytree(CLIENT, tmp_path / "node_modules" / "realtime-client")
    return tmp_path


def test_typescript_programs_use_it_and_their_mistakes_are_found(consumer: Path) -> None:
    (consumer / "consumer.mts").write_text(CONSUMER)
    (consumer / "mistakes.mts").write_text(CONSUMER + "\n".join(MISTAKES))
    first = CONSUMER.count("\n") + 1
    said = compile_with("consumer.mts", *STRICT, cwd=consumer)
    assert said == ""
    found = compile_with("mistakes.mts", *STRICT, cwd=consumer)
    for line, expected in enumerate(MISTAKES.values(), first):
        (error,) = [text for text in found.splitlines() if text.startswith(f"mistakes.mts({line},")]
        assert expected in found[found.index(error) :]


def test_node_imports_it_by_its_name(consumer: Path) -> None:
    node, _ = node_with("typescript")
    script = 'import * as client from "realtime-client"; console.log(Object.keys(client).join())'
    done = subprocess.run(
        [node, "--input-type=module", "-e", script],
        cwd=consumer,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    exported = set(done.stdout.strip().split(","))
    assert {"connect", "CloseCode", "RealtimeClient", "RealtimeError", "mayReconnect"} <= exported


def said_by_node(script: str, *options: str) -> str:
    node, _ = node_with("typescript")
    command = [node, *options, "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("has_one", [True, False])
def test_node_needs_nothing_but_a_websocket(in_thread: InThread, has_one: bool) -> None:
    version = int(in_thread(said_by_node, "console.log(process.versions.node.split('.')[0])"))
    options = ["--experimental-websocket"] if has_one and version < 22 else []
    transport = WebSocketTransport(0, "/realtime")
    kernel = RealtimeKernel([transport], log_level="error")
    kernel.on("add", lambda message, context, toolkit: sum(message.payload))
    kernel.start()
    script = f"""
      import {{ connect }} from {json.dumps(str(CLIENT / "realtime.js"))};
      {"" if has_one else "delete globalThis.WebSocket;"}
      try {{
        const client = connect("ws://127.0.0.1:{transport.port}/realtime");
        console.log(await client.call("add", [1, 2]));
        client.close();
      }} catch (error) {{
        console.log(error.message);
      }}
    """
    try:
        said = in_thread(said_by_node, script, *options)
    finally:
        kernel.stop()
    expected = "3" if has_one else "options.WebSocket: must be a class, such as npm's ws where there is none built in"
    assert said.startswith(expected)


# In the package -------------------------------------------------------------------------------------------------


def test_the_built_package_has_the_client(tmp_path: Path) -> None:
    source, built = tmp_path / "source", tmp_path / "built"
    shutil.copytree(ROOT / "realtime", source / "realtime", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys, setuptools; setuptools.setup(script_args=['build_py', '--build-lib', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(built)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=COMPILER_PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packed = {path.name: path.read_bytes() for path in (built / "realtime" / "client" / "javascript").iterdir()}
    assert packed == {path.name: path.read_bytes() for path in CLIENT.iterdir()}
    assert {"package.json", "realtime.d.ts", "realtime.js"} <= set(packed)
