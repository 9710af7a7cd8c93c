"""The signaling bridge: offers, answers and ICE candidates find their way from one client to another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from realtime.config import KiB
from realtime.connection import Context
from realtime.errors import ConfigurationError, ConnectionClosed, MessageTooBig, Reject, UnknownClient
from realtime.events import is_reserved
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.routing import check_function
from realtime.signaling.signals import (
    KINDS,
    Reason,
    Signal,
    SignalBounds,
    destination_of,
    read_signal,
    refusal,
)
from realtime.toolkit import Toolkit

__all__ = ["WebRTCSignalingBridge"]

log = logging.getLogger("realtime.signaling")

Authorize = Callable[[Context, str], bool]

NAMESPACE_LENGTH = 64
ECHOED = 255  # characters of a target or room that an error repeats
_namespaces: WeakKeyDictionary[RealtimeKernel, set[str]] = WeakKeyDictionary()  # taken, by kernel


class WebRTCSignalingBridge:
    """Routes ``webrtc:offer``, ``webrtc:answer``, ``webrtc:candidate`` and ``webrtc:bye`` between clients.

    ::

        {"type": "webrtc:offer", "payload": {"target": id, "description": {"type": "offer", "sdp": "v=0..."}}}

    A signal goes to its ``target``, or else to the other members of its ``room``; both may also stand beside
    the payload. With both it goes to the target, who must be in the room too. It arrives under the same type
    with the documented keys of the payload (``target, room, description, candidate, metadata``; others are
    ignored) and ``from``, the sender's id, which no client can forge. ``offer`` and ``answer`` are synonyms
    of ``description``.

    With an ``ack`` a signal is answered ``{"delivered": n}``, the number of clients it went to. One that is
    refused goes to nobody, and its sender gets ``webrtc:error`` with ``{"reason", "message", "event"}`` and
    the signal's ``target``, ``room`` and ``ack``; if it had an ack, that is answered too, by a
    ``system:error`` whose code is the reason in lower case. Reasons: see
    :class:`realtime.signaling.signals.Reason`; joining a room may also end in ``BAD_ROOM`` and
    ``TOO_MANY_ROOMS``, and a ``Reject`` raised by ``authorize`` in its own code in upper case. Any other
    exception of ``authorize`` is the server's fault: ``internal_error``.

    :param namespace: what stands before the colon; bridges of different namespaces do not meet.
    :param auto_join_rooms: put a client into the room that its signal names; without, it must be a member.
    :param authorize: ``authorize(context, target_or_room)`` returns whether this client may signal there;
        asked for the room (before anyone is put into it) and for the target. May wait: only this client does.
    :param require_shared_room: a target must be in a room with the sender.
    :param max_sdp: bytes of a session description.
    :param max_candidate: bytes of a candidate.
    :param max_metadata: bytes of ``metadata`` as JSON.
    :raises ConfigurationError: an option that cannot work.
    """

    def __init__(
        self,
        *,
        namespace: str = "webrtc",
        auto_join_rooms: bool = False,
        authorize: Authorize | None = None,
        require_shared_room: bool = False,
        max_sdp: int = 64 * KiB,
        max_candidate: int = 4 * KiB,
        max_metadata: int = 4 * KiB,
    ) -> None:
        _check_namespace(namespace)
        if authorize is not None:
            check_function(authorize, 2, "authorize", "(context, target_or_room)")
        self.namespace = namespace
        self._auto_join_rooms = auto_join_rooms
        self._authorize = authorize
        self._require_shared_room = require_shared_room
        self._bounds = SignalBounds(sdp=max_sdp, candidate=max_candidate, metadata=max_metadata)
        self._kinds = {f"{namespace}:{kind}": kind for kind in KINDS}
        self._attached = False

    def attach(self, kernel: RealtimeKernel) -> WebRTCSignalingBridge:
        """Serve this kernel's clients from now on; return the bridge.

        :raises ConfigurationError: not a kernel, a bridge that is attached already, or a namespace that
            another bridge has on this kernel.
        """
        if not isinstance(kernel, RealtimeKernel):
            raise ConfigurationError(f"attach({kernel!r}): must be a RealtimeKernel")
        if self._attached:
            raise ConfigurationError(f"the bridge for {self.namespace!r} is attached already: make another")
        taken = _namespaces.setdefault(kernel, set())
        if self.namespace in taken:
            raise ConfigurationError(f"namespace={self.namespace!r}: the kernel has a bridge for it already")
        taken.add(self.namespace)
        self._attached = True
        for event in self._kinds:
            kernel.on(event, self._handle)
        return self

    def _handle(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, int] | None:
        """Handle one signal. Switches where ``authorize`` waits, and while a receiver's outbox is crowded."""
        try:
            signal = read_signal(self._kinds[message.type], message, self._bounds)
            if signal.room is not None:
                self._check_room(signal.room, context, toolkit)
            if signal.target is not None:
                self._check_target(signal.target, signal.room, context, toolkit)
            return {"delivered": self._forward(signal, message.type, context, toolkit)}
        except Reject as refused:
            log.debug("%s from %s refused: %s", message.type, context.id, refused.message)
            self._tell_refused(refused, message, toolkit)
            if message.ack is not None:
                raise
            return None

    def _check_room(self, room: str, context: Context, toolkit: Toolkit) -> None:
        """Raise Reject unless the sender may signal into ``room``; with ``auto_join_rooms`` it joins.

        ``context.rooms`` still knows the rooms of a client that said bye and closed before its turn came.
        """
        outside = refusal(Reason.NOT_IN_ROOM, f"you are not in the room {room[:ECHOED]!r}: join it first")
        if not self._auto_join_rooms and room not in context.rooms:
            raise outside
        self._ask(room, context)
        if self._auto_join_rooms:
            toolkit.rooms.join(room)
        if room not in context.rooms:  # left, or was put out, while authorize() waited
            raise outside

    def _check_target(self, target: str, room: str | None, context: Context, toolkit: Toolkit) -> None:
        """Raise Reject unless ``target`` is there and the sender may signal to it."""
        entry = toolkit.presence.get(target)
        if entry is None:
            raise _unknown(target)
        if room is not None and room not in entry["rooms"]:
            raise refusal(Reason.UNKNOWN_TARGET, f"client {target!r} is not in the room {room[:ECHOED]!r}")
        if self._require_shared_room and set(entry["rooms"]).isdisjoint(context.rooms):
            raise refusal(Reason.FORBIDDEN, f"you share no room with client {target!r}")
        self._ask(target, context)

    def _ask(self, target_or_room: str, context: Context) -> None:
        if self._authorize is not None and not self._authorize(context, target_or_room):
            raise refusal(Reason.FORBIDDEN, f"you may not signal to {target_or_room[:ECHOED]!r}")

    def _forward(self, signal: Signal, event: str, context: Context, toolkit: Toolkit) -> int:
        """Send a signal on; return to how many clients. Raises Reject."""
        outgoing: dict[str, Any] = {"type": event, "payload": signal.payload(context.id), "room": signal.room}
        try:
            if signal.target is None:
                return toolkit.rooms.broadcast(outgoing, signal.room, except_self=True)
            toolkit.send(signal.target, outgoing)
        except (UnknownClient, ConnectionClosed):
            raise _unknown(signal.target) from None
        except MessageTooBig as error:
            raise refusal(Reason.TOO_LARGE, error.message) from None
        return 1

    def _tell_refused(self, refused: Reject, message: Message, toolkit: Toolkit) -> None:
        """Send ``<namespace>:error`` to the sender; raise ConnectionClosed if that has gone meanwhile."""
        payload: dict[str, Any] = {
            "reason": refused.code.upper(),
            "message": refused.message,
            "event": message.type,
        }
        for name, value in zip(("target", "room"), destination_of(message), strict=True):
            if isinstance(value, str) and len(value) <= ECHOED:
                payload[name] = value
        if message.ack is not None:
            payload["ack"] = message.ack
        toolkit.reply({"type": f"{self.namespace}:error", "payload": payload})


def _unknown(target: str | None) -> Reject:
    return refusal(Reason.UNKNOWN_TARGET, f"no client {target!r} is connected")


def _check_namespace(namespace: object) -> None:
    """Raise ConfigurationError unless ``namespace`` can stand before the colon of an event."""
    if not isinstance(namespace, str) or not 0 < len(namespace) <= NAMESPACE_LENGTH:
        raise ConfigurationError(f"namespace={namespace!r}: must have 1 to {NAMESPACE_LENGTH} characters")
    if any(character in ":[]" for character in namespace):
        raise ConfigurationError(f"namespace={namespace!r}: must not contain a colon or brackets")
    if is_reserved(f"{namespace}:"):
        raise ConfigurationError(f"namespace={namespace!r}: belongs to the server, choose another")
