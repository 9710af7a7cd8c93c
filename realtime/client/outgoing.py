"""What a session of the client sends: now, or with the next connection, and counted so that it arrives once."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

from realtime.client.calls import Calls, Overtaken, Pending
from realtime.client.continuity import Continuity
from realtime.client.link import Link
from realtime.client.settings import Settings
from realtime.client.states import NOT_YET, ClientState
from realtime.client.stream import Stream
from realtime.client.waiting import SendQueue
from realtime.errors import ConnectionClosed, MessageTooBig, TimedOut

__all__ = ["Outgoing"]

log = logging.getLogger("realtime.client")


class Outgoing:
    """The sending side of a Session, which sees to it that there is a connection.

    Its lock guards the state and the order of what is sent; nothing waits while it has it.
    """

    def __init__(self, settings: Settings, stats: Counter[str]) -> None:
        self.state = ClientState.CLOSED
        self.limits: dict[str, int] | None = None
        self.calls = Calls()
        self._settings = settings
        self._stats = stats
        self._lock = threading.RLock()
        self._queue = SendQueue(settings.limits)
        self._stream: Stream | None = None
        self._link: Link | None = None
        self._continuity = Continuity()
        self._stopping = threading.Event()
        self._ended = NOT_YET  # why it is closed

    def transmit(self, data: bytes, call: Pending | None, timeout: float) -> None:
        """Send a message now, or keep it for the next connection.

        :raises TimedOut: the server takes nothing, and there was no room to wait for ``timeout`` seconds.
        :raises ConnectionClosed, QueueFull, MessageTooBig: it cannot be sent.
        """
        stream = self._stream
        if stream is not None and self.state is ClientState.OPEN and not stream.wait_for_room(timeout):
            raise TimedOut(f"the server took nothing for {timeout:g} s")
        with self._lock:
            if self.state is ClientState.CLOSED or self._stopping.is_set():
                raise self._ended.error()
            if self.state is ClientState.OPEN and self._send_now(data, call):
                return
            self._queue.put(data, call)

    def withdraw(self, call: Pending) -> None:
        """Take back a question that still waits to be sent."""
        with self._lock:
            if not call.was_sent:
                self._queue.withdraw(call)

    def notify(self, data: bytes) -> None:
        """Send something that is of use in this session of the server's alone. Never raises."""
        with self._lock:
            self._reply(self._continuity, data)

    def _reply(self, source: object, data: bytes) -> None:
        """Answer a question in the session it was asked in, and in no other; if not now, when that is resumed."""
        with self._lock:
            if source is not self._continuity:
                return  # who asked is gone
            is_open = self.state is ClientState.OPEN
            if is_open or self._continuity.lasts:
                self._continuity.sending(data)
            if is_open and self._put(data):
                self._stats["sent"] += 1

    def _answer(self, source: object, data: bytes) -> None:
        """As ``_reply``, once the server takes more. Raises MessageTooBig, TimedOut."""
        self.check_size(data)
        stream, timeout = self._stream, self._settings.timeout
        if stream is not None and not stream.wait_for_room(timeout):
            raise TimedOut(f"the server took nothing for {timeout:g} s")
        self._reply(source, data)

    def ask_again(self, call: Pending, make: Callable[[str], bytes]) -> str:
        """In the thread that reads: ask without waiting; return the id of the question."""
        ack = self.calls.add(call)
        data = make(ack)
        with self._lock:
            self._continuity.sending(data)
            if self._put(data):
                self._stats["sent"] += 1
        return ack

    def check_size(self, data: bytes) -> None:
        """A server ends the connection, for good, over a message that is too large for it."""
        most = (self.limits or {}).get("message_size")
        if isinstance(most, int) and len(data) > most:
            raise MessageTooBig(f"the server takes messages of {most} bytes, not of {len(data)}")

    def _put(self, data: bytes) -> bool:
        """Send, counted or not; False if the connection has just ended, which nobody has said yet."""
        if self._link is None:
            return False
        try:
            self._link.send(self._settings.wire.frame(data))
        except ConnectionClosed:
            return False
        return True

    def _send_now(self, data: bytes, call: Pending | None) -> bool:
        """Send; False if the connection has just ended, which nobody has said yet."""
        if call is not None and not call.may_go():
            call.fail(Overtaken())
            return True
        self.check_size(data)
        self._continuity.sending(data)  # before: the other end may say at once that it has it
        if not self._put(data):
            self._continuity.unsent(data)
            return False
        if call is not None:
            call.was_sent = True
        self._stats["sent"] += 1
        return True

    def _flush(self) -> None:
        """Send what was queued."""
        while (entry := self._queue.take()) is not None:
            try:
                if not self._send_now(entry.data, entry.call):
                    self._queue.put_back(entry)
                    return
            except MessageTooBig as error:
                if entry.call is not None:
                    entry.call.fail(error)
                else:
                    self._stats["unsent"] += 1
                    log.error("a message that waited for the connection is not sent: %s", error)
