"""Signals: what a client may say to another about a peer connection, or ask of a call, checked and rebuilt.

State only: no sockets, no clock, no greenlets. A payload is never passed on as it came: the documented keys
are copied out of it, so that no client can put words into the server's mouth, and each has a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from realtime.config import KiB
from realtime.errors import BadMessage, ConfigurationError, Reject
from realtime.message import JSON, Message

__all__ = [
    "KINDS",
    "REASONS",
    "REQUESTS",
    "CallRequest",
    "Reason",
    "Signal",
    "SignalBounds",
    "destination_of",
    "read_request",
    "read_signal",
    "refusal",
]

NAME_LENGTH = 255  # characters of a target that can exist
NEGOTIATION_LENGTH = 64  # characters of a negotiation's id
REQUESTS = ("join", "peers", "leave")  # what clients ask of a call
INDEX_LIMIT = 65_535  # sdpMLineIndex is an unsigned short


class Reason:
    """The ``reason`` of a ``webrtc:error``: plain strings. In lower case, codes of ``system:error``."""

    INVALID_OFFER = "INVALID_OFFER"
    INVALID_ANSWER = "INVALID_ANSWER"
    INVALID_CANDIDATE = "INVALID_CANDIDATE"
    INVALID_BYE = "INVALID_BYE"
    INVALID_JOIN = "INVALID_JOIN"
    INVALID_PEERS = "INVALID_PEERS"
    INVALID_LEAVE = "INVALID_LEAVE"
    TARGET_OR_ROOM_REQUIRED = "TARGET_OR_ROOM_REQUIRED"
    UNKNOWN_TARGET = "UNKNOWN_TARGET"  # not connected, or not in the room that the signal names beside it
    NOT_IN_ROOM = "NOT_IN_ROOM"
    FORBIDDEN = "FORBIDDEN"  # authorize said no, no room is shared, or "from" is somebody else
    TOO_LARGE = "TOO_LARGE"
    EXPIRED = "EXPIRED"  # of a negotiation that is over, or held in vain for an offer or a client
    ROOM_FULL = "ROOM_FULL"
    BAD_ROOM = "BAD_ROOM"  # no name that a room can have, or a name that belongs to the calls of a bridge
    TOO_MANY_ROOMS = "TOO_MANY_ROOMS"  # Limits.rooms_per_client


@dataclass(frozen=True, kw_only=True)
class SignalBounds:
    """Sizes of the parts of a signal, in bytes of UTF-8."""

    sdp: int = 64 * KiB
    """A session description. A call of a few tracks takes 3 to 10 KiB; each further track about 1.5 KiB."""

    candidate: int = 4 * KiB
    """A candidate with its ``sdpMid`` and ``usernameFragment``. Real ones take 100 to 300 bytes."""

    metadata: int = 4 * KiB
    """``metadata``, encoded as JSON."""

    def __post_init__(self) -> None:
        for bound in fields(self):
            value = getattr(self, bound.name)
            if type(value) is not int or value <= 0:
                raise ConfigurationError(f"max_{bound.name}={value!r}: must be a whole number above 0, bytes")


def refusal(reason: str, message: str) -> Reject:
    """Return what to raise: the reason in lower case is the code of a ``system:error``."""
    return Reject(message, code=reason.lower())


@dataclass(slots=True)
class Signal:
    """A signal that was checked; ``content`` is what goes out of description, candidate and metadata."""

    target: str | None
    room: str | None
    negotiation: str | None
    content: dict[str, Any]

    @property
    def describes(self) -> bool:
        """Whether it carries a session description that candidates can follow: a rollback takes one back."""
        description = self.content.get("description")
        return description is not None and description["type"] != "rollback"

    def payload(self, sender: str) -> dict[str, Any]:
        """Return what the receiver gets; ``from`` is the sender's id, whatever the client claimed."""
        payload: dict[str, Any] = {"from": sender}
        if self.target is not None:
            payload["target"] = self.target
        if self.room is not None:
            payload["room"] = self.room
        if self.negotiation is not None:
            payload["negotiation"] = self.negotiation
        payload.update(self.content)
        return payload


@dataclass(frozen=True)
class CallRequest:
    """A ``join``, ``peers`` or ``leave`` that was checked, but for the name of its room."""

    room: Any
    metadata: Any = None
    resume: str | None = None


def destination_of(message: Message) -> tuple[Any, Any]:
    """Return target and room as the client gave them: in the payload, or else beside it. Both unchecked."""
    payload = message.payload if isinstance(message.payload, dict) else {}
    return payload.get("target") or message.target, payload.get("room") or message.room


def read_request(kind: str, message: Message, bounds: SignalBounds) -> CallRequest:
    """Check a message as a request of ``kind``, one of ``REQUESTS``.

    :raises Reject: it is none; the code is the :class:`Reason` in lower case.
    """
    invalid = f"INVALID_{kind.upper()}"
    payload = _payload_of(message, invalid, '{"room": name}')
    room = destination_of(message)[1]
    if room is None:
        raise refusal(invalid, 'name the room of the call: {"room": name}')
    if kind != "join":
        return CallRequest(room)
    metadata, resume = payload.get("metadata"), payload.get("resume")
    if resume is not None and not isinstance(resume, str):
        raise refusal(invalid, "resume must be the token that an earlier join was answered with, a string")
    if metadata is not None:
        metadata = _read_metadata(metadata, bounds, invalid)
    return CallRequest(room, metadata, resume)


def read_signal(kind: str, message: Message, bounds: SignalBounds, sender: str) -> Signal:
    """Check a message of the client ``sender`` as a signal of ``kind``, one of ``KINDS``.

    :raises Reject: it is none; the code is the :class:`Reason` in lower case.
    """
    invalid = _INVALID[kind]
    payload = message.payload
    if type(payload) is not dict:
        payload = _payload_of(message, invalid, '{"target": id, "description": {...}}')
    claimed = payload.get("from")
    if claimed is not None and claimed != sender:
        raise refusal(Reason.FORBIDDEN, "from is filled in by the server: leave it out")
    content = _READERS[kind](payload, bounds)
    if payload.get("metadata") is not None:
        content["metadata"] = _read_metadata(payload["metadata"], bounds, invalid)
    negotiation = payload.get("negotiation")
    if negotiation is not None and not (isinstance(negotiation, str) and 0 < len(negotiation) <= NEGOTIATION_LENGTH):
        raise refusal(invalid, f"negotiation must be a string of 1 to {NEGOTIATION_LENGTH} characters")
    target: Any = payload.get("target") or message.target
    room: Any = payload.get("room") or message.room
    if not target and not room:
        raise refusal(Reason.TARGET_OR_ROOM_REQUIRED, "a signal names the target or the room it goes to")
    if target and not (isinstance(target, str) and len(target) <= NAME_LENGTH):
        raise refusal(Reason.TARGET_OR_ROOM_REQUIRED, "target must be the id of one client, a string")
    if room and not isinstance(room, str):
        raise refusal(Reason.TARGET_OR_ROOM_REQUIRED, "room must be the name of a room, a string")
    return Signal(target or None, room or None, negotiation, content)


def _payload_of(message: Message, invalid: str, example: str) -> dict[str, Any]:
    payload = {} if message.payload is None else message.payload
    if not isinstance(payload, dict):
        raise refusal(invalid, f"the payload must be an object such as {example}")
    return payload


def _read_description(
    synonym: str, types: tuple[str, ...], payload: Mapping[str, Any], bounds: SignalBounds
) -> dict[str, Any]:
    """Return ``{"description": RTCSessionDescriptionInit}``; a rollback needs no sdp (W3C WebRTC 4.6.2)."""
    description = payload.get("description")
    if description is None:
        description = payload.get(synonym)
    if not isinstance(description, dict):
        text = f'description must be an object: {{"type": "{synonym}", "sdp": "v=0..."}}'
        raise refusal(_INVALID[synonym], text)
    kind, sdp = description.get("type"), description.get("sdp")
    if kind not in types:
        raise refusal(_INVALID[synonym], f"description.type must be one of {', '.join(types)}")
    if kind == "rollback" and sdp is None:
        sdp = ""
    if not isinstance(sdp, str) or (not sdp and kind != "rollback"):
        text = "description.sdp must be the session description, a non-empty string"
        raise refusal(_INVALID[synonym], text)
    _check_size("description.sdp", _size("description.sdp", sdp, _INVALID[synonym]), bounds.sdp)
    return {"description": {"type": kind, "sdp": sdp}}


def _read_candidate(payload: Mapping[str, Any], bounds: SignalBounds) -> dict[str, Any]:
    """Return ``{"candidate": RTCIceCandidateInit}``, or null at the end: ``addIceCandidate`` takes both."""
    candidate = payload.get("candidate", _MISSING)
    if candidate is None or candidate == "":
        return {"candidate": None}
    if not isinstance(candidate, dict):
        raise refusal(
            Reason.INVALID_CANDIDATE,
            'candidate must be an object: {"candidate": "candidate:...", "sdpMid": "0", "sdpMLineIndex": 0}, '
            "or null at the end of the candidates",
        )
    if not isinstance(candidate.get("candidate"), str):
        raise refusal(Reason.INVALID_CANDIDATE, "candidate.candidate must be a string, empty at the end")
    for name in ("sdpMid", "usernameFragment"):
        value = candidate.get(name)
        if value is not None and not isinstance(value, str):
            raise refusal(Reason.INVALID_CANDIDATE, f"candidate.{name} must be a string or null")
    index = candidate.get("sdpMLineIndex")
    if index is not None and not (type(index) is int and 0 <= index <= INDEX_LIMIT):
        raise refusal(Reason.INVALID_CANDIDATE, f"candidate.sdpMLineIndex: 0 to {INDEX_LIMIT}, or null")
    known: dict[str, Any] = {}
    size = 0
    for name in _CANDIDATE_MEMBERS:
        if name in candidate:
            known[name] = value = candidate[name]
            if isinstance(value, str):
                size += _size(f"candidate.{name}", value, Reason.INVALID_CANDIDATE)
    _check_size("candidate", size, bounds.candidate)
    return {"candidate": known}


def _read_bye(payload: Mapping[str, Any], bounds: SignalBounds) -> dict[str, Any]:
    return {}


def _read_metadata(metadata: Any, bounds: SignalBounds, invalid: str) -> Any:
    try:
        size = len(JSON.encode(metadata))
    except BadMessage as error:
        raise refusal(invalid, f"metadata {error.message}") from None
    _check_size("metadata", size, bounds.metadata)
    return metadata


def _size(what: str, text: str, invalid: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise refusal(invalid, f"{what} must be valid Unicode, got half of a surrogate pair") from None


def _check_size(what: str, size: int, bound: int) -> None:
    if size > bound:
        raise refusal(Reason.TOO_LARGE, f"{what} may take {bound} bytes, got {size}")


_MISSING = object()
_CANDIDATE_MEMBERS = ("candidate", "sdpMid", "sdpMLineIndex", "usernameFragment")
_READERS: dict[str, Callable[[Mapping[str, Any], SignalBounds], dict[str, Any]]] = {
    "offer": partial(_read_description, "offer", ("offer", "rollback")),
    "answer": partial(_read_description, "answer", ("answer", "pranswer", "rollback")),
    "candidate": _read_candidate,
    "bye": _read_bye,
}
KINDS = tuple(_READERS)
_INVALID = {kind: f"INVALID_{kind.upper()}" for kind in KINDS}
REASONS = frozenset(value for name, value in vars(Reason).items() if name.isupper())
