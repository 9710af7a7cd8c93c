"""Call rooms: the rooms of the kernel that calls are, and sending to who is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from realtime.connection import Context
from realtime.errors import BadRoom, ConfigurationError, ConnectionClosed, Reject, UnknownClient
from realtime.kernel import RealtimeKernel
from realtime.signaling.held import Held
from realtime.signaling.signals import Reason, refusal

__all__ = ["CallRooms"]

_namespaces: WeakKeyDictionary[RealtimeKernel, set[str]] = WeakKeyDictionary()  # taken by bridges, by kernel


class CallRooms:
    """Names of calls, membership, and delivery, for one bridge on one kernel.

    The call in the room ``lobby`` is the kernel's room ``<namespace>:lobby``.

    :raises ConfigurationError: the namespace is taken on this kernel, or clients are in such rooms already.
    """

    def __init__(self, kernel: RealtimeKernel, namespace: str, counters: Counter[str]) -> None:
        taken = _namespaces.setdefault(kernel, set())
        if namespace in taken:
            raise ConfigurationError(f"namespace={namespace!r}: the kernel has a bridge for it already")
        prefix = f"{namespace}:"
        occupied = [room for room in kernel.rooms.list() if room.startswith(prefix)]
        if occupied:
            raise ConfigurationError(f"namespace={namespace!r}: clients are in the room {occupied[0]!r} already")
        # webrtc:join asks authorize, and webrtc:leave tells the others; system:join and system:leave would not
        kernel.rooms.rules.reserve(prefix)
        taken.add(namespace)
        self._taken = taken
        self._kernel = kernel
        self._prefix = f"{namespace}:"
        self.counters = counters
        self.entering: set[tuple[str, str]] = set()
        """Call and client, of those that are in the call's room but do not know yet who else is."""

    # Names -----------------------------------------------------------------------------------------------

    def event(self, kind: str) -> str:
        """Return the type of a message of this bridge."""
        return self._prefix + kind

    def call(self, room: Any) -> str:
        """Return the kernel's name of the call in ``room``. Raises BadRoom."""
        self._kernel.rooms.check_name(room)
        self.check_free(room)
        longest = self._kernel.limits.room_name - len(self._prefix)
        if len(room) > longest:
            raise BadRoom(f"the room of a call may have {longest} characters, got {len(room)}")
        return f"{self._prefix}{room}"

    def check_free(self, room: str) -> None:
        """Raise BadRoom for the room of a call of any bridge: it is entered by joining the call, and only so."""
        namespace, colon, _ = room.partition(":")
        if colon and namespace in self._taken:
            raise BadRoom(f"names that begin with {namespace + colon!r} belong to calls: join the call instead")

    def check_open(self, room: str, context: Context) -> None:
        """Raise Reject if a rule of the application keeps a client out of a room. May wait.

        Rooms without a rule are open: that is what ``auto_join_rooms`` says.
        """
        rule = self._kernel.rooms.rules.rule_for(room)
        if rule is None or rule.join is True:
            return
        if rule.join is False or not rule.join(context, room):
            raise refusal(Reason.FORBIDDEN, f"you may not join {room!r}")

    def name(self, call: str) -> str:
        """Return the room of a call as clients name it."""
        return call[len(self._prefix) :]

    def calls_among(self, rooms: Iterable[str]) -> list[str]:
        """Return those of the kernel's rooms that are calls of this bridge."""
        return [room for room in rooms if room.startswith(self._prefix)]

    # Membership --------------------------------------------------------------------------------------------

    def contains(self, room: str, client_id: str) -> bool:
        """Tell whether a client is in a room of the kernel."""
        return self._kernel.rooms.contains(room, client_id)

    def others(self, call: str, client_id: str) -> list[str]:
        """Return the other clients in a call, in the order they came."""
        entering = self.entering
        members = self._kernel.rooms.members(call)
        return [one for one in members if one != client_id and (not entering or (call, one) not in entering)]

    # Delivery ----------------------------------------------------------------------------------------------

    def tell_others(
        self, room: str, message: dict[str, Any], client_id: str, *, skip: Collection[str] = ()
    ) -> int:
        """Send to the members of a room but for one and ``skip``; return to how many. May stall as ``broadcast``.

        Who does not know yet who is in the call is not told what goes on there.
        """
        return self._kernel.broadcast(message, room, except_ids={client_id, *skip, *self.entering_in(room)})

    def tell_here(self, call: str, message: dict[str, Any], skip: Collection[str] = ()) -> int:
        """Send to this node's members of a call but for ``skip``; return to how many. May stall as ``broadcast``."""
        hub = self._kernel.hub
        return hub.deliver_to(hub.rooms.each_member(call), hub.outbound(message, room=call), skip)

    def entering_in(self, call: str) -> set[str]:
        """Return who does not know yet who is in a call, and so is not told what goes on there."""
        return {one for where, one in self.entering if where == call} if self.entering else set()

    def send_held(self, several: Iterable[Held]) -> None:
        """Send candidates that waited, in order. Parks while their receiver's outbox is crowded."""
        for held in several:
            try:
                self._kernel.send(held.target, held.message)
                self.counters["released"] += 1
            except (UnknownClient, ConnectionClosed):
                self.counters["dropped_held"] += 1
            except Reject:  # larger than the receiver's outbox, or not for its codec: its neighbours may pass
                self.counters["dropped_held"] += 1
