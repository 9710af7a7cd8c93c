"""A client that speaks the wire of sessions by hand, on the PyPI library ``websockets`` alone."""

from __future__ import annotations

import json
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import msgpack
from gevent.event import Event
from requirements import module

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = ["PATIENCE", "SessionPeer", "wait_for_more"]

PATIENCE = 60.0  # seconds any wait may take before the test fails
UNCOUNTED = ("system:hello", "system:welcome", "system:received")


def wait_for_more(peer: SessionPeer, count: int, done: Event) -> None:
    """Wait, beside the peer's thread, until it has so many messages more than now, or until ``done``."""
    wanted = peer.received + count
    while peer.received < wanted and not done.wait(0.002):
        pass


class SessionPeer:
    """Blocking: for a native thread. It counts, keeps and sends again as the protocol says.

    :param confirms: tells the server now and then what has come.
    """

    def __init__(self, url: str, *, confirms: bool = True, subprotocol: str | None = None) -> None:
        self.url = url
        self.confirms = confirms
        self.subprotocol = subprotocol
        self.welcome: dict[str, Any] = {}
        self.token = ""
        self.received = 0
        self.passed: deque[dict[str, Any]] = deque()  # came while something else was waited for
        self._confirmed = 0
        self._sent: deque[dict[str, Any]] = deque()
        self._sent_before = 0
        self._ws: ClientConnection | None = None
        self._closed: Any = module("websockets.exceptions").ConnectionClosed

    # Connections ------------------------------------------------------------------------------------------

    def connect(self, session: Any = True) -> dict[str, Any]:
        """Connect and say hello; return what the welcome says of the session. Raises OSError."""
        protocols = [self.subprotocol] if self.subprotocol else None
        opening = module("websockets.sync.client").connect(
            self.url, open_timeout=PATIENCE, close_timeout=PATIENCE, subprotocols=protocols, max_queue=None
        )
        self._ws = opening.__enter__()
        self._put({"type": "system:hello", "payload": {"session": session}})
        while (message := self._take())["type"] != "system:welcome":
            pass  # what came before it is not of the session
        self.welcome = message["payload"]
        about: dict[str, Any] = self.welcome["session"]
        self.token = about["token"]
        if about["resumed"]:
            self._forget(about["received"])
            for message in self._sent:
                self._put(message)
            self.confirm()
        else:
            self.received = self._confirmed = self._sent_before = 0
            self._sent.clear()
        return about

    def resume(self) -> dict[str, Any]:
        """Connect again, with the token and the count of the session there is."""
        return self.connect({"token": self.token, "received": self.received})

    def come_back(self) -> None:
        """Connect again until that has worked, whatever is cut meanwhile; the session must have been resumed."""
        while True:
            try:
                about = self.resume()
            except TimeoutError:
                raise AssertionError("no welcome came") from None
            except (OSError, EOFError, module("websockets.exceptions").WebSocketException):
                continue
            assert about["resumed"], about
            return

    def drop(self) -> None:
        """Release the socket without a close frame."""
        assert self._ws is not None
        try:
            self._ws.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was cut off already

    def close(self) -> None:
        """Say goodbye."""
        assert self._ws is not None
        self._ws.close()

    def close_code(self) -> int | None:
        """Return the code of the server's close frame, once it has come; None if there was none."""
        assert self._ws is not None
        try:
            while True:
                self._ws.recv(timeout=PATIENCE)
        except self._closed as closed:
            return closed.rcvd.code if closed.rcvd is not None else None

    # Messages ---------------------------------------------------------------------------------------------

    def send(self, type_: str, **fields: Any) -> None:
        """Send a message; it is sent again after a cut until the server has it."""
        message = {"type": type_, **fields}
        self._sent.append(message)
        self._put(message)

    def receive(self) -> dict[str, Any]:
        """Take the next message of the session. Raises websockets' ConnectionClosed."""
        while True:
            message = self._take()
            if message["type"] == "system:received":
                self._forget(message["payload"]["count"])
            elif message["type"] not in UNCOUNTED:
                self.received += 1
                if self.confirms and self.received - self._confirmed >= 64:
                    self.confirm()
                return message

    def receive_through_cuts(self) -> dict[str, Any]:
        """Take the next message, coming back as often as needed."""
        while True:
            try:
                return self.receive()
            except TimeoutError:
                raise AssertionError(f"nothing came, after {self.received} messages") from None
            except (OSError, EOFError, self._closed):
                self.come_back()

    def until(self, type_: str) -> dict[str, Any]:
        """Take messages until one of a type comes."""
        while (message := self.receive())["type"] != type_:
            self.passed.append(message)
        return message

    def ask(self, type_: str, **fields: Any) -> Any:
        """Send with an ack id and return the result."""
        self.send(type_, ack="asked", **fields)
        while (message := self.receive())["type"] != "system:ack" or message["payload"]["ack"] != "asked":
            assert message["type"] != "system:error", message
            self.passed.append(message)
        return message["payload"].get("result")

    def confirm(self) -> None:
        """Tell the server what has come."""
        self._confirmed = self.received
        self._put({"type": "system:received", "payload": {"count": self.received}})

    @property
    def unconfirmed(self) -> int:
        """Messages sent that the server has not said to have."""
        return len(self._sent)

    def _forget(self, count: int) -> None:
        while self._sent_before < count:
            self._sent.popleft()
            self._sent_before += 1

    def _put(self, message: dict[str, Any]) -> None:
        assert self._ws is not None
        try:
            self._ws.send(msgpack.packb(message) if self.subprotocol else json.dumps(message))
        except (OSError, EOFError, self._closed):
            pass  # noticed where the next message is waited for

    def _take(self) -> dict[str, Any]:
        assert self._ws is not None
        data = self._ws.recv(timeout=PATIENCE)
        message: dict[str, Any] = msgpack.unpackb(data) if isinstance(data, bytes) else json.loads(data)
        return message
