"""A web page to try a kernel with: rooms, chat, who is present, and every message as it goes over the wire.

``open_console(kernel)`` serves it at ``/`` of the kernel's WebSocketTransport, and registers what it asks for:

=================== ============================================== =========================================
the page sends      with                                           gets
=================== ============================================== =========================================
``room:join``       ``room``                                       an ack, and ``room:members`` like everybody
``room:leave``      ``room``                                       an ack
``room:list``                                                      an ack: ``{"rooms": [...], "total": n}``
``presence:update`` ``payload: {"name": "Ada"}``                   an ack
=================== ============================================== =========================================

Everybody in a room gets ``room:members`` when somebody joins it, leaves it, disconnects or takes another name;
everybody at all gets ``room:list`` when a room gains or loses somebody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from page import Page

from realtime import Context, Message, RealtimeKernel, Reject, Toolkit, WebSocketTransport

FILES = ("console.html", "page.css", "console.css", "page.js", "console.js")
NAME_LENGTH = 40  # characters
ROOMS_LISTED = 50


def open_console(kernel: RealtimeKernel) -> None:
    """Serve the page and handle what it sends. To be called before the kernel starts."""
    for transport in kernel.transports:
        if isinstance(transport, WebSocketTransport):
            transport.app = Page(transport.path, *FILES)
    handle_rooms(kernel)


def handle_rooms(kernel: RealtimeKernel) -> None:
    """Register what the page needs beside chatting."""

    @kernel.on("room:join")
    def join(message: Message, context: Context, toolkit: Toolkit) -> None:
        toolkit.rooms.join(required_room(message))

    @kernel.on("room:leave")
    def leave(message: Message, context: Context, toolkit: Toolkit) -> None:
        toolkit.rooms.leave(required_room(message))

    @kernel.on("room:list")
    def list_rooms(message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        return room_list(kernel)

    @kernel.on("presence:update")
    def rename(message: Message, context: Context, toolkit: Toolkit) -> None:
        toolkit.presence.update({"name": checked_name(message.payload)})
        for room in context.rooms:
            tell_members(kernel, room, context, "renamed")

    @kernel.middleware
    def tell_of_moves(message: Message, context: Context, toolkit: Toolkit, call_next: Callable[[], Any]) -> Any:
        """Whichever handler it was that moved the client: tell the rooms it came to or left."""
        before = context.rooms
        try:
            return call_next()
        finally:
            after = context.rooms
            if after != before:
                for room in after:
                    if room not in before:
                        tell_members(kernel, room, context, "joined")
                for room in before:
                    if room not in after:
                        tell_members(kernel, room, context, "left")
                tell_rooms(kernel)

    @kernel.on("client:disconnected")
    def tell_of_departure(message: Message, context: Context, toolkit: Toolkit) -> None:
        for room in context.rooms:
            tell_members(kernel, room, context, "disconnected")
        if context.rooms:
            tell_rooms(kernel)


def required_room(message: Message) -> str:
    """Return the room a message names."""
    if message.room is None:
        raise Reject(f'{message.type} needs a room: {{"type": "{message.type}", "room": "lobby"}}', code="bad_room")
    return message.room


def checked_name(payload: Any) -> str:
    """Return the name in ``{"name": "Ada"}``."""
    name = payload.get("name") if isinstance(payload, dict) else None
    if not isinstance(name, str) or not 0 < len(name.strip()) <= NAME_LENGTH:
        raise Reject(f'send {{"name": "..."}} with 1 to {NAME_LENGTH} characters', code="bad_name")
    return name.strip()


def room_list(kernel: RealtimeKernel) -> dict[str, Any]:
    """Return the rooms there are; ``total`` counts those that are too many to list."""
    rooms = kernel.rooms.list()
    listed = [{"name": name, "members": count} for name, count in list(rooms.items())[:ROOMS_LISTED]]
    return {"rooms": listed, "total": len(rooms)}


def tell_rooms(kernel: RealtimeKernel) -> None:
    """Tell everybody which rooms there are. Whoever reads slowly needs only the newest list."""
    kernel.broadcast({"type": "room:list", "payload": room_list(kernel)}, conflate="room:list")


def tell_members(kernel: RealtimeKernel, room: str, who: Context, did: str) -> None:
    """Tell everybody in a room who is in it now, and what changed."""
    entries = kernel.presence.list(room)
    members = [{"id": entry["id"], "name": entry["metadata"].get("name")} for entry in entries]
    change = {"id": who.id, "name": who.metadata.get("name"), "did": did}
    kernel.broadcast(
        {"type": "room:members", "payload": {"members": members, "total": entries.total, "change": change}}, room
    )
