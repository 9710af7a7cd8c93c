"""The conformance suite over our transports, and over one that a user might write."""

from __future__ import annotations

import json
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent.queue
import msgpack
import pytest
import trustme
import websockets.client
import websockets.exceptions
import websockets.frames
import websockets.protocol
import websockets.sync.client
import websockets.uri

from realtime import Connection, ConnectionClosed, Limits, RealtimeKernel, TimedOut, Transport, WebSocketTransport
from realtime.testing import ConformanceClient, MemoryClient, MemoryTransport, TransportConformance
from realtime.testing.peers import living_greenlets
from realtime.transports.http import TLSOptions

MSGPACK = "realtime.msgpack.v1"
PATIENCE = 60.0


class TestMemory(TransportConformance):
    def make_transport(self) -> MemoryTransport:
        return MemoryTransport()

    def make_client(self, transport: MemoryTransport) -> MemoryClient:
        return transport.connect(codec=self.codec)


class TestMemoryMsgpack(TestMemory):
    codec = "msgpack"


class WebsocketsClient:
    """The `websockets` package's blocking client, run in native threads beside the server's event loop."""

    def __init__(self, in_thread: Any, uri: str, codec: str, **options: Any) -> None:
        self._in_thread = in_thread
        self._binary = codec == "msgpack"
        # a small receive buffer: who does not read is noticed after fewer megabytes
        options["subprotocols"] = [MSGPACK] if self._binary else None
        # it waits as long as the suite does, and asks for no pong that it does not get while it does not read
        options |= {"open_timeout": PATIENCE, "close_timeout": PATIENCE, "ping_interval": None}

        def connect() -> Any:
            # its context is entered because it insists on it; close() and kill() leave it
            return websockets.sync.client.connect(uri, max_size=None, sock=_connect(uri), **options).__enter__()

        self._websocket = in_thread(connect)

    def send(self, message: Mapping[str, Any] | str | bytes) -> None:
        if isinstance(message, Mapping):
            message = msgpack.packb(message) if self._binary else json.dumps(message)
        try:
            self._in_thread(self._websocket.send, message)
        except websockets.exceptions.ConnectionClosed:
            raise self._closed() from None

    def receive(self, timeout: float) -> dict[str, Any]:
        try:
            data = self._in_thread(self._websocket.recv, timeout)
        except TimeoutError:
            raise TimedOut("no message") from None
        except websockets.exceptions.ConnectionClosed:
            raise self._closed() from None
        assert isinstance(data, bytes) is self._binary
        return msgpack.unpackb(data) if self._binary else json.loads(data)

    def _closed(self) -> ConnectionClosed:
        assert self._websocket.close_code is not None
        return ConnectionClosed(self._websocket.close_code, self._websocket.close_reason or "")

    def stop_reading(self) -> None:
        """It reads 16 messages ahead, then leaves what comes in the socket."""

    def resume_reading(self) -> None:
        """It reads when receive is called."""

    def close(self) -> None:
        self._in_thread(self._websocket.close)

    def kill(self) -> None:
        """End the TCP connection under its feet; its own reading thread then closes the socket."""
        try:
            self._websocket.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._in_thread(self._websocket.recv_events_thread.join, PATIENCE)


class OneThreadClient:
    """The `websockets` package's protocol over a blocking socket that only one thread uses at a time.

    For TLS: the package's own client reads and writes in two threads at once, which the ssl module of
    CPython before 3.13 does not bear (now and then both sides wait for ever).
    """

    def __init__(self, in_thread: Any, uri: str, codec: str, context: ssl.SSLContext) -> None:
        self._in_thread = in_thread
        self._binary = codec == "msgpack"
        self._protocol = websockets.client.ClientProtocol(websockets.uri.parse_uri(uri))
        self._messages: deque[bytes] = deque()
        self._sock = in_thread(context.wrap_socket, _connect(uri), server_hostname="127.0.0.1")
        try:
            in_thread(self._open)
        except BaseException:
            self._sock.close()
            raise

    def _open(self) -> None:
        self._sock.settimeout(PATIENCE)
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state is websockets.protocol.State.CONNECTING:
            self._read()
            if self._protocol.handshake_exc is not None:
                raise self._protocol.handshake_exc

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._sock.sendall(data)

    def _read(self) -> None:
        try:
            data = self._sock.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, websockets.frames.Frame) and event.opcode in (1, 2):
                assert event.fin
                assert (event.opcode == 2) is self._binary
                self._messages.append(event.data)
        try:
            self._flush()
        except OSError:
            pass  # the answer to a close frame that came just before the end

    def send(self, message: Mapping[str, Any] | str | bytes) -> None:
        data = json.dumps(message) if isinstance(message, Mapping) else message
        self._protocol.send_text(data.encode() if isinstance(data, str) else data)
        self._in_thread(self._flush)

    def receive(self, timeout: float) -> dict[str, Any]:
        return json.loads(self._in_thread(self._receive, timeout))

    def _receive(self, timeout: float) -> bytes:
        self._sock.settimeout(timeout)
        while not self._messages:
            farewell = self._protocol.close_rcvd
            if farewell is not None or self._protocol.state is websockets.protocol.State.CLOSED:
                self._sock.close()
                raise ConnectionClosed(farewell.code, farewell.reason) if farewell else ConnectionClosed()
            try:
                self._read()
            except TimeoutError:
                raise TimedOut("no message") from None
        return self._messages.popleft()

    def stop_reading(self) -> None:
        """It reads when receive is called."""

    resume_reading = stop_reading

    def close(self) -> None:
        if self._protocol.state is websockets.protocol.State.OPEN:
            self._protocol.send_close(1000)
            self._in_thread(self._flush)
        while self._sock.fileno() != -1 and self._protocol.state is not websockets.protocol.State.CLOSED:
            self._in_thread(self._read)
        self._sock.close()

    def kill(self) -> None:
        self._sock.close()


def _connect(uri: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", int(uri.split(":")[2].split("/")[0])))
    sock.settimeout(None)
    return sock


class WebSocketConformance(TransportConformance):
    """The real server, and an independent client that knows nothing of realtime."""

    options: Mapping[str, Any] = {}
    client_options: Mapping[str, Any] = {"compression": None}

    @pytest.fixture(autouse=True)
    def _native_threads(self, in_thread: Any) -> None:
        self._in_thread = in_thread

    def make_transport(self) -> WebSocketTransport:
        return WebSocketTransport(port=0, path="/realtime", **self.options)

    def make_client(self, transport: WebSocketTransport) -> ConformanceClient:
        return WebsocketsClient(self._in_thread, transport.url, self.codec, **self.client_options)


class TestWebSocket(WebSocketConformance):
    pass


class TestWebSocketMsgpack(WebSocketConformance):
    codec = "msgpack"


class TestWebSocketCompressed(WebSocketConformance):
    options = {"compression": True}
    client_options = {"compression": "deflate"}
    # what a client sends compresses to so little that sockets take far more than the suite sends
    can_stop_reading = False


class TestWebSocketMsgpackCompressed(TestWebSocketCompressed):
    codec = "msgpack"


class TestWebSocketTLS(WebSocketConformance):
    @pytest.fixture(autouse=True)
    def _certificate(self, tmp_path: Path) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        files = tmp_path / "certificate.pem", tmp_path / "key.pem"
        certificate.cert_chain_pems[0].write_to_path(files[0])
        certificate.private_key_pem.write_to_path(files[1])
        self.options = {"tls": TLSOptions(certfile=str(files[0]), keyfile=str(files[1]))}
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)

    def make_client(self, transport: WebSocketTransport) -> ConformanceClient:
        return OneThreadClient(self._in_thread, transport.url, self.codec, self._context)


def test_no_greenlet_and_no_socket_of_the_server_survives_stop_with_clients_connected(
    in_thread: Any, sockets_now: Any
) -> None:
    transport = WebSocketTransport(port=0)
    kernel = RealtimeKernel([transport], limits=Limits(close_handshake=0.05))
    kernel.on("wait", lambda message, context, toolkit: toolkit.wait_for("never"))
    greenlets, sockets = living_greenlets(), sockets_now()
    kernel.start()
    clients = [WebsocketsClient(in_thread, transport.url, "json", compression=None) for _ in range(3)]
    for client in clients:
        client.send({"type": "wait"})
    silent = [_connect(transport.url) for _ in range(3)]  # half way into HTTP
    kernel.stop(2)
    assert set(living_greenlets()) == set(greenlets)
    left = sockets_now() - sockets
    assert sum(left.values()) <= len(clients) + len(silent)  # the clients' own ends
    for sock in silent:
        sock.close()
    for client in clients:
        client.kill()
    assert sockets_now() == sockets


# A transport of one's own: clients of the same process over gevent's queues ---------------------------------


class QueueConnection(Connection):
    """The server's side: what the hub sends goes into the client's queue."""

    transport = "queue"

    def __init__(self, transport: QueueTransport) -> None:
        super().__init__()
        self.owner = transport
        self.to_client: gevent.queue.Queue[Any] = gevent.queue.Queue()

    def transmit(self, frame: bytes) -> None:
        self.to_client.put(frame)

    def end(self, code: int, reason: str) -> None:
        if not self.closed:
            self.outbox.flush()
            self.outbox.close()
            self.to_client.put(ConnectionClosed(code, reason))
            self.owner.hub.disconnect(self, reason, code=code)


class QueueTransport(Transport):
    """Brings clients without anything in between."""

    name = "queue"

    def on_start(self) -> None:
        pass

    def on_stop(self) -> None:
        pass

    def connect(self) -> QueueClient:
        connection = QueueConnection(self)
        self.hub.connect(connection)
        return QueueClient(self, connection)


class QueueClient:
    def __init__(self, transport: QueueTransport, connection: QueueConnection) -> None:
        self.hub = transport.hub
        self.connection = connection

    def send(self, message: Mapping[str, Any] | str | bytes) -> None:
        data = json.dumps(message) if isinstance(message, Mapping) else message
        self.hub.receive(self.connection, data.encode() if isinstance(data, str) else data)

    def receive(self, timeout: float) -> dict[str, Any]:
        try:
            data = self.connection.to_client.get(timeout=timeout)
        except gevent.queue.Empty:
            raise TimedOut("no message") from None
        if isinstance(data, ConnectionClosed):
            raise data
        return json.loads(data)

    def close(self) -> None:
        self.hub.disconnect(self.connection, "closed", code=1000)

    def kill(self) -> None:
        self.hub.disconnect(self.connection, "lost")


class TestTransportOfOnesOwn(TransportConformance):
    can_stop_reading = False  # a queue takes everything
    oversize_code = None

    def make_transport(self) -> QueueTransport:
        return QueueTransport()

    def make_client(self, transport: QueueTransport) -> QueueClient:
        return transport.connect()
