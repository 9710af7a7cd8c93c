"""npm's ``ws`` as an independent client: every script here is a Node program against a server of ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from requirements import node_with

from realtime import RealtimeKernel, WebSocketTransport
from realtime.transports.websocket import PlainServer, WebSocket, serve

if TYPE_CHECKING:
    from tests.conftest import InThread

PATIENCE = 60.0  # seconds a script may take before the test fails

# open() resolves to a socket with next() for messages and closed for the end; print() what the test compares.
PRELUDE = """
const WebSocket = require("ws");
const assert = require("node:assert/strict");
const url = process.argv[1];

function open(address = url, protocols = [], options = {}) {
  const ws = new WebSocket(address, protocols, options);
  const waiting = [], arrived = [];
  ws.on("message", (data, binary) => {
    const message = binary ? data : data.toString();
    waiting.length ? waiting.shift()(message) : arrived.push(message);
  });
  ws.next = () => arrived.length ? Promise.resolve(arrived.shift()) : new Promise((resolve) => waiting.push(resolve));
  ws.nextJson = async () => JSON.parse(await ws.next());
  ws.sendJson = (message) => ws.send(JSON.stringify(message));
  ws.closed = new Promise((resolve) => ws.on("close", (code, reason) => resolve([code, reason.toString()])));
  ws.once("upgrade", (response) => { ws.agreed = response.headers["sec-websocket-extensions"] ?? ""; });
  return new Promise((resolve, reject) => {
    ws.once("open", () => resolve(ws));
    ws.once("error", reject);
  });
}
const print = (value) => console.log(JSON.stringify(value));
"""

Run = Callable[..., list[Any]]


@pytest.fixture
def run(in_thread: InThread) -> Run:
    """Run a script with an address; return what it printed."""
    node, modules = node_with("ws")

    def run_script(script: str, url: str) -> list[Any]:
        program = f"{PRELUDE}(async () => {{{script}}})().catch((e) => {{ console.error(e); process.exit(1); }})"
        done = in_thread(
            subprocess.run,
            [node, "-e", program, url],
            env={**os.environ, "NODE_PATH": str(modules)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run_script


@pytest.fixture
def plain() -> Iterator[Callable[..., PlainServer]]:
    """Start plain servers that are stopped when the test ends."""
    servers: list[PlainServer] = []

    def start(handler: Callable[[WebSocket], object], **options: Any) -> PlainServer:
        servers.append(serve(handler, 0, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


Plain = Callable[..., PlainServer]


def echo(ws: WebSocket) -> None:
    for data in ws:
        ws.send(data)


ECHOES = """
  const ws = await open(url, [], OPTIONS);
  const sizes = [0, 1, 125, 126, 65535, 65536, 1000000];
  for (const size of sizes) {
    ws.send("é".repeat(size / 2) + "x".repeat(size % 2));
    assert.equal(await ws.next(), "é".repeat(size / 2) + "x".repeat(size % 2));
    const bytes = Buffer.alloc(size, (i) => i);
    ws.send(bytes);
    assert.ok(bytes.equals(await ws.next()));
  }
  for (let i = 0; i < 1000; i++) ws.send(`message ${i}`);
  for (let i = 0; i < 1000; i++) assert.equal(await ws.next(), `message ${i}`);
  print(ws.agreed);
  ws.close(1000);
  print(await ws.closed);
"""


def test_text_and_binary_of_every_length_class_come_back(plain: Plain, run: Run) -> None:
    script = ECHOES.replace("OPTIONS", "{perMessageDeflate: false}")
    assert run(script, plain(echo).url) == ["", [1000, ""]]


@pytest.mark.parametrize(
    ("options", "agreed"),
    [
        ("{}", "permessage-deflate"),
        ("{perMessageDeflate: {threshold: 0}}", "permessage-deflate"),
        (
            "{perMessageDeflate: {threshold: 0, clientNoContextTakeover: true, serverNoContextTakeover: true}}",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "{perMessageDeflate: {threshold: 0, serverMaxWindowBits: 10, clientMaxWindowBits: 9}}",
            "permessage-deflate; server_max_window_bits=10; client_max_window_bits=9",
        ),
    ],
)
def test_compressed_messages_come_back_under_every_agreement(plain: Plain, run: Run, options: str, agreed: str) -> None:
    found, closed = run(ECHOES.replace("OPTIONS", options), plain(echo, compression=True).url)
    assert set(agreed.split("; ")) <= set(found.split("; "))
    assert closed == [1000, ""]


@pytest.mark.parametrize("compress", ["true", "false"])
def test_fragments_with_pings_between_them_are_one_message(plain: Plain, run: Run, compress: str) -> None:
    script = """
      const ws = await open(url, [], {perMessageDeflate: {threshold: 0}});
      const pongs = [];
      const last = new Promise((resolve) => ws.on("pong", (data) => pongs.push(data.toString()) === 100 && resolve()));
      for (let i = 0; i < 100; i++) {
        ws.send(`part ${i},`, {fin: i === 99, compress: COMPRESS});
        ws.ping(`ping ${i}`);
      }
      const whole = await ws.next();
      await last;  // its ping came after the end of the message
      print([whole === Array.from({length: 100}, (_, i) => `part ${i},`).join(""), pongs.length, pongs[99]]);
      ws.send(Buffer.from([1]), {fin: false});
      ws.send(Buffer.from([]), {fin: false});
      ws.send(Buffer.from([2]), {fin: true});
      print([...await ws.next()]);
      ws.terminate();
    """
    server = plain(echo, compression=True)
    assert run(script.replace("COMPRESS", compress), server.url) == [[True, 100, "ping 99"], [1, 2]]


def test_pings_come_back_with_what_they_carried(plain: Plain, run: Run) -> None:
    script = """
      const ws = await open();
      for (const data of ["", "x", "y".repeat(125)]) {
        const pong = new Promise((resolve) => ws.once("pong", (bytes) => resolve(bytes.toString())));
        ws.ping(data);
        print(await pong);
      }
      ws.close();
      print((await ws.closed)[0]);
    """
    assert run(script, plain(echo).url) == ["", "x", "y" * 125, 1005]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (3000, "grüße"), (4999, "x" * 123)])
def test_the_clients_close_code_arrives_and_is_echoed(plain: Plain, run: Run, code: int, reason: str) -> None:
    ended: list[tuple[int | None, str]] = []

    def handler(ws: WebSocket) -> None:
        for data in ws:
            ws.send(data)
        ended.append((ws.close_code, ws.close_reason))

    script = f"""
      const ws = await open();
      ws.close({code}, {json.dumps(reason)});
      print(await ws.closed);
    """
    server = plain(handler)
    assert run(script, server.url)[0][0] == code
    server.stop()
    assert ended == [(code, reason or "closed by the client")]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1011, "sorry"), (4001, "grüße")])
def test_the_servers_close_code_arrives_after_its_last_words(plain: Plain, run: Run, code: int, reason: str) -> None:
    def handler(ws: WebSocket) -> None:
        ws.send("last words")
        ws.close(code, reason)

    script = "const ws = await open(); print(await ws.next()); print(await ws.closed);"
    assert run(script, plain(handler).url) == ["last words", [code, reason]]


def test_what_breaks_a_rule_closes_with_the_code_for_it(plain: Plain, run: Run) -> None:
    script = """
      const broken = async (bytes) => {
        const ws = await open();
        ws._socket.write(Buffer.from(bytes));
        print((await ws.closed)[0]);
      };
      const mask = [0, 0, 0, 0];
      await broken([0x81, 0x01, 0x78]);  // not masked
      await broken([0x83, 0x80, ...mask]);  // reserved opcode
      await broken([0xc1, 0x80, ...mask]);  // RSV1 without an extension
      await broken([0x09, 0x80, ...mask]);  // fragmented ping
      await broken([0x88, 0x82, ...mask, 0x03, 0xed]);  // close code 1005
      await broken([0x81, 0x81, ...mask, 0xff]);  // not UTF-8
      await broken([0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ...mask]);  // 2^63 - 1 bytes
    """
    assert run(script, plain(echo).url) == [1002, 1002, 1002, 1002, 1002, 1007, 1009]


def test_ws_chats_with_the_kernel(run: Run) -> None:
    transport = WebSocketTransport(0, "/realtime")
    kernel = RealtimeKernel([transport], log_level="error")

    @kernel.on("chat:message")
    def chat(message: Any, context: Any, toolkit: Any) -> str:
        toolkit.rooms.join(message.room)
        toolkit.rooms.broadcast(
            {"type": "chat:message", "payload": {"from": context.id, "body": message.payload}}, except_self=True
        )
        return str(context.id)

    @kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Any:
        yield from range(message.payload)

    @kernel.on("meet")
    def meet(message: Any, context: Any, toolkit: Any) -> str:
        name = toolkit.call(context.id, {"type": "name?"}, timeout=PATIENCE)
        return f"{name} likes {toolkit.wait_for('likes', timeout=PATIENCE).payload}"

    script = """
      const [ada, grace] = [await open(), await open()];
      grace.sendJson({type: "chat:message", room: "tea", payload: "joins", ack: 1});
      await grace.nextJson();
      ada.sendJson({type: "chat:message", room: "tea", payload: "grüße", ack: "mine"});
      const {payload: {ack, result: id}} = await ada.nextJson();
      const said = await grace.nextJson();
      print([ack, said.payload.from === id, said.payload.body, said.room, typeof said.timestamp]);

      ada.sendJson({type: "count", payload: 3, ack: 2});
      for (let i = 0; i < 4; i++) print((await ada.nextJson()).payload);

      ada.sendJson({type: "meet", ack: 3});
      const question = await ada.nextJson();
      ada.sendJson({type: "likes", payload: "tea"});
      ada.sendJson({type: "system:ack", payload: {ack: question.ack, result: "Ada"}});
      print((await ada.nextJson()).payload.result);

      ada.send("no JSON");
      print((await ada.nextJson()).payload.code);
      ada.sendJson({type: "nobody:knows", ack: 4});
      print((await ada.nextJson()).payload.code);
      ada.sendJson({type: "system:hello"});
      print((await ada.nextJson()).payload.id === id);
      for (const ws of [ada, grace]) { ws.close(1000); await ws.closed; }
    """
    kernel.start()
    try:
        assert run(script, transport.url) == [
            ["mine", True, "grüße", "tea", "number"],
            {"ack": 2, "item": 0},
            {"ack": 2, "item": 1},
            {"ack": 2, "item": 2},
            {"ack": 2},
            "Ada likes tea",
            "bad_message",
            "unknown_type",
            True,
        ]
    finally:
        kernel.stop()


def test_a_foreign_page_and_a_wrong_path_are_refused_before_the_upgrade(run: Run) -> None:
    transport = WebSocketTransport(0, "/realtime")
    kernel = RealtimeKernel([transport], log_level="error")
    script = """
      const refused = (address, options) => open(address, [], options).then(() => "open", (error) => error.message);
      print(await refused(url, {origin: "https://evil.example"}));
      print(await refused(new URL("/nowhere", url)));
    """
    kernel.start()
    try:
        assert run(script, transport.url) == ["Unexpected server response: 403", "Unexpected server response: 404"]
    finally:
        kernel.stop()
