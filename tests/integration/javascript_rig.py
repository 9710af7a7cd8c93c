"""The JavaScript client in node and in Chromium: scripts that run there, and the server they talk to."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from programs import PATIENCE, Program
from requirements import module, node_with

import realtime

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from websockets.sync.server import ServerConnection

__all__ = ["CLIENT", "ChromiumScript", "NodeScript", "Script", "start_server", "websockets_server"]

CLIENT = Path(realtime.__file__).parent / "client" / "javascript"

SERVER = '''
import itertools
import sys
from realtime import CallFailed, Heartbeat, RealtimeKernel, Reject, WebSocketTransport

def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [b"<!doctype html><title>empty</title><link rel='icon' href='data:,'>"]

port, interval, timeout = sys.argv[1:]
heartbeat = Heartbeat(interval=float(interval), timeout=float(timeout))
transport = WebSocketTransport(int(port), "/realtime", app=page, allowed_origins="*", heartbeat=heartbeat)
kernel = RealtimeKernel([transport])
kernel.presence.configure(update=True)
kernel.rooms.configure("open:*", join=True)
kernel.rooms.configure("first visit", join=lambda context, room: not visited.append(context.id) and len(visited) == 1)
visited = []
notes = []

@kernel.on("echo")
def echo(message, context, toolkit):
    return {"payload": message.payload, "room": message.room, "target": message.target}

@kernel.on("refuse")
def refuse(message, context, toolkit):
    raise Reject("not today", code=message.payload)

@kernel.on("fail")
def fail(message, context, toolkit):
    raise RuntimeError("inside")

@kernel.on("count")
def count(message, context, toolkit):
    yield from range(message.payload)
    return "counted"

@kernel.on("count:break")
def count_break(message, context, toolkit):
    yield from range(message.payload)
    raise Reject("no further", code="tired")

@kernel.on("count:slowly")
def count_slowly(message, context, toolkit):
    for number in range(message.payload["items"]):
        toolkit.wait_for("go", timeout=60)
        yield number

@kernel.on("count:forever")
def count_forever(message, context, toolkit):
    try:
        for number in itertools.count():
            yield number
            toolkit.wait_for("go", timeout=60)
    finally:
        notes.append("ended")

@kernel.on("hang")
def hang(message, context, toolkit):
    print("hanging", flush=True)
    toolkit.wait_for("go on", timeout=600)

@kernel.on("note")
def note(message, context, toolkit):
    notes.append(message.payload)

@kernel.on("notes")
def all_notes(message, context, toolkit):
    return notes

@kernel.on("ask:me")
def ask_me(message, context, toolkit):
    try:
        return toolkit.call(context.id, {"type": message.payload, "payload": 20})
    except CallFailed as error:
        raise Reject(error.message, code=error.code)

@kernel.on("tell:room")
def tell_room(message, context, toolkit):
    toolkit.rooms.broadcast({"type": "told", "payload": message.payload}, message.room)

@kernel.on("close:me")
def close_me(message, context, toolkit):
    kernel.disconnect(context.id, **message.payload)

kernel.run()
'''


def start_server(folder: Path, port: int = 0, heartbeat: tuple[float, float] = (25.0, 10.0)) -> tuple[Program, int]:
    """Start the server; return it with its port."""
    script = folder / "server.py"
    script.write_text(SERVER)
    program = Program(script, str(port), *map(str, heartbeat))
    return program, int(program.wait_for(r"ws://127\.0\.0\.1:(\d+)/realtime")[1])


@contextlib.contextmanager
def websockets_server(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A server of the websockets library in threads of its own; gives its address."""
    with module("websockets.sync.server").serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        server.shutdown()
        thread.join()


# What a script finds beside `connect` and the other names of the module. It is over when its last line is; in node
# the process has to end then by itself.
PRELUDE = """
const { CloseCode, RealtimeClient, RealtimeError, mayReconnect } = module;
const quick = { backoff: { min: 0.05, max: 0.2 } };
const connect = (address = url, options = {}) => module.connect(address, { ...common, ...options });

/** The state, once the client is in it. */
function reached(client, name) {
  if (client.state === name) return Promise.resolve({ name });
  return new Promise((resolve) => {
    const off = client.on("client:state", (state) => {
      if (state.name === name) resolve(state, off());
    });
  });
}

const next = (client, type) => new Promise((resolve) => {
  const off = client.on(type, (payload) => resolve(payload, off()));
});

const codeOf = (promise) => promise.then((value) => ["no error", value], (error) => error.code ?? String(error));

function thrown(action) {
  try {
    return ["no error", action()];
  } catch (error) {
    return error.code ?? String(error);
  }
}

async function all(stream, items = []) {
  for await (const item of stream) items.push(item);
  return items;
}
"""


class Script(Protocol):
    """A script that runs beside the test."""

    def read(self) -> Any:
        """Return what it prints next."""

    def tell(self) -> None:
        """Let its next ``await told()`` pass."""

    def finish(self) -> list[Any]:
        """Wait for its end and return what it printed since the last ``read``; fails if the script did."""


NODE = """
import { createInterface } from "node:readline";
const [url, path, ws] = process.argv.slice(1);
const module = await import(path);
const { WebSocket } = await import(ws);
const common = { WebSocket };
const print = (value) => console.log(JSON.stringify(value));
const input = createInterface({ input: process.stdin });
const told = () => new Promise((resolve) => input.once("line", resolve));
"""


class NodeScript:
    """A script in a node of its own, with npm's ``ws``."""

    def __init__(self, script: str, url: str, folder: Path) -> None:
        node, modules = node_with("ws")
        program = f"{NODE}{PRELUDE}{script}\ninput.close();"
        arguments = [url, str(CLIENT / "realtime.js"), str(modules / "ws" / "wrapper.mjs")]
        self._errors = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            [node, "--input-type=module", "-e", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def _line(self) -> str | None:
        try:
            return self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"nothing was printed in time: {self._said()}") from None

    def read(self) -> Any:
        line = self._line()
        assert line is not None, f"it ended: {self._said()}"
        return json.loads(line)

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finish(self) -> list[Any]:
        printed = []
        while (line := self._line()) is not None:
            printed.append(json.loads(line))
        assert self._process.wait(PATIENCE) == 0, self._said()
        return printed

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()


CHROMIUM = """
async ([script, prelude, url]) => {
  const module = await import("/realtime/client.js");
  const page = (window.page = { printed: [], told: 0, wake: () => {}, ended: null });
  const print = (value) => void page.printed.push(JSON.parse(JSON.stringify(value ?? null)));
  const told = async () => {
    while (!page.told) await new Promise((resolve) => (page.wake = resolve));
    page.told--;
  };
  const run = new Function("module", "url", "common", "print", "told", `${prelude}return (async () => {${script}})()`);
  run(module, url, {}, print, told).then(() => (page.ended = "well"), (error) => (page.ended = `${error.stack}`));
}
"""


class ChromiumScript:
    """A script in a page that a server of ours serves."""

    def __init__(self, script: str, url: str, page: Page, home: str) -> None:
        self._page = page
        self._read = 0
        page.goto(home)
        page.evaluate(CHROMIUM, [script, PRELUDE, url])

    def read(self) -> Any:
        self._page.wait_for_function(f"page.printed.length > {self._read} || page.ended")
        printed = self._page.evaluate("page.printed")
        assert len(printed) > self._read, f"it ended: {self._page.evaluate('page.ended')}"
        self._read += 1
        return printed[self._read - 1]

    def tell(self) -> None:
        self._page.evaluate("page.told++, page.wake()")

    def finish(self) -> list[Any]:
        self._page.wait_for_function("page.ended")
        assert self._page.evaluate("page.ended") == "well"
        printed: list[Any] = self._page.evaluate("page.printed")
        return printed[self._read :]
