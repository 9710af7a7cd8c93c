"""What a Client's handlers' thread does with each message: listeners, answers to questions, and ``"*"``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from realtime.client.wire import ClientMessage
from realtime.codes import ErrorCode
from realtime.errors import CallFailed, ConfigurationError, Reject
from realtime.events import ANY

__all__ = ["Handler", "Handlers"]

log = logging.getLogger("realtime.client")

Handler = Callable[[ClientMessage], Any]


class Handlers:
    """Functions by the type of message they want. Lists are replaced, not changed: any thread may look."""

    def __init__(self) -> None:
        self._listeners: dict[str, tuple[Handler, ...]] = {}
        self._answerers: dict[str, Handler] = {}
        self._changing = threading.Lock()

    def add(self, type: str, handler: Handler) -> None:
        """Have a handler called for a type."""
        _check("on", type, handler)
        with self._changing:
            self._listeners[type] = (*self._listeners.get(type, ()), handler)

    def remove(self, type: str, handler: Handler) -> None:
        """Have it called no more. Raises ConfigurationError if it never was."""
        with self._changing:
            listeners = list(self._listeners.get(type, ()))
            if handler not in listeners:
                raise ConfigurationError(f"off({type!r}, {handler!r}): was not registered")
            listeners.remove(handler)
            self._listeners[type] = tuple(listeners)

    def answer(self, type: str, answerer: Handler) -> None:
        """Have a function answer a question."""
        _check("answer", type, answerer)
        if type in self._answerers:
            raise ConfigurationError(f"answer({type!r}): a question has one answer, and this one has it already")
        self._answerers[type] = answerer

    def has(self, type: str) -> bool:
        """Tell whether anything listens to exactly this type."""
        return bool(self._listeners.get(type))

    def tell(self, type: str, message: ClientMessage) -> None:
        """Call the handlers of a type, each whatever the others do."""
        for handler in self._listeners.get(type, ()):
            try:
                handler(message)
            except (Exception, SystemExit):  # a thread that ended would leave the messages after it unhandled
                log.exception("the handler %s of %r failed", getattr(handler, "__qualname__", handler), type)

    def answer_to(self, question: ClientMessage) -> tuple[str, dict[str, Any]]:
        """Return type and payload of what answers a question of the server."""
        answerer = self._answerers.get(question.type) or self._answerers.get(ANY)
        if answerer is None:
            return _refusal(question, ErrorCode.UNKNOWN_TYPE, f"nobody answers {question.type!r} here")
        try:
            return "system:ack", {"ack": question.ack, "result": answerer(question)}
        except (Reject, CallFailed) as error:
            return _refusal(question, error.code, error.message)
        except (Exception, SystemExit) as error:
            log.exception("the answer to %r failed", question.type)
            return _refusal(question, ErrorCode.REJECTED, f"{type(error).__name__} in the client's answer")


def _refusal(question: ClientMessage, code: str, message: str) -> tuple[str, dict[str, Any]]:
    return "system:error", {"ack": question.ack, "code": code, "message": message}


def _check(where: str, type: str, function: Handler) -> None:
    if not isinstance(type, str) or not type:
        raise ConfigurationError(f"{where}({type!r}): must be the type of a message, or '*'")
    if not callable(function):
        raise ConfigurationError(f"{where}({type!r}, {function!r}): must be a function")
