"""Event names, templates and reserved namespaces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import event_name
from realtime.errors import ConfigurationError
from realtime.events import EventTemplate, is_reserved


def test_a_template_takes_the_name_apart() -> None:
    assert EventTemplate("chat:message:[room_id]").match("chat:message:7") == {"room_id": "7"}


def test_several_parameters_each_take_one_piece() -> None:
    assert EventTemplate("[a]:x:[b]").match("1:x:2") == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    "name", ["chat:message:", "chat:message", "chat:message:7:8", "xchat:message:7", "chat:message:7\n:", ""]
)
def test_a_parameter_takes_one_or_more_characters_but_no_colon(name: str) -> None:
    assert EventTemplate("chat:message:[room_id]").match(name) is None


def test_what_looks_like_a_pattern_is_taken_literally() -> None:
    assert EventTemplate("a.c*[x]").match("abc*1") is None
    assert EventTemplate("a.c*[x]").match("a.c*1") == {"x": "1"}


def test_a_parameter_may_hold_any_other_character() -> None:
    assert EventTemplate("say:[text]").match("say:hello\nwörld /[]") == {"text": "hello\nwörld /[]"}


def test_a_template_without_parameters_matches_only_itself() -> None:
    assert EventTemplate("chat").match("chat") == {}
    assert EventTemplate("chat").match("chats") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "non-empty string"),
        (None, "non-empty string"),
        (7, "non-empty string"),
        ("chat:[room", "brackets must pair up"),
        ("chat:room]", "brackets must pair up"),
        ("chat:[[room]]", "brackets must pair up"),
        ("chat:[]", "must be an identifier"),
        ("chat:[room id]", "must be an identifier"),
        ("chat:[1]", "must be an identifier"),
        ("chat:[a]:[a]", "may appear once"),
    ],
)
def test_a_malformed_template_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        EventTemplate(text)


def test_event_name_fills_the_parameters_in_order() -> None:
    assert event_name("chat:message:[room_id]", 7) == "chat:message:7"
    assert event_name("[a]-[b]:x", "1", 2.5) == "1-2.5:x"
    assert event_name("plain") == "plain"


@pytest.mark.parametrize("values", [(), (1, 2)])
def test_event_name_refuses_a_wrong_number_of_values(values: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"has 1 parameter\(s\) \(room_id\)"):
        event_name("chat:message:[room_id]", *values)


@pytest.mark.parametrize("value", ["", "a:b"])
def test_event_name_refuses_values_that_would_not_match(value: str) -> None:
    with pytest.raises(ValueError, match="without ':'"):
        event_name("chat:message:[room_id]", value)


@given(st.lists(st.text(min_size=1).filter(lambda text: ":" not in text), min_size=2, max_size=2))
def test_what_event_name_builds_the_template_takes_apart(values: list[str]) -> None:
    template = "x:[first]:y:[second]"
    assert EventTemplate(template).match(event_name(template, *values)) == dict(
        zip(("first", "second"), values, strict=True)
    )


@pytest.mark.parametrize("name", ["system:ack", "system:", "client:connected", "mesh:x"])
def test_the_servers_namespaces_are_reserved(name: str) -> None:
    assert is_reserved(name)


@pytest.mark.parametrize("name", ["system", "chat:system:", "System:ack", "clients:x", "meshes:x"])
def test_other_names_are_not_reserved(name: str) -> None:
    assert not is_reserved(name)
