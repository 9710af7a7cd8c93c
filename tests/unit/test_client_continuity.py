"""What a client counts and keeps of a session, on its own and against a simple model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.client import continuity
from realtime.client.continuity import Continuity
from realtime.client.welcome import SessionNews, read_welcome
from realtime.client.wire import ClientMessage


def news(received: int = 0, token: str = "n.abc") -> SessionNews:
    return SessionNews(token, True, received, 30.0)


def test_without_a_session_nothing_is_counted_or_kept() -> None:
    one = Continuity()
    one.sending(b"x")
    assert not one.received(10**9)
    assert not one.lasts
    assert one.unconfirmed() == ()
    assert one.wish() is True
    assert not one.resume(news())


def test_what_the_server_does_not_have_is_there_to_be_sent_again() -> None:
    one = Continuity(news())
    for number in range(5):
        one.sending(b"%d" % number)
    assert one.confirm(2)
    assert one.resume(news(3, "n.next"))
    assert one.unconfirmed() == (b"3", b"4")
    assert one.wish() == {"token": "n.next", "received": 0}


def test_what_did_not_go_out_does_not_count() -> None:
    one = Continuity(news())
    one.sending(b"a")
    one.sending(b"b")
    one.unsent(b"b")
    one.sending(b"x" * (continuity.KEPT_BYTES + 1))
    one.unsent(b"x")
    assert not one.confirm(2)
    assert one.confirm(1)


def test_a_session_that_needs_what_is_no_longer_kept_cannot_be_resumed() -> None:
    one = Continuity(news())
    for _ in range(continuity.KEPT + 1):
        one.sending(b"x")
    assert not one.resume(news(0))
    assert one.resume(news(1))
    assert not one.resume(news(continuity.KEPT + 2)), "more than was ever sent"


def test_it_is_time_to_confirm_after_so_many_messages_or_bytes() -> None:
    one = Continuity(news())
    assert [one.received(1) for _ in range(continuity.CONFIRM)].index(True) == continuity.CONFIRM - 1
    assert one.confirmation() == {"count": continuity.CONFIRM}
    assert not one.received(1)
    assert one.received(continuity.CONFIRM_BYTES)


@given(st.lists(st.one_of(st.integers(0, 3000), st.tuples(st.integers(0, 1500)))))
def test_it_keeps_the_newest_that_are_not_confirmed(steps: list[Any]) -> None:
    """A number sends a message of that many bytes; a tuple confirms so many."""
    one = Continuity(news())
    sent: list[bytes] = []
    first = 0
    for step in steps:
        if isinstance(step, int):
            data = b"%d" % len(sent) + b"x" * step
            sent.append(data)
            one.sending(data)
            while len(sent) - first > continuity.KEPT or sum(map(len, sent[first:])) > continuity.KEPT_BYTES:
                first += 1
        else:
            possible = first <= step[0] <= len(sent)
            assert one.confirm(step[0]) is possible
            first = step[0] if possible else first
        assert list(one.unconfirmed()) == sent[first:]


@pytest.mark.parametrize(
    "told", [None, 5, {}, {"token": 5, "received": 0}, {"token": "x", "received": ""}, {"token": "x", "received": True}]
)
def test_what_makes_no_sense_of_a_session_is_none(told: Any) -> None:
    assert read_welcome(ClientMessage("system:welcome", {"id": "a", "session": told})).session is None


@pytest.mark.parametrize("grace", [None, "30", True, -1, 0, float("inf"), float("nan")])
def test_a_server_that_does_not_say_how_long_it_waits_waits_half_a_minute(grace: Any) -> None:
    session = {"token": "x", "received": 0, "grace": grace}
    said = read_welcome(ClientMessage("system:welcome", {"session": session})).session
    assert said is not None
    assert (said.grace, said.resumed) == (30.0, False)
