"""Reaching clients: the methods of a kernel that send, ask and disconnect, from any greenlet or native thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from realtime import conversation, drain
from realtime.codes import CloseCode
from realtime.config import Limits
from realtime.connection import Connection, Context, RemoteClient
from realtime.errors import ConnectionClosed, unknown_client
from realtime.hub import Hub
from realtime.room_calls import RoomCall
from realtime.threads import HomeThread, on_home_thread
from realtime.toolkit import Sendable

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

    from realtime.delivery import DeliveryOptions

__all__ = ["Reach"]


class Reach:
    """What a kernel does to reach clients, wherever they are. Called in another thread than the kernel's own, each
    method is handed to that one and its result handed back.
    """

    limits: Limits
    _hub: Hub
    _home: HomeThread

    @on_home_thread
    def send(self, client_id: str, message: Sendable, **delivery: Unpack[DeliveryOptions]) -> None:
        """Send to one client; parks this greenlet up to 1 s while the client's outbox is crowded.

        :param delivery: what may become of it while it waits: ``overflow``, ``volatile``, ``conflate``, ``ttl``,
            see :class:`~realtime.delivery.DeliveryOptions`. One that may be dropped does not park.
        :raises UnknownClient: no such client is connected.
        :raises MessageTooBig, BadMessage: it cannot be sent.
        """
        connection = self._hub.connections.get(client_id)
        if connection is not None:
            self._send_to(connection, message, delivery)
        elif not self._hub.cluster.send(client_id, self._hub.outbound(message, delivery)):
            raise unknown_client(client_id)

    @on_home_thread
    def _send_to(self, connection: Connection, message: Sendable, delivery: DeliveryOptions) -> None:
        self._hub.deliver(connection, self._hub.outbound(message, delivery))

    @on_home_thread
    def _send_to_each(self, client_ids: Sequence[str], message: Sendable, delivery: DeliveryOptions) -> None:
        hub = self._hub
        outbound = hub.outbound(message, delivery)
        for client_id in client_ids:
            if client_id not in hub.connections and not hub.cluster.has(client_id):
                raise unknown_client(client_id)
        gone: ConnectionClosed | None = None
        for client_id, connection in [(client_id, hub.connections.get(client_id)) for client_id in client_ids]:
            try:
                if connection is not None:
                    hub.deliver(connection, outbound)
                elif not hub.cluster.send(client_id, outbound):
                    raise ConnectionClosed(CloseCode.ABNORMAL, "the client has disconnected")
            except ConnectionClosed as error:  # while an earlier one's outbox was waited for
                gone = error
        if gone is not None:
            raise gone

    @on_home_thread
    def broadcast(
        self,
        message: Sendable,
        room: str | None = None,
        *,
        except_ids: Collection[str] = (),
        confirm: bool = False,
        timeout: float | None = None,
        **delivery: Unpack[DeliveryOptions],
    ) -> int:
        """Send to every member of a room, or to every client, on all nodes; return to how many, as far as known.

        Where members' outboxes are crowded the caller stalls, 5 ms at most: only then does this switch.

        :param confirm: park until every other node with members has put it into their outboxes: what the members
            themselves say to it is asked with ``call_room``.
        :param timeout: seconds that may take, ``Limits.ack_timeout`` (10) if not given.
        :param delivery: see ``send``.
        :raises BadRoom: no name of a room.
        :raises MessageTooBig, BadMessage: it cannot be sent.
        :raises NotConfirmed: ``confirm``, and some nodes did not in time; ``.nodes`` names them.
        """
        hub = self._hub
        except_ids = _ids(except_ids)
        if room is not None:
            hub.rooms.check_name(room)
        outbound = hub.outbound(message, delivery, room=room)
        if room is None:
            receivers = hub.hand_out(hub.connections, outbound, except_ids)
        else:
            stamped, skip = hub.history.publish(room, outbound, except_ids)
            receivers = hub.hand_out(hub.rooms.each_member(room), stamped, skip)
        try:
            if confirm:
                seconds = self.limits.ack_timeout if timeout is None else timeout
                sent = partial(hub.settle, receivers)
                elsewhere = hub.cluster.publish_confirmed(room, outbound, except_ids, seconds, sent)
            else:
                elsewhere = hub.cluster.publish(room, outbound, except_ids)
        finally:
            hub.settle(receivers)
        return receivers.count + elsewhere

    @on_home_thread
    def _broadcast_where(
        self,
        message: Sendable,
        wanted: Callable[[Context], bool] | None,
        skip: Collection[str],
        delivery: DeliveryOptions,
    ) -> int:
        if wanted is None:
            return self.broadcast(message, except_ids=skip, **delivery)
        hub = self._hub
        outbound = hub.outbound(message, delivery)
        chosen = [id_ for id_, connection in tuple(hub.connections.items()) if wanted(connection.context)]
        entries = [entry for id_ in tuple(hub.cluster.clients()) if (entry := hub.cluster.entry(id_)) is not None]
        elsewhere = [entry["id"] for entry in entries if wanted(RemoteClient(entry).context)]
        count = hub.deliver_to(chosen, outbound, skip)
        for client_id in elsewhere:
            if client_id in hub.connections:  # it came here while somebody was waited for
                count += hub.deliver_to((client_id,), outbound, skip)
            elif client_id not in skip:
                count += hub.cluster.send(client_id, outbound)
        return count

    @on_home_thread
    def call(self, client_id: str, message: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """Ask a client and return its answer. Parks this greenlet until it comes.

        :param timeout: seconds, ``Limits.ack_timeout`` (10) if not given.
        :raises TimedOut, CallFailed, UnknownClient, ConnectionClosed: see ``Toolkit.call``.
        """
        seconds = self.limits.ack_timeout if timeout is None else timeout
        connection = self._hub.connections.get(client_id)
        if connection is None:
            return self._hub.cluster.ask(client_id, "call", {"message": message, "timeout": seconds}, seconds)
        return conversation.call(self._hub, connection, message, seconds)

    @on_home_thread
    def call_room(
        self,
        room: str,
        message: Sendable,
        *,
        timeout: float | None = None,
        except_ids: Collection[str] = (),
    ) -> RoomCall:
        """Ask every member of a room, on all nodes, and iterate over ``(client_id, result)`` as answers come.

        The message is sent at once, and may stall as a broadcast does. See :class:`~realtime.room_calls.RoomCall`:
        ``missing`` of what is returned tells who has not answered.

        :param timeout: seconds until it ends, ``Limits.ack_timeout`` (10) if not given.
        :raises BadRoom: no name of a room.
        :raises MessageTooBig, BadMessage: it cannot be sent.
        """
        self._hub.rooms.check_name(room)
        call = RoomCall(self._hub, self._home, self.limits.ack_timeout if timeout is None else timeout)
        call.ask(room, message, frozenset(_ids(except_ids)), elsewhere=True)
        return call

    @on_home_thread
    def disconnect(self, client_id: str, code: int = CloseCode.DISCONNECTED, *, reason: str = "") -> None:
        """Close a client's connection after what waits for it was sent.

        :param code: 1000, 1001, 1008, 1011 or 3000 to 4999; below 4500 clients come back by themselves.
        :param reason: at most 123 bytes of UTF-8.
        :raises UnknownClient: no such client is connected.
        :raises ValueError: a code or reason that no close frame can carry.
        """
        drain.check_close(code, reason)
        connection = self._hub.connections.get(client_id)
        if connection is not None and connection.departed:
            self._hub.sessions.departures.wait_until_seen(client_id)
            connection = self._hub.connections.get(client_id)
        if connection is not None:
            self._hub.close(connection, code, reason)
        else:
            arguments = {"code": int(code), "reason": reason}
            self._hub.cluster.ask(client_id, "disconnect", arguments, self.limits.ack_timeout)


def _ids(given: Collection[str] | str) -> Collection[str]:
    """Take also a single id, and what can only be iterated over."""
    if isinstance(given, str):
        return (given,)
    return given if isinstance(given, Collection) else tuple(given)
