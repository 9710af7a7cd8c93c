"""Asking the server in a session, and waiting for what it answers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from realtime.client.calls import Question
from realtime.client.session import Session
from realtime.client.settings import Settings

__all__ = ["ask", "ask_for_items"]

Make = Callable[[str], bytes]
"""Returns the message that asks, from the id that its answer is to carry."""


def ask(session: Session, make: Make, seconds: float, question: Question) -> Any:
    """Ask, and return the answer; raises as ``Client.call``.

    :param question: takes the answer.
    """
    ack = session.calls.add(question)
    try:
        session.transmit(make(ack), question, seconds)
        with session.inbox.waiting(question):
            return question.result(seconds)
    finally:
        _forget(session, ack, question)


def ask_for_items(session: Session, make: Make, seconds: float, settings: Settings) -> Generator[Any, None, Any]:
    """Ask once iteration begins, yield the items of the answer, and return its end; raises as ``Client.stream``."""
    question = Question(items=settings.limits.stream)
    ack = session.calls.add(question)
    try:
        session.transmit(make(ack), question, seconds)
        while True:
            with session.inbox.waiting(question):
                more, item = question.next_item(seconds)
            if not more:
                return item
            yield item
    finally:
        if ack in session.calls and question.was_sent:
            session.notify(settings.wire.request("system:cancel", {"ack": ack}))
        _forget(session, ack, question)


def _forget(session: Session, ack: str, question: Question) -> None:
    session.calls.forget(ack)
    session.withdraw(question)
