"""The toolkit: what a handler does with, and for, the client whose message it handles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from realtime.connection import Connection, Context
from realtime.errors import BadRoom
from realtime.message import Message
from realtime.presence import Entry, PresenceList
from realtime.recovery import HistoryPage, Recovery

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

    from realtime.delivery import DeliveryOptions
    from realtime.kernel import RealtimeKernel
    from realtime.room_calls import RoomCall

__all__ = ["PresenceTools", "RoomTools", "Toolkit"]

log = logging.getLogger("realtime.handlers")

Sendable = Mapping[str, Any] | Message


class RoomTools:
    """``toolkit.rooms``: rooms, seen from one client."""

    __slots__ = ("_connection", "_kernel", "_message")

    def __init__(self, kernel: RealtimeKernel, connection: Connection, message: Message) -> None:
        self._kernel = kernel
        self._connection = connection
        self._message = message

    @overload
    def join(self, name: str, *, presence: bool | None = None) -> bool: ...

    @overload
    def join(self, name: str, *, since: object, presence: bool | None = None) -> Recovery: ...

    def join(self, name: str, *, since: object = None, presence: bool | None = None) -> bool | Recovery:
        """Put this client into a room; False if it is there already, or has disconnected meanwhile.

        :param since: the cursor of the last message of a recoverable room that the client has: first it is sent what
            it missed, at most 300 messages, and the result is a :class:`Recovery`. Parks meanwhile.
        :param presence: whether it is told who is there and who comes and goes: see ``RoomManager.join``.
        :raises BadRoom: no usable name.
        :raises TooManyRooms: the client is in ``Limits.rooms_per_client`` rooms.
        """
        if since is not None:
            return self._kernel._recover(self._connection, name, since, presence)
        if self._connection.closed:
            return False
        return self._kernel.rooms.join(name, self._connection.id, presence=presence)

    def history(self, name: str, limit: int = 50, since: str | None = None) -> HistoryPage:
        """Return the last messages of a room that keeps them, the oldest first. May park: for those of other nodes.

        :param limit: at most so many, 1 to 300.
        :param since: a cursor: return the first ``limit`` messages after it instead.
        :raises Reject: ``bad_message`` for a limit out of range; ``bad_room``.
        """
        return self._kernel._history(name, limit, since)

    def leave(self, name: str) -> bool:
        """Take this client out of a room; False if it was not there."""
        return self._kernel.rooms.leave(name, self._connection.id)

    def list(self) -> Sequence[str]:
        """Return the rooms this client is in."""
        return self._connection.current_rooms()

    def members(self, name: str, *, scope: str = "cluster") -> Sequence[str]:
        """Return the ids of a room's members: see ``RoomManager.members``."""
        return self._kernel.rooms.members(name, scope=scope)

    def broadcast(
        self,
        message: Sendable,
        room: str | None = None,
        *,
        except_self: bool = False,
        except_ids: Collection[str] = (),
        **delivery: Unpack[DeliveryOptions],
    ) -> int:
        """Send to every member of a room; return to how many. May switch: see ``RealtimeKernel.broadcast``.

        :param room: the handled message's room if not given.
        :raises BadRoom: neither names a room.
        """
        room = room if room is not None else self._message.room
        if room is None:
            raise BadRoom("rooms.broadcast needs a room: the message named none")
        if except_self:
            except_ids = (except_ids,) if isinstance(except_ids, str) else except_ids
            except_ids = (*except_ids, self._connection.id)
        return self._kernel.broadcast(message, room, except_ids=except_ids, **delivery)

    def call(
        self,
        room: str,
        message: Sendable,
        *,
        timeout: float | None = None,
        except_self: bool = False,
        except_ids: Collection[str] = (),
    ) -> RoomCall:
        """Ask every member of a room: ``for client_id, result in toolkit.rooms.call(...)`` as answers come.

        Ends when all have answered or at the timeout; ``.missing`` of what is returned tells who has not. A member
        that answers with an error yields the ``CallFailed``. See ``RealtimeKernel.call_room``.

        :param timeout: seconds, ``Limits.ack_timeout`` (10) if not given.
        """
        if except_self:
            except_ids = (except_ids,) if isinstance(except_ids, str) else except_ids
            except_ids = (*except_ids, self._connection.id)
        return self._kernel.call_room(room, message, timeout=timeout, except_ids=except_ids)


class PresenceTools:
    """``toolkit.presence``: who is here, and what this client shows of itself."""

    __slots__ = ("_connection", "_kernel")

    def __init__(self, kernel: RealtimeKernel, connection: Connection) -> None:
        self._kernel = kernel
        self._connection = connection

    def list(
        self, room: str | None = None, *, limit: int | None = None, scope: str = "cluster"
    ) -> PresenceList:
        """Return who is connected, or who is in ``room``: see ``PresenceStore.list``."""
        return self._kernel.presence.list(room, limit=limit, scope=scope)

    def get(self, client_id: str) -> Entry | None:
        """Return a client's entry, or None."""
        return self._kernel.presence.get(client_id)

    def update(self, metadata: Mapping[str, Any]) -> Entry:
        """Merge ``metadata`` into what this client shows; raise UnknownClient once it has disconnected."""
        return self._kernel.presence.update(self._connection.id, metadata)


class Toolkit:
    """The third argument of every handler. Good for as long as the handler likes to keep it."""

    __slots__ = ("_connection", "_kernel", "_message")

    def __init__(self, kernel: RealtimeKernel, connection: Connection, message: Message) -> None:
        self._kernel = kernel
        self._connection = connection
        self._message = message

    @property
    def rooms(self) -> RoomTools:
        """Rooms: join, leave, list, members, broadcast, call."""
        return RoomTools(self._kernel, self._connection, self._message)

    @property
    def presence(self) -> PresenceTools:
        """Who is here."""
        return PresenceTools(self._kernel, self._connection)

    def reply(self, message: Sendable | str, **delivery: Unpack[DeliveryOptions]) -> None:
        """Send to this client; a text goes as ``system:reply``. Parks up to 1 s while its outbox is crowded.

        :param delivery: what may become of it while it waits: ``overflow``, ``volatile``, ``conflate``, ``ttl``,
            see :class:`~realtime.delivery.DeliveryOptions`; ``send`` and both ``broadcast`` take them too.
        :raises ConnectionClosed: the client has gone.
        :raises MessageTooBig, BadMessage: it cannot be sent.
        """
        if isinstance(message, str):
            message = {"type": "system:reply", "payload": {"message": message}}
        self._kernel._send_to(self._connection, message, delivery)

    def send(
        self, target_id: str | Sequence[str], message: Sendable, **delivery: Unpack[DeliveryOptions]
    ) -> None:
        """Send to another client, or to each of a list such as ``message.target``. Parks like ``reply``.

        :raises UnknownClient: one of them is not connected; then nobody gets it.
        """
        if isinstance(target_id, str):
            self._kernel.send(target_id, message, **delivery)
        else:
            self._kernel._send_to_each(target_id, message, delivery)

    def broadcast(
        self,
        message: Sendable,
        filter: Callable[[Context], bool] | None = None,
        *,
        except_self: bool = False,
        **delivery: Unpack[DeliveryOptions],
    ) -> int:
        """Send to every client for whose context ``filter`` is true; return to how many. May switch."""
        skip = (self._connection.id,) if except_self else ()
        return self._kernel._broadcast_where(message, filter, skip, delivery)

    def call(self, target_id: str, message: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """Ask a client, this one or another, and return its answer. Parks until it comes.

        :param timeout: seconds, ``Limits.ack_timeout`` if not given.
        :raises TimedOut: no answer in time.
        :raises CallFailed: it answered with an error.
        :raises UnknownClient, ConnectionClosed: it is not there, or went away meanwhile.
        """
        return self._kernel.call(target_id, message, timeout=timeout)

    def wait_for(self, event: str, *, timeout: float | None = None) -> Message:
        """Park until this client sends ``event`` (a name, a template or ``"*"``) and return that message.

        What the client sent earlier and still waits in its inbox counts. The message passes middleware
        and ``"*"`` handlers like any other; its own handlers do not run, and its ack is answered.

        :param timeout: seconds; None waits for as long as the client is connected.
        :raises TimedOut: it did not come in time.
        :raises ConnectionClosed: the client went away.
        """
        return self._kernel._wait_for(self._connection, event, timeout)

    def log(self, message: str, *args: Any, level: str = "info") -> None:
        """Log to ``realtime.handlers`` with the client's id in front, ``%``-style."""
        number = logging.getLevelName(str(level).upper())
        if not isinstance(number, int):
            raise ValueError(f"level={level!r}: must be debug, info, warning, error or critical")
        if log.isEnabledFor(number):
            # as in logging itself, a text without arguments is no format: it may hold a client's "100%"
            text = message % args if args else message
            # and its line breaks would look like lines of ours
            log.log(number, "%s %s", self._connection.id, text.replace("\r", "\\r").replace("\n", "\\n"))
