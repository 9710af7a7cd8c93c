"""The exception tree, and the tables of codes."""

from __future__ import annotations

import inspect
import re

import pytest

import realtime
from realtime import codes, errors
from realtime.codes import CloseCode, ErrorCode, may_reconnect

CLASSES = [thing for _, thing in inspect.getmembers(errors, inspect.isclass) if thing.__module__ == "realtime.errors"]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_exception_is_a_realtime_error_with_a_docstring(cls: type) -> None:
    assert issubclass(cls, errors.RealtimeError)
    assert cls.__doc__
    assert cls.__name__ in errors.__all__


def test_the_tree_drawn_at_the_top_is_the_real_one() -> None:
    """Each line of the drawing names a class; its depth gives the parent."""
    path: list[str] = ["RealtimeError"]
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]+)(\w+)", line)
        if found:
            depth = len(found[1]) // 4
            drawn[found[2]] = path[depth - 1]
            path[depth:] = [found[2]]
    real = {cls.__name__: cls.__mro__[1].__name__ for cls in CLASSES if cls is not errors.RealtimeError}
    assert drawn == real


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigurationError", ValueError),
        ("NotRunning", RuntimeError),
        ("UnknownClient", LookupError),
        ("BadMessage", ValueError),
        ("TimedOut", TimeoutError),
        ("ConnectionClosed", ConnectionError),
    ],
)
def test_each_is_also_the_builtin_that_a_caller_would_expect(name: str, builtin: type) -> None:
    assert issubclass(getattr(errors, name), builtin)


def test_reject_has_a_message_a_code_and_a_status() -> None:
    assert vars(errors.Reject("no", code="forbidden", status=401)) == {
        "message": "no",
        "code": "forbidden",
        "status": 401,
    }
    plain = errors.Reject()
    assert (plain.message, plain.code, plain.status) == ("rejected", "rejected", 403)


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.BadRoom, "bad_room"),
        (errors.TooManyRooms, "too_many_rooms"),
        (errors.UnknownClient, "unknown_client"),
        (errors.MessageTooBig, "message_too_big"),
    ],
)
def test_a_special_reject_brings_its_code(cls: type[errors.Reject], code: str) -> None:
    assert cls("x").code == code


def test_connection_closed_tells_code_and_reason() -> None:
    closed = errors.ConnectionClosed(CloseCode.SLOW_CONSUMER, "slow consumer")
    assert (closed.code, closed.reason, str(closed)) == (4008, "slow consumer", "4008 slow consumer")
    assert type(closed.code) is int
    assert str(errors.ConnectionClosed()) == "1006"


def test_call_failed_shows_the_clients_words() -> None:
    failed = errors.CallFailed("no", code="busy")
    assert (failed.code, failed.message, str(failed)) == ("busy", "no", "busy: no")


def test_the_public_names_are_sorted_and_there() -> None:
    assert list(realtime.__all__) == sorted(realtime.__all__)
    for name in realtime.__all__:
        assert getattr(realtime, name) is not None


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4500, 4501, 4503, 4999])
def test_after_these_codes_a_client_must_not_come_back(code: int) -> None:
    assert not may_reconnect(code)


@pytest.mark.parametrize("code", [1001, 1005, 1006, 1011, 1012, 3000, 4000, 4008, 4009, 4013, 4499])
def test_after_these_codes_a_client_should_come_back(code: int) -> None:
    assert may_reconnect(code)


def test_our_codes_lie_in_the_ranges_that_say_whether_to_come_back() -> None:
    own = [code for code in CloseCode if code >= 4000]
    assert {code for code in own if may_reconnect(code)} == {4008, 4009, 4010, 4013}
    assert {code for code in own if not may_reconnect(code)} == {4500, 4501, 4503}


def test_error_codes_are_distinct_short_names() -> None:
    values = [value for name, value in vars(ErrorCode).items() if name.isupper()]
    assert len(set(values)) == len(values)
    assert all(re.fullmatch(r"[a-z_]{4,20}", value) for value in values)
    assert codes.__doc__
