"""The thread of a Client that runs handlers, one message after the other."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from realtime.client.handlers import Handlers
from realtime.client.inbox import Entry, Inbox
from realtime.client.wire import ClientWire
from realtime.errors import BadMessage, MessageTooBig, TimedOut

__all__ = ["Handling"]

log = logging.getLogger("realtime.client")


class Handling:
    """What that thread does.

    :param reply: sends an answer to where its question came from; may wait. Raises MessageTooBig, TimedOut.
    """

    def __init__(
        self,
        inbox: Inbox,
        handlers: Handlers,
        wire: ClientWire,
        stats: Counter[str],
        reply: Callable[[object, bytes], None],
    ) -> None:
        self._inbox = inbox
        self._handlers = handlers
        self._wire = wire
        self._stats = stats
        self._reply = reply

    def run(self) -> None:
        """Handle what comes, to the end."""
        while (entry := self._inbox.take()) is not None:
            message = entry.message
            if entry.claimed:
                self._handlers.tell(message.type, message)
                if message.ack is not None:
                    self._answer(entry)
            if entry.source is not None:
                self._handlers.tell("*", message)

    def _answer(self, entry: Entry) -> None:
        question = entry.message
        kind, payload = self._handlers.answer_to(question)
        try:
            try:
                self._reply(entry.source, self._wire.request(kind, payload))
            except (BadMessage, MessageTooBig) as error:
                log.error("the answer to %r cannot be sent: %s", question.type, error)
                refusal = {"ack": question.ack, "code": "rejected", "message": str(error)}
                self._reply(entry.source, self._wire.request("system:error", refusal))
        except TimedOut:
            self._stats["unsent"] += 1
            log.error("the answer to %r is not sent: the server takes nothing", question.type)
