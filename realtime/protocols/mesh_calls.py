"""What nodes ask each other to do for a client, and what became of it, as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from realtime.config import KiB
from realtime.errors import (
    BadMessage,
    BadRoom,
    CallFailed,
    ConnectionClosed,
    MessageTooBig,
    RealtimeError,
    Reject,
    TimedOut,
    TooManyRooms,
    UnknownClient,
)
from realtime.message import MSGPACK

__all__ = [
    "pack_answers",
    "pack_failure",
    "pack_question",
    "pack_result",
    "unpack_answers",
    "unpack_failure",
    "unpack_question",
    "unpack_result",
]

PART = 64 * KiB  # bytes of answers that are passed on in one go

_decode = msgspec.msgpack.Decoder().decode
_REJECTS: dict[str, type[Reject]] = {
    kind.__name__: kind for kind in (BadRoom, TooManyRooms, UnknownClient, MessageTooBig, Reject)
}


def pack_question(operation: str, arguments: Mapping[str, Any]) -> bytes:
    """Return what to ask. Raises BadMessage for arguments that MessagePack cannot carry."""
    return MSGPACK.encode([operation, dict(arguments)])


def unpack_question(body: bytes) -> tuple[str, dict[str, Any]]:
    """Return operation and arguments. Raises BadMessage."""
    question = _read(body)
    if not (isinstance(question, list) and len(question) >= 2 and isinstance(question[0], str)):
        raise BadMessage("a node asks what is no question")
    if not isinstance(question[1], dict):
        raise BadMessage("a question without arguments")
    return question[0], question[1]


def pack_result(result: Any) -> bytes:
    """Return the answer to a question. Raises BadMessage."""
    return MSGPACK.encode(result)


def unpack_result(body: bytes) -> Any:
    """Return what was answered. Raises BadMessage."""
    return _read(body)


def pack_answers(answers: Iterable[tuple[str, Any]]) -> Iterator[tuple[list[str], bytes]]:
    """Yield what clients answered, a part at a time that is not longer than PART, or one answer; each with whose."""
    clients: list[str] = []
    packed: list[bytes] = []
    size = 0
    for client, result in answers:
        failed = isinstance(result, CallFailed)
        answer = MSGPACK.encode([client, not failed, [result.message, result.code] if failed else result])
        if packed and size + len(answer) > PART:
            yield clients, pack_result(packed)
            clients, packed, size = [], [], 0
        clients.append(client)
        packed.append(answer)
        size += len(answer)
    if packed:
        yield clients, pack_result(packed)


def unpack_answers(packed: Any) -> list[tuple[str, Any]]:
    """Return what a part says. Raises BadMessage."""
    answers: list[tuple[str, Any]] = []
    try:
        for answer in packed:
            client, ok, result = _read(answer)
            if not isinstance(client, str):
                raise TypeError("an id is a string")
            answers.append((client, result if ok else CallFailed(str(result[0]), code=str(result[1]))))
    except (TypeError, ValueError, IndexError):
        raise BadMessage("a node passes on what is no answer") from None
    return answers


def pack_failure(error: BaseException) -> bytes:
    """Return why there is no answer; of an error that is not ours no more than that there was one."""
    if isinstance(error, Reject):
        kind = next(name for name, known in _REJECTS.items() if isinstance(error, known))
        return MSGPACK.encode([kind, error.message, error.code])
    if isinstance(error, CallFailed):
        return MSGPACK.encode(["CallFailed", error.message, error.code])
    if isinstance(error, ConnectionClosed):
        return MSGPACK.encode(["ConnectionClosed", error.reason, error.code])
    if isinstance(error, TimedOut):
        return MSGPACK.encode(["TimedOut", str(error), None])
    if isinstance(error, BadMessage):
        return MSGPACK.encode(["BadMessage", error.message, None])
    return MSGPACK.encode(["RealtimeError", "failed on the client's node", None])


def unpack_failure(body: bytes) -> RealtimeError:
    """Return what to raise."""
    try:
        kind, text, code = _read(body)
    except (BadMessage, TypeError, ValueError):
        return RealtimeError("failed on the client's node")
    if kind in _REJECTS:
        return _REJECTS[kind](str(text), code=str(code))
    if kind == "CallFailed":
        return CallFailed(str(text), code=str(code))
    if kind == "ConnectionClosed" and isinstance(code, int):
        return ConnectionClosed(code, str(text))
    if kind == "TimedOut":
        return TimedOut(str(text))
    if kind == "BadMessage":
        return BadMessage(str(text))
    return RealtimeError(str(text))


def _read(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"a node said what cannot be read: {str(error)[:200]}") from None
