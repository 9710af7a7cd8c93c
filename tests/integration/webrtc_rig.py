"""Pages in real browsers that call each other: the server they use, the page, and a proxy that can fail."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from programs import PATIENCE, Program
from requirements import chromium, module

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["HEARTBEAT", "Meeting", "Proxy", "launched", "start_server"]

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=WebRtcHideLocalIpsWithMdns",  # a machine without a network has nobody to ask for such names
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
LISTENING = r"at http://127\.0\.0\.1:(\d+)/"
HEARTBEAT = (1.0, 1.0)  # seconds between pings, and for the pong

SERVER = '''
import json
import sys
from realtime import Heartbeat, RealtimeKernel, Reject, WebRTCSignalingBridge, WebSocketTransport

PAGE = {page!r}.encode()

def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]

port, interval, timeout = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
kernel = RealtimeKernel(transports=[
    WebSocketTransport(port=port, path="/realtime", app=page, heartbeat=Heartbeat(interval=interval, timeout=timeout))
])
bridge = WebRTCSignalingBridge(authorize=lambda context, place: place != "closed room", **json.loads(sys.argv[4]))
bridge.attach(kernel)

@kernel.on("close:me")
def close(message, context, toolkit):
    kernel.disconnect(context.id, **message.payload)

kernel.run()
'''

PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<script type="module">
import { connect } from "/realtime/client.js";

const session = location.search !== "?nosession";
const client = connect("/realtime", { session, backoff: { min: 0.1, max: 0.3, jitter: 0.5 } });
const seen = { left: [], errors: [], closed: [], states: [], resumed: 0 };

function met(peer) {
  peer.heard = [];
  peer.tracks = [];
  peer.states = [];
  peer.signaling = [];
  peer.connection.addEventListener("signalingstatechange", () => peer.signaling.push(peer.connection.signalingState));
  peer.on("state", (state) => peer.states.push(state));
  peer.on("track", ({ track }) => peer.tracks.push(track));
  peer.on("channel", (channel) => (channel.onmessage = ({ data }) => peer.heard.push(data)));
}

async function enter(room, options = {}) {
  const call = (window.call = client.webrtc(room, options));
  call.on("peer", met);
  call.on("peer-left", (peer) => seen.left.push(peer));
  call.on("error", ({ error }) => seen.errors.push(`${error.code ?? error.name}: ${error.message}`));
  call.on("closed", (error) => seen.closed.push(error));
  await call.join();
}

/** The n-th peer that is in the call now. */
const peer = (n = 0) => [...call.peers.values()][n];

const settled = (peer) => peer?.state === "connected" && peer.connection.signalingState === "stable";

async function say(label, count, prefix = "") {
  for (const peer of call.peers.values()) {
    const channel = await peer.channel(label);
    for (let n = 0; n < count; n++) channel.send(`${prefix}${n}`);
  }
}

let hue = 0;

/** A picture that changes, as a camera's does. */
function picture() {
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  setInterval(() => {
    pen.fillStyle = `hsl(${(hue += 40)} 80% 50%)`;
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }, 50);
  return canvas.captureStream(20);
}

/** Whether pictures of a peer arrive and can be shown. */
async function sees(peer) {
  const stats = [...(await peer.connection.getStats()).values()];
  return stats.some(({ type, framesDecoded }) => type === "inbound-rtp" && framesDecoded > 3);
}

/** Wait until pictures of all peers arrive, for a minute at most; return for each whether they do. */
async function seesAll() {
  for (const ends = performance.now() + 60_000; ; await new Promise((done) => setTimeout(done, 50))) {
    const seen = await Promise.all([...call.peers.values()].map(sees));
    if (seen.every(Boolean) || performance.now() > ends) return seen;
  }
}

const ufrag = (peer) => /a=ice-ufrag:(\\S+)/.exec(peer.connection.localDescription.sdp)[1];

client.on("client:state", ({ name, resumed }) => {
  seen.states.push(name);
  if (resumed) seen.resumed++;
});
Object.assign(window, { client, seen, enter, peer, settled, say, picture, seesAll, ufrag });
</script>
"""


def start_server(
    folder: Path, port: int = 0, heartbeat: tuple[float, float] = (25.0, 10.0), **bridge: Any
) -> tuple[Program, int]:
    """Start a server of the page and of calls; return it with its port. "closed room" lets nobody in.

    ``bridge``: options of its WebRTCSignalingBridge that JSON can carry.
    """
    script = folder / "calls.py"
    script.write_text(SERVER.format(page=PAGE))
    program = Program(script, str(port), *map(str, heartbeat), json.dumps(bridge))
    return program, int(program.wait_for(LISTENING)[1])


@contextlib.contextmanager
def launched() -> Iterator[Callable[[], Browser]]:
    """A function that starts browsers, each with processes of its own; all end with the context."""
    path = chromium()
    browsers = []
    with module("playwright.sync_api").sync_playwright() as playwright:

        def launch() -> Browser:
            browser: Browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=PATIENCE * 1000)
            browsers.append(browser)
            return browser

        yield launch
        for browser in browsers:
            browser.close()


class Meeting:
    """People with a page each, in contexts of their own, at a server. A script error fails the test."""

    def __init__(self, browser: Browser, port: int) -> None:
        self._browser = browser
        self.port = port
        self._contexts: list[Any] = []
        self._errors: list[str] = []

    def page(self, *, port: int | None = None, browser: Browser | None = None, session: bool = True) -> Page:
        """Open the page. ``port``: of a proxy; ``browser``: another than everybody's; ``session``: it asks for one."""
        context = (browser or self._browser).new_context()
        context.set_default_timeout(PATIENCE * 1000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{port or self.port}/{'' if session else '?nosession'}")
        return page

    def enter(self, count: int, options: str = '{channels: ["chat"]}', room: str = "room") -> list[Page]:
        """Open pages and let all enter a room; return them when every pair is connected."""
        pages = [self.page() for _ in range(count)]
        for page in pages:
            page.evaluate(f"enter({room!r}, {options})")
        everybody_met(pages)
        return pages

    def close(self) -> None:
        for context in self._contexts:
            with contextlib.suppress(Exception):  # of a browser that was killed
                context.close()
        assert self._errors == []


def everybody_met(pages: list[Page]) -> None:
    """Wait until every page is connected with every other, and nothing is being negotiated."""
    for page in pages:
        page.wait_for_function(f"call.peers.size === {len(pages) - 1} && [...call.peers.values()].every(settled)")


class Proxy:
    """A TCP proxy on loopback whose connections can be held, and reset."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._flowing = threading.Event()
        self._flowing.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._closed = False
        self._start(self._accept)

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=function, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._pairs.append((client, server))
            self._start(self._pump, client, server)
            self._start(self._pump, server, client)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Forward until either end is gone; what was read while held goes on when it flows again."""
        try:
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # reset, or closed

    def hold(self) -> None:
        """Forward nothing, close nothing: as if the cable was cut."""
        self._flowing.clear()

    def flow(self) -> None:
        """Forward again, beginning with what was held."""
        self._flowing.set()

    def reset(self, *, flow: bool = True) -> None:
        """End every connection with an RST on both sides; what was held is lost. New ones are accepted.

        ``flow``: and forwarded, too; else they are held as before.
        """
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.shutdown(socket.SHUT_RD)  # wakes the thread that reads it
                one.close()
        if flow:
            self._flowing.set()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(PATIENCE)
        self.reset()
        for thread in self._threads:
            thread.join(PATIENCE)
