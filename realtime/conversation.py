"""Waiting for a client inside a handler: ``call`` and ``wait_for``, and what wakes them."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent.event import AsyncResult

from realtime.codes import CloseCode, ErrorCode
from realtime.connection import Connection
from realtime.errors import BadMessage, CallFailed, ConfigurationError, ConnectionClosed, TimedOut
from realtime.events import ANY, EventTemplate, is_reserved
from realtime.message import Message

if TYPE_CHECKING:
    from realtime.hub import Hub

__all__ = ["Answer", "Waiter", "call", "give_up", "moved", "take_answer", "wait_for"]


def moved() -> ConnectionClosed:
    """Return what to raise where a handler waits for the messages of a client that sends them to another node."""
    return ConnectionClosed(CloseCode.REPLACED, "the client has moved to another node")


class Answer(Protocol):
    """What waits for a client's answer."""

    @property
    def deadline(self) -> float:
        """When it waits no longer, in ``time.monotonic``."""

    def set(self, result: Any, /) -> None:
        """It is there."""

    def set_exception(self, error: BaseException, /) -> None:
        """There will be none: CallFailed if the client refused, ConnectionClosed if it went away."""


class _Call(AsyncResult):  # type: ignore[type-arg]  # not at run time
    """A handler that is parked until its client answers."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline = deadline


class Waiter:
    """A handler that is parked until its client sends a certain event."""

    __slots__ = ("_template", "result")

    def __init__(self, event: str) -> None:
        if isinstance(event, str) and is_reserved(event):
            raise ConfigurationError(f"wait_for({event!r}): clients cannot send names under system:, client: or mesh:")
        self._template = None if event == ANY else EventTemplate(event)
        self.result: AsyncResult[Message] = AsyncResult()

    def takes(self, message: Message) -> bool:
        """Tell whether this is the event waited for, and if so fill in its params."""
        params = {} if self._template is None else self._template.match(message.type)
        if params is None:
            return False
        message.params = params
        return True


def call(hub: Hub, connection: Connection, message: Mapping[str, Any] | Message, timeout: float) -> Any:
    """Send a message and wait for the client's answer: switches greenlets.

    :raises TimedOut: no answer within ``timeout`` seconds.
    :raises CallFailed: the client answered with an error.
    :raises ConnectionClosed: the client went away.
    """
    if connection.closed:
        raise ConnectionClosed(CloseCode.ABNORMAL, "the client has disconnected")
    if connection.departed:
        hub.sessions.departures.wait_until_seen(connection.id)
        return hub.cluster.ask(connection.id, "call", {"message": message, "timeout": timeout}, timeout)
    connection.answers += 1
    ack = connection.answers
    outbound = hub.outbound(message, ack=ack)
    if connection.calls is None:
        connection.calls = {}
    timer = gevent.Timeout.start_new(timeout)  # first: it complains of what is no time
    answer = _Call(monotonic() + float(timeout))
    connection.calls[ack] = answer
    hub.resume_if_room(connection)
    try:
        hub.deliver(connection, outbound)
        with hub.workers.parked():
            return answer.get()
    except gevent.Timeout as expired:
        if expired is not timer:
            raise  # the caller's own
        if answer.ready():
            return answer.get()  # it came in the same turn of the loop, just before
        raise TimedOut(f"client {connection.id} did not answer within {timeout:g} s") from None
    finally:
        timer.close()
        if connection.calls:
            connection.calls.pop(ack, None)


def take_answer(connection: Connection, message: Message) -> bool:
    """Hand a client's ``system:ack`` or ``system:error`` to the call it answers; False if none waits (any more).

    :raises BadMessage: it does not say which call it answers.
    """
    payload = message.payload
    ack = payload.get("ack") if isinstance(payload, dict) else None
    if type(ack) is not int:
        raise BadMessage('an answer is {"ack": id, "result": ...} with the id of the call')
    answer = connection.calls.pop(ack, None) if connection.calls else None
    if answer is None:
        return False
    if message.type == "system:error":
        code = payload.get("code")
        text = str(payload.get("message", "the client refused"))
        answer.set_exception(CallFailed(text, code=code if isinstance(code, str) else ErrorCode.REJECTED))
    else:
        answer.set(payload.get("result"))
    return True


def wait_for(hub: Hub, connection: Connection, event: str, timeout: float | None) -> Message:
    """Take the client's next message of this event, one in the inbox first: switches greenlets.

    :raises TimedOut: none came within ``timeout`` seconds; None waits as long as the client is there.
    :raises ConnectionClosed: the client went away.
    """
    waiter = Waiter(event)
    for index, (message, *_) in enumerate(connection.inbox):
        if not is_reserved(message.type) and waiter.takes(message):
            connection.dequeue(index)
            hub.resume_if_room(connection)
            return message
    if connection.closed:
        raise ConnectionClosed(CloseCode.ABNORMAL, "the client has disconnected")
    if connection.departed:
        raise moved()
    if connection.waiters is None:
        connection.waiters = []
    timer = gevent.Timeout.start_new(timeout)  # first: it complains of what is no time
    connection.waiters.append(waiter)
    hub.resume_if_room(connection)
    try:
        with hub.workers.parked():
            return waiter.result.get()  # type: ignore[return-value]
    except gevent.Timeout as expired:
        if expired is not timer:
            _give_back(hub, connection, waiter)
            raise  # the caller's own
        if waiter.result.ready():
            return waiter.result.get()  # type: ignore[return-value]  # it came in the same turn, just before
        raise TimedOut(f"client {connection.id} did not send {event!r} within {timeout:g} s") from None
    except gevent.GreenletExit:
        _give_back(hub, connection, waiter)
        raise
    finally:
        timer.close()
        if connection.waiters and waiter in connection.waiters:
            connection.waiters.remove(waiter)


def _give_back(hub: Hub, connection: Connection, waiter: Waiter) -> None:
    """Return to the inbox what came for a handler that has just been told to wait no more."""
    if waiter.result.successful():
        hub.put_back(connection, waiter.result.get())  # type: ignore[arg-type]


def give_up(connection: Connection, error: ConnectionClosed) -> None:
    """Wake every handler that waits for a client which is gone."""
    for waiter in connection.waiters or ():
        waiter.result.set_exception(error)
    for answer in (connection.calls or {}).values():
        answer.set_exception(error)
    connection.waiters = connection.calls = None
