"""Delivery: one encoded message to any number of outboxes."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from realtime.codes import CloseCode
from realtime.config import KiB, Limits
from realtime.connection import Connection
from realtime.delivery import NO_OPTIONS, DeliveryOptions, delivery_from, expires_at
from realtime.errors import BadMessage, ConnectionClosed, MessageTooBig
from realtime.message import Codec, Message, Outbound, Wire
from realtime.outbox import Outbox, stall

__all__ = ["Outgoing", "Receivers"]

log = logging.getLogger("realtime")

FRAME_ROOM = 2 * KiB  # for a frame's header, and the longest cursor


def _always(outbox: Outbox) -> bool:
    """Whoever publishes here stalls for every crowded member."""
    return True


class Receivers:
    """In whose outboxes a message is, and who of them is to be waited for: ``Outgoing.settle`` must follow.

    ``count`` says to how many clients it went; ``crowded`` are outboxes above the high-water mark, ``full`` those that
    got so many bytes beyond their limit.
    """

    __slots__ = ("count", "crowded", "full", "waits_for")

    def __init__(self, waits_for: Callable[[Outbox], bool]) -> None:
        self.waits_for = waits_for
        self.count = 0
        self.crowded: list[Outbox] = []
        self.full: list[tuple[Outbox, int]] = []


class Outgoing:
    """The connections of a hub, and delivery to them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters: Counter[str] = Counter()
        self.connections: dict[str, Connection] = {}
        self._codecs: Counter[Codec] = Counter()  # of the clients that are here

    def _speaks(self, codec: Codec, change: int) -> None:
        """One client more, or less, speaks a codec."""
        self._codecs[codec] += change
        self._codecs += Counter()  # forgets those at 0

    def outbound(
        self,
        message: Mapping[str, Any] | Message,
        options: DeliveryOptions = NO_OPTIONS,
        *,
        room: str | None = None,
        ack: str | int | None = None,
    ) -> Outbound:
        """Stamp a message with the time. Raises BadMessage, and TypeError for an unknown delivery option."""
        now = int(time.time() * 1000)
        if not options:
            return Outbound(message, now, room=room, ack=ack)
        delivery = delivery_from(options)
        expires = expires_at(delivery, time.monotonic())
        return Outbound(message, now, room=room, ack=ack, delivery=delivery, expires=expires)

    def put(self, connection: Connection, outbound: Outbound) -> None:
        """Put into one outbox without waiting: where it does not fit, its policy decides.

        :raises MessageTooBig, BadMessage: it cannot be sent.
        """
        frame = self._finished(outbound, connection.wire)
        if connection.outbox.put(frame):
            self.counters["sent"] += 1

    def put_relayed(self, connection: Connection, outbound: Outbound) -> None:
        """As ``put``, for what another node has sent: one that cannot be sent here is counted."""
        try:
            self.put(connection, outbound)
        except (BadMessage, MessageTooBig) as error:
            self.undeliverable(error)

    def send_error(
        self,
        connection: Connection,
        message: str,
        code: str,
        *,
        ack: str | int | None = None,
        details: str | None = None,
    ) -> None:
        """Answer with ``system:error`` without waiting."""
        payload: dict[str, Any] = {"message": _printable(message), "code": _printable(code)}
        if ack is not None:
            payload["ack"] = ack
        if details is not None:
            payload["details"] = _printable(details)
        if not connection.closed:
            self.put(connection, self.outbound({"type": "system:error", "payload": payload}))

    def _finished(self, outbound: Outbound, wire: Wire) -> bytes:
        """Return the frame for a wire. Raises MessageTooBig, BadMessage."""
        frame = outbound.finished(wire)
        if len(frame) > self.limits.outbox:
            raise MessageTooBig(
                f"a message of {len(frame)} bytes does not fit into an outbox of {self.limits.outbox} (Limits.outbox)"
            )
        return frame

    def _check_for_all(self, outbound: Outbound) -> None:
        """Raise MessageTooBig, BadMessage unless every client here can be sent a message, and a cursor with it."""
        for codec in self._codecs:
            size = len(outbound.encoded(codec)) + FRAME_ROOM
            if size > self.limits.outbox:
                text = f"a message of {size} bytes as {codec.name} does not fit into an outbox of {self.limits.outbox}"
                raise MessageTooBig(f"{text} (Limits.outbox)")

    def deliver(self, connection: Connection, outbound: Outbound, *, patience: float | None = None) -> None:
        """Send to one client. Parks while its outbox is crowded, at most ``patience`` seconds: switches.

        A message that may be dropped does not park.

        :param patience: ``Limits.park_timeout`` if not given.
        :raises ConnectionClosed: the client has gone.
        :raises MessageTooBig: larger than the whole outbox.
        :raises BadMessage: the payload cannot be encoded.
        """
        self.wait_for_room(connection, outbound, patience=patience)
        self.put(connection, outbound)

    def wait_for_room(self, connection: Connection, outbound: Outbound, *, patience: float | None = None) -> None:
        """Do what ``deliver`` does before it sends. Parks and raises as that."""
        if connection.closed:
            raise ConnectionClosed(CloseCode.ABNORMAL, "the client has disconnected")
        outbox = connection.outbox
        frame = self._finished(outbound, connection.wire)
        if not outbox.has_room(len(frame)) and not outbound.may_drop:
            outbox.wait_for_room(self.limits.park_timeout if patience is None else patience, len(frame))
            if connection.closed:
                raise ConnectionClosed(CloseCode.ABNORMAL, "the client has disconnected")

    def deliver_to(
        self,
        client_ids: Iterable[str],
        outbound: Outbound,
        skip: Collection[str] = (),
        *,
        waits_for: Callable[[Outbox], bool] = _always,
    ) -> int:
        """Put one message into many outboxes; return to how many clients it went.

        Where members are above the high-water mark the caller stalls, at most ``Limits.stall`` in all, so
        that a fast publisher cannot cut healthy members off: only then, and for no volatile message, does this
        switch. The message is in all outboxes before: nothing that is sent meanwhile overtakes it.

        :param waits_for: tells of an outbox that is above it whether to stall for it.
        :raises MessageTooBig: larger than a whole outbox, in the codec of one of them.
        :raises BadMessage: the payload cannot be encoded.
        """
        receivers = self.hand_out(client_ids, outbound, skip, waits_for=waits_for)
        self.settle(receivers)
        return receivers.count

    def hand_out(
        self,
        client_ids: Iterable[str],
        outbound: Outbound,
        skip: Collection[str] = (),
        *,
        waits_for: Callable[[Outbox], bool] = _always,
    ) -> Receivers:
        """Put one message into many outboxes, and wait for none yet: the first half of ``deliver_to``.

        For a message that goes to other nodes too: while this switches, a client may move from there to here.
        """
        receivers = Receivers(waits_for)
        self._put_to(tuple(client_ids), outbound, skip, receivers)
        return receivers

    def deliver_all(
        self,
        client_ids: Iterable[str],
        messages: Iterable[tuple[Outbound, Collection[str]]],
        *,
        waits_for: Callable[[Outbox], bool] = _always,
    ) -> int:
        """Put messages of other nodes into many outboxes, each but for some clients; return how many went out.

        As ``deliver_to``, in their order and with nothing between them. One that cannot be sent here is counted.
        """
        client_ids = tuple(client_ids)
        receivers = Receivers(waits_for)
        stalls = 0
        for outbound, skip in messages:
            stalls += 1
            try:
                self._put_to(client_ids, outbound, skip, receivers)
            except (BadMessage, MessageTooBig) as error:
                self.undeliverable(error)
        self.settle(receivers, stalls)
        return receivers.count

    def undeliverable(self, error: Exception) -> None:
        """Another node's limits or codecs let through what ours do not."""
        self.counters["relayed_undeliverable"] += 1
        log.warning("a message of another node cannot be delivered here: %s", error)

    def _put_to(
        self, client_ids: tuple[str, ...], outbound: Outbound, skip: Collection[str], receivers: Receivers
    ) -> None:
        """Put one message into many outboxes; note which are to be waited for. Raises MessageTooBig, BadMessage."""
        if len(self._codecs) > 1:  # all or nobody: what one codec cannot carry is found before anyone has it
            for codec in self._codecs:
                outbound.encoded(codec)
        connections = self.connections
        limit, may_drop = self.limits.outbox, outbound.may_drop
        crowded: list[Outbox] = []
        wire = None
        frame = b""
        most = 0  # that may wait in an outbox which has room for the frame
        count = 0
        for client_id in client_ids:
            connection = connections.get(client_id)
            if connection is None or client_id in skip:
                continue
            if connection.wire is not wire:
                wire = connection.wire
                frame = self._finished(outbound, wire)
                most = limit - len(frame)
            outbox = connection.outbox
            if outbox.size > most and not may_drop and receivers.waits_for(outbox):
                count += outbox.put_beyond(frame)
                receivers.full.append((outbox, len(frame)))
                continue
            if outbox.put(frame):
                count += 1
            if outbox.size > outbox.park_at:
                crowded.append(outbox)
        if crowded and not outbound.volatile:
            receivers.crowded += filter(receivers.waits_for, crowded)
        self.counters["sent"] += count
        receivers.count += count

    def settle(self, receivers: Receivers, stalls: int = 1) -> None:
        """Wait for outboxes that are crowded or overfull, once; who is cut off does not count. Switches greenlets.

        :param stalls: how often ``Limits.stall`` that may take, in all.
        """
        full, crowded = receivers.full, receivers.crowded
        if not full and not crowded:
            return
        receivers.full, receivers.crowded = [], []
        self.counters["stalls"] += 1
        deadline = time.perf_counter() + stalls * self.limits.stall  # for both kinds together
        cut_off = 0
        unsettled = iter(full)
        try:
            for outbox, size in unsettled:
                cut_off += not outbox.settle(size, deadline - time.perf_counter())
        finally:  # a timeout of the caller's may end the waiting, never the bounds
            cut_off += sum(not outbox.settle(size, 0) for outbox, size in unsettled)
            self.counters["sent"] -= cut_off
            receivers.count -= cut_off
        stall(crowded, deadline - time.perf_counter())

    def acknowledge(self, connection: Connection, ack: str | int | None) -> None:
        """Answer what has no result, if an answer was asked for."""
        if ack is not None:
            self.put(connection, self.outbound({"type": "system:ack", "payload": {"ack": ack}}))


def _printable(text: str) -> str:
    """Return ``text`` without what UTF-8 cannot carry: an exception's text may hold anything."""
    return text.encode(errors="backslashreplace").decode()
