"""The kernel in servers that people have, each the real one in processes of its own, seen from outside."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import struct
import sys
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websockets.asyncio.client
import websockets.exceptions
import websockets.sync.client
from hosting_rig import GEVENT_WEBSOCKET, HERE, Host, ask, gunicorn, start, stop, until
from programs import PATIENCE, Program, complain_of_faults
from raw import frame, request
from requirements import chromium, module

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from websockets.sync.client import ClientConnection

LARGE = 5_000_000
MSGPACK = "realtime.msgpack.v1"
HOSTS = {
    "own": ["own_host"],
    "pywsgi": ["pywsgi_host"],
    "gevent-websocket": ["pywsgi_host", "gevent-websocket"],
    "gunicorn-gevent": gunicorn("gevent"),
    "gunicorn-gevent-4": gunicorn("gevent", "-w", "4"),
    "gunicorn-pywsgi": gunicorn("gevent_pywsgi"),
    "gunicorn-gevent-websocket": gunicorn(GEVENT_WEBSOCKET),
    "gunicorn-threads": gunicorn("gthread", "--threads", "250"),
    "flask": ["flask", "--app", "hosted_app", "run", "--port", "0", "--debug", "--no-reload"],
}
ANSWERS_FIRST = {"gevent-websocket", "gunicorn-gevent-websocket"}  # hosts that answer the handshake before we see it


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with start(HOSTS[request.param]) as program:
        yield Host(request.param, program)
        stop(program)


# Every host ---------------------------------------------------------------------------------------------


def test_messages_come_back_in_order_and_other_paths_are_the_applications(host: Host) -> None:
    with host.connect("?name=ada") as client:
        for number in range(500):
            client.send(json.dumps({"type": "echo", "payload": number, "ack": number}))
        for number in range(500):
            assert json.loads(client.recv(timeout=PATIENCE))["payload"] == {"ack": number, "result": number}
        assert ask(client, "where")["who"] == "ada"
    assert host.get("/pid").isdigit()
    assert b"export function connect" in host.get("/realtime/client.js")
    with pytest.raises(urllib.error.HTTPError) as visited:
        host.get("/realtime")
    assert visited.value.code == 426
    visited.value.close()


def test_what_comes_right_behind_the_handshake_is_not_lost(host: Host) -> None:
    payloads = ["x" * 3000, *range(20)]
    messages = [{"type": "echo", "payload": payload, "ack": ack} for ack, payload in enumerate(payloads)]
    frames = b"".join(frame(1, json.dumps(message).encode()) for message in messages)
    with socket.create_connection(("127.0.0.1", host.port), PATIENCE) as sock:
        sock.sendall(request("/realtime") + frames)
        with sock.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
            while answer.readline() != b"\r\n":
                pass
            for ack, payload in enumerate(payloads):
                got = json.loads(read_frame(answer))
                assert got["payload"] == {"ack": ack, "result": payload}


def read_frame(stream: Any) -> bytes:
    head = stream.read(2)
    length = head[1]
    if length == 126:
        (length,) = struct.unpack(">H", stream.read(2))
    data: bytes = stream.read(length)
    return data


def test_five_megabytes_go_both_ways(host: Host) -> None:
    text = "x" * LARGE
    with host.connect() as client:
        assert ask(client, "echo", text) == text
        client.send(json.dumps({"type": "echo", "payload": text + "beyond the limit" * 1000}))
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_messagepack_is_agreed_on(host: Host) -> None:
    msgpack = module("msgpack")
    with host.connect(subprotocols=[MSGPACK]) as client:
        assert client.subprotocol == MSGPACK
        client.send(msgpack.packb({"type": "echo", "payload": b"\0\1", "ack": 1}))
        assert msgpack.unpackb(client.recv(timeout=PATIENCE))["payload"] == {"ack": 1, "result": b"\0\1"}


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [("?name=nobody", {}, 401, 4501), ("", {"Origin": "https://elsewhere.example"}, 403, 4503)],
    ids=["authenticate", "origin"],
)
def test_who_may_not_connect_is_told(host: Host, query: str, headers: dict[str, str], status: int, code: int) -> None:
    if host.name in ANSWERS_FIRST:
        with host.connect(query, additional_headers=headers) as client:
            with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
    else:
        with (
            pytest.raises(websockets.exceptions.InvalidStatus) as refused,
            host.connect(query, additional_headers=headers),
        ):
            pass
        assert refused.value.response.status_code == status


def test_a_room_spans_two_hundred_clients(host: Host) -> None:
    async def run() -> None:
        url = f"ws://{host.address}/realtime"
        opened = [websockets.asyncio.client.connect(url, compression=None, open_timeout=None) for _ in range(200)]
        clients = await asyncio.gather(*opened)
        try:
            await join_all(clients, "many")
            await clients[0].send(json.dumps({"type": "say", "payload": "hello", "room": "many"}))
            said = await asyncio.gather(*(next_said(client) for client in clients))
            assert said == ["hello"] * 200
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    in_a_loop(run())


def in_a_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run it in another thread: in this one playwright keeps a loop running."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, asyncio.wait_for(work, 3 * PATIENCE)).result()


async def join_all(clients: list[Any], room: str) -> None:
    """Join, and wait until the process of each knows all of them."""
    for client in clients:
        await count_of(client, room)
    for client in clients:
        while await count_of(client, room) != len(clients):
            await asyncio.sleep(0.05)


async def count_of(client: Any, room: str) -> int:
    await client.send(json.dumps({"type": "join", "room": room, "ack": "join"}))
    return int(json.loads(await client.recv())["payload"]["result"])


async def next_said(client: Any) -> str:
    while True:
        message = json.loads(await client.recv())
        if message["type"] == "said":
            return str(message["payload"])


def test_a_slow_reader_is_cut_off_and_the_others_miss_nothing(host: Host) -> None:
    with socket.socket() as slow, host.connect() as fast:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        slow.settimeout(PATIENCE)
        slow.connect(("127.0.0.1", host.port))
        slow.sendall(request("/realtime") + frame(1, json.dumps({"type": "join", "room": "slow", "ack": 1}).encode()))
        until(lambda: ask(fast, "join", room="slow") == 2)
        text, numbers = "x" * 100_000, itertools.count()

        def say_and_hear() -> None:
            number = next(numbers)
            fast.send(json.dumps({"type": "say", "payload": f"{number} {text}", "room": "slow"}))
            message = json.loads(fast.recv(timeout=PATIENCE))
            assert message["payload"].startswith(f"{number} ")

        def cut_off() -> bool:
            say_and_hear()  # once more, since what was said while a worker was held up may have been too much for it
            return bool(ask(fast, "join", room="slow") == 1)

        for _ in range(200):
            say_and_hear()
        until(cut_off)
        assert ask(fast, "echo", "well") == "well"


def test_who_goes_is_gone(host: Host) -> None:
    with host.connect() as watcher:
        with host.connect() as client:
            ask(client, "join", room="goes")
            until(lambda: ask(watcher, "join", room="goes") == 2)
        until(lambda: ask(watcher, "join", room="goes") == 1)
        with host.connect() as lost:
            ask(lost, "join", room="goes")
            until(lambda: ask(watcher, "join", room="goes") == 2)
            lost.socket.shutdown(socket.SHUT_RDWR)
            until(lambda: ask(watcher, "join", room="goes") == 1)


# Coming and going ---------------------------------------------------------------------------------------


class Crowd:
    """Clients that ask and ask, and come back when they are sent away or lost."""

    def __init__(self, host: Host, count: int) -> None:
        self._host = host
        self._count = count
        self.served_by: dict[int, int] = {}
        """The process that answered each client last."""
        self.ends: list[int | None] = []
        """The close codes, None for a connection that was lost."""
        self.refusals: list[str] = []
        self._stopping = False

    def __enter__(self) -> Crowd:
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(lambda: asyncio.run(self._run()))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping = True
        try:
            self._done.result()
        finally:
            self._pool.shutdown()

    def until_served_by(self, pids: Callable[[set[int]], bool]) -> None:
        """Wait until every client was answered, and ``pids`` is true of the processes that did."""
        self.served_by.clear()
        until(
            lambda: len(self.served_by) == self._count and pids(set(self.served_by.values())),
            lambda: (self.served_by, self.ends, self.refusals, "".join(self._host.program.output)),
        )

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._count)))

    async def _client(self, number: int) -> None:
        while not self._stopping:
            try:
                await self._visit(number)
            except websockets.exceptions.ConnectionClosed as closed:
                self.ends.append(closed.rcvd.code if closed.rcvd is not None else None)
            except (OSError, websockets.exceptions.WebSocketException) as error:
                self.refusals.append(repr(error))
                await asyncio.sleep(0.05)

    async def _visit(self, number: int) -> None:
        url = f"ws://{self._host.address}/realtime"
        async with websockets.asyncio.client.connect(url, compression=None, open_timeout=2 * PATIENCE) as client:
            while not self._stopping:
                await client.send(json.dumps({"type": "where", "ack": 1}))
                self.served_by[number] = json.loads(await client.recv())["payload"]["result"]["pid"]
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("worker", ["gevent", GEVENT_WEBSOCKET], ids=["gevent", "gevent-websocket"])
def test_a_reload_under_load_refuses_nobody_and_loses_nobody(worker: str) -> None:
    with start(gunicorn(worker, "-w", "2")) as program:
        host = Host("", program)
        with Crowd(host, 16) as crowd:
            crowd.until_served_by(bool)
            host.await_workers(2)
            before = host.workers()
            program.tell(signal.SIGHUP)
            crowd.until_served_by(lambda pids: not pids & before)
            host.await_workers(2, without=before)
        assert crowd.refusals == []
        assert set(crowd.ends) == {4013}
        stop(program)


def test_a_new_gunicorn_takes_over_from_the_old_one_and_refuses_nobody() -> None:
    # the script, since what USR2 starts anew is the command line: `python -m gunicorn` would not find its way back
    script = Path(sys.executable).with_name(module("gunicorn").__name__)
    with Program(script, *gunicorn("gevent", "-w", "2")[1:], cwd=HERE) as old:
        host = Host("", old)
        try:
            with Crowd(host, 16) as crowd:
                crowd.until_served_by(bool)
                host.await_workers(2)
                before = host.workers()
                old.tell(signal.SIGUSR2)
                host.await_workers(2, without=before)
                assert old.stop(signal.SIGTERM) == 0
                crowd.until_served_by(lambda pids: not pids & before)
        finally:  # the new one's output is the old one's, which ends with it
            for pid in re.findall(r"Listening at: \S+ \((\d+)\)", "".join(old.output))[1:]:
                os.kill(int(pid), signal.SIGTERM)
        assert crowd.refusals == []
        assert set(crowd.ends) == {4013}
    complain_of_faults(old.text, "Traceback")


def test_clients_of_a_worker_that_is_killed_are_served_by_others() -> None:
    with start(gunicorn("gevent", "-w", "4")) as program:
        host = Host("", program)
        with Crowd(host, 16) as crowd:
            crowd.until_served_by(bool)
            host.await_workers(4)
            victim = next(iter(crowd.served_by.values()))
            os.kill(victim, signal.SIGKILL)
            crowd.until_served_by(lambda pids: victim not in pids)
            host.await_workers(4, without={victim})  # it may not have been reaped yet
        assert None in crowd.ends
        assert program.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_stopping_tells_clients_to_come_back(worker: str) -> None:
    with start(gunicorn(worker, "--threads", "4")) as program:
        with Host("", program).connect() as client:
            ask(client, "where")
            program.tell(signal.SIGTERM)
            with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4013
        assert "retry_after=" in closed.value.rcvd.reason
        stop(program)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["loaded by workers", "preloaded"])
@pytest.mark.parametrize("worker", ["gevent", GEVENT_WEBSOCKET], ids=["gevent", "gevent-websocket"])
def test_ctrl_c_in_a_terminal_tells_clients_to_come_back(worker: str, options: tuple[str, ...]) -> None:
    """It sends SIGINT to every process, and the master then SIGQUIT to its workers."""
    with start(gunicorn(worker, "-w", "2", *options), own_session=True) as program:
        host = Host("", program)
        with ExitStack() as stack:
            served: set[int] = set()
            clients = []
            while len(served) < 2:
                clients.append(stack.enter_context(host.connect()))
                served.add(ask(clients[-1], "where")["pid"])
            assert program.interrupt_all() == 0
            for client in clients:
                with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                    client.recv(timeout=PATIENCE)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4013
    complain_of_faults(program.text)


def test_workers_that_are_replaced_after_max_requests_send_their_clients_to_the_next() -> None:
    with start(gunicorn("gevent", "--max-requests", "3")) as program:
        host = Host("", program)
        with Crowd(host, 1) as crowd:
            crowd.until_served_by(bool)
            host.await_workers(1)
            before = host.workers()
            for _ in range(3):
                host.get("/pid")
            crowd.until_served_by(lambda pids: not pids & before)
            host.await_workers(1, without=before)
        assert set(crowd.ends) == {4013}
        stop(program)


@pytest.mark.parametrize("started", [False, True], ids=["started by the first request", "started by the application"])
def test_workers_find_each_other_also_where_the_kernel_has_a_mesh_with_a_port(
    monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    if started:
        monkeypatch.setenv("HOSTED_START", "yes")
    with start(gunicorn("gevent", "-w", "2", app="hosted_mesh_app")) as program, ExitStack() as stack:
        host = Host("", program)
        clients: dict[int, ClientConnection] = {}
        while len(clients) < 2:
            client = stack.enter_context(host.connect())
            clients.setdefault(ask(client, "where")["pid"], client)
        one, other = clients.values()
        until(lambda: [ask(client, "join", room="tea") for client in (one, other)] == [2, 2])
        one.send(json.dumps({"type": "say", "payload": "hello", "room": "tea"}))
        assert json.loads(other.recv(timeout=PATIENCE))["payload"] == "hello"
        stack.close()
        stop(program)


def test_a_sync_worker_says_what_to_change() -> None:
    with start(gunicorn("sync")) as program:
        host = Host("", program)
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused, host.connect():
            pass
        assert refused.value.response.status_code == 500
        assert b"gunicorn -k gevent -w 4 module:app" in refused.value.response.body
        assert host.get("/pid").isdigit()
        stop(program)
        assert any("ERROR" in line and "gunicorn -k gevent" in line for line in program.output)
        assert not [line for line in program.output if "occupies one of gunicorn's" in line]


# A person's view ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with module("playwright.sync_api").sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox"])
        yield launched
        launched.close()


def visit(browser: Browser, host: Host, closing: ExitStack) -> Page:
    context = browser.new_context()
    closing.callback(context.close)
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    page.goto(f"http://{host.address}/")
    return page


def test_two_people_chat_in_their_browsers(host: Host, browser: Browser) -> None:
    with ExitStack() as closing:
        ada, grace = visit(browser, host, closing), visit(browser, host, closing)
        for page in (ada, grace):
            page.wait_for_function("() => window.members")
        until(lambda: [page.evaluate("() => window.members()") for page in (ada, grace)] == [2, 2])
        for speaker, text in ((ada, "good morning"), (grace, "good evening")):
            speaker.fill("#text", text)
            speaker.press("#text", "Enter")
            for page in (ada, grace):
                page.wait_for_selector(f'li:text-is("{text}")')
