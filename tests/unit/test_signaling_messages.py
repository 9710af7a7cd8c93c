"""Signals: what is one, what is refused and why, and what goes out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from realtime.errors import ConfigurationError, Reject
from realtime.message import Message
from realtime.signaling.signals import (
    KINDS,
    NAME_LENGTH,
    REQUESTS,
    CallRequest,
    Signal,
    SignalBounds,
    destination_of,
    read_request,
    read_signal,
)

BOUNDS = SignalBounds()
SDP = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
OFFER = {"type": "offer", "sdp": SDP}
ANSWER = {"type": "answer", "sdp": SDP}
CANDIDATE = {
    "candidate": "candidate:1 1 udp 2122260223 10.0.0.7 54321 typ host",
    "sdpMid": "0",
    "sdpMLineIndex": 0,
    "usernameFragment": "uFrg",
}


def read(kind: str, payload: Any, *, bounds: SignalBounds = BOUNDS, **fields: Any) -> Signal:
    return read_signal(kind, Message(f"webrtc:{kind}", payload, **fields), bounds, "me")


def refused(kind: str, payload: Any, **fields: Any) -> str:
    with pytest.raises(Reject) as caught:
        read(kind, payload, **fields)
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    ("kind", "description"),
    [
        ("offer", OFFER),
        ("offer", {"type": "rollback", "sdp": ""}),
        ("answer", ANSWER),
        ("answer", {"type": "pranswer", "sdp": SDP}),
        ("answer", {"type": "rollback", "sdp": ""}),
    ],
)
def test_each_type_of_description_passes_where_it_belongs(kind: str, description: dict[str, str]) -> None:
    assert read(kind, {"target": "t", "description": description}).content == {"description": description}


def test_a_rollback_needs_no_sdp() -> None:
    signal = read("offer", {"target": "t", "description": {"type": "rollback"}})
    assert signal.content == {"description": {"type": "rollback", "sdp": ""}}


@pytest.mark.parametrize(("kind", "description"), [("offer", OFFER), ("answer", ANSWER)])
def test_the_event_s_own_name_is_a_synonym_of_description(kind: str, description: dict[str, str]) -> None:
    assert read(kind, {"target": "t", kind: description}).content == {"description": description}


@pytest.mark.parametrize("kind", ["offer", "answer"])
@pytest.mark.parametrize(
    "payload",
    [
        "v=0",
        [],
        7,
        {},
        {"description": None},
        {"description": SDP},
        {"description": []},
        {"description": {}},
        {"description": {"sdp": SDP}},
        {"description": {"type": "hello", "sdp": SDP}},
        {"description": {"type": ["offer"], "sdp": SDP}},
        {"description": {"type": None, "sdp": SDP}},
        {"description": {"type": "offer"}, "answer": ANSWER},
        {"description": {"type": "answer"}},
        {"description": {"type": "offer", "sdp": 7}},
        {"description": {"type": "answer", "sdp": b"v=0"}},
        {"description": {"type": "offer", "sdp": ""}},
        {"description": {"type": "answer", "sdp": ""}},
        {"description": {"type": "rollback", "sdp": 0}},
        {"candidate": CANDIDATE},
    ],
    ids=repr,
)
def test_what_is_no_description_is_refused(kind: str, payload: Any) -> None:
    assert refused(kind, payload, target="t") == f"invalid_{kind}"


def test_an_offer_under_answer_and_an_answer_under_offer_are_refused() -> None:
    assert refused("answer", {"target": "t", "description": OFFER}) == "invalid_answer"
    assert refused("offer", {"target": "t", "description": ANSWER}) == "invalid_offer"
    provisional = {"type": "pranswer", "sdp": SDP}
    assert refused("offer", {"target": "t", "description": provisional}) == "invalid_offer"


@pytest.mark.parametrize(
    "candidate",
    [
        CANDIDATE,
        {"candidate": "candidate:1"},
        {"candidate": "", "sdpMid": "0", "sdpMLineIndex": 0},
        {"candidate": "c", "sdpMid": None, "sdpMLineIndex": 65_535, "usernameFragment": None},
        None,
    ],
    ids=repr,
)
def test_a_candidate_or_the_end_of_candidates_passes_unchanged(candidate: Any) -> None:
    assert read("candidate", {"target": "t", "candidate": candidate}).content == {"candidate": candidate}


def test_an_empty_text_for_a_candidate_means_the_end_and_goes_out_as_null() -> None:
    assert read("candidate", {"target": "t", "candidate": ""}).content == {"candidate": None}


@pytest.mark.parametrize(
    "payload",
    [
        "candidate:1",
        {},
        {"candidate": "candidate:1"},
        {"candidate": 0},
        {"candidate": False},
        {"candidate": []},
        {"candidate": {}},
        {"candidate": {"sdpMid": "0"}},
        {"candidate": {**CANDIDATE, "candidate": None}},
        {"candidate": {**CANDIDATE, "candidate": 1}},
        {"candidate": {**CANDIDATE, "sdpMid": 0}},
        {"candidate": {**CANDIDATE, "sdpMLineIndex": "0"}},
        {"candidate": {**CANDIDATE, "sdpMLineIndex": 0.5}},
        {"candidate": {**CANDIDATE, "sdpMLineIndex": True}},
        {"candidate": {**CANDIDATE, "sdpMLineIndex": -1}},
        {"candidate": {**CANDIDATE, "sdpMLineIndex": 65_536}},
        {"candidate": {**CANDIDATE, "usernameFragment": {}}},
        {"description": OFFER},
    ],
    ids=repr,
)
def test_what_is_no_candidate_is_refused(payload: Any) -> None:
    assert refused("candidate", payload, target="t") == "invalid_candidate"


def test_a_bye_needs_no_payload_but_it_must_be_an_object() -> None:
    assert read("bye", None, target="t").content == {}
    assert refused("bye", "bye", target="t") == "invalid_bye"


@pytest.mark.parametrize(
    ("payload", "fields", "expected"),
    [
        ({"target": "t"}, {}, ("t", None)),
        ({"room": "r"}, {}, (None, "r")),
        ({"target": "t", "room": "r"}, {}, ("t", "r")),
        ({}, {"target": "t"}, ("t", None)),
        (None, {"room": "r"}, (None, "r")),
        ({"target": "t"}, {"target": "other", "room": "r"}, ("t", "r")),
        ({"target": "", "room": None}, {"target": "t", "room": "r"}, ("t", "r")),
    ],
)
def test_the_destination_is_in_the_payload_or_else_beside_it(
    payload: Any, fields: dict[str, Any], expected: tuple[str | None, str | None]
) -> None:
    signal = read("bye", payload, **fields)
    assert (signal.target, signal.room) == expected


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        ({}, {}),
        (None, {}),
        ({"target": "", "room": ""}, {}),
        ({"target": None}, {"room": None}),
        ({"target": 7}, {}),
        ({"target": ["a", "b"]}, {}),
        ({}, {"target": ["a"]}),
        ({"target": {"id": "t"}}, {"target": "t"}),
        ({"room": 7}, {}),
        ({"target": "t", "room": ["r"]}, {}),
        ({"target": "x" * (NAME_LENGTH + 1)}, {}),
    ],
)
def test_a_signal_to_nobody_nameable_is_refused(payload: Any, fields: dict[str, Any]) -> None:
    assert refused("bye", payload, **fields) == "target_or_room_required"


def test_sizes_are_bounded_in_bytes_of_utf_8() -> None:
    bounds = SignalBounds(sdp=10, candidate=10, metadata=10)

    def offer(sdp: str) -> dict[str, Any]:
        return {"target": "t", "description": {"type": "offer", "sdp": sdp}}

    assert read("offer", offer("x" * 10), bounds=bounds)
    assert refused("offer", offer("x" * 11), bounds=bounds) == "too_large"
    assert refused("offer", offer("ä" * 6), bounds=bounds) == "too_large"
    candidate = {"candidate": "x" * 8, "sdpMid": "0", "usernameFragment": "u"}
    assert read("candidate", {"target": "t", "candidate": candidate}, bounds=bounds)
    candidate["sdpMid"] = "00"
    assert refused("candidate", {"target": "t", "candidate": candidate}, bounds=bounds) == "too_large"
    assert read("bye", {"target": "t", "metadata": "x" * 8}, bounds=bounds)
    assert refused("bye", {"target": "t", "metadata": "x" * 9}, bounds=bounds) == "too_large"


def test_metadata_that_cannot_be_encoded_is_refused() -> None:
    assert refused("bye", {"target": "t", "metadata": object()}) == "invalid_bye"


def test_a_megabyte_of_sdp_is_too_large_by_default() -> None:
    description = {"type": "offer", "sdp": "x" * 1_000_000}
    assert refused("offer", {"target": "t", "description": description}) == "too_large"


@pytest.mark.parametrize("claimed", ["me", None])
def test_only_documented_keys_go_out_and_from_is_the_server_s_word(claimed: Any) -> None:
    payload = {
        "target": "t",
        "room": "r",
        "from": claimed,
        "polite": True,
        "candidate": CANDIDATE,
        "description": {**OFFER, "extra": "x" * 100_000},
        "metadata": {"from": "kept, it is the client's own"},
    }
    assert read("offer", payload).payload("sender") == {
        "from": "sender",
        "target": "t",
        "room": "r",
        "description": OFFER,
        "metadata": {"from": "kept, it is the client's own"},
    }
    assert read("candidate", {"target": "t", "candidate": {**CANDIDATE, "extra": 1}}).content == {
        "candidate": CANDIDATE
    }


@pytest.mark.parametrize("claimed", ["somebody else", "", 0, False, ["me"], {"id": "me"}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_from_is_forbidden(kind: str, claimed: Any) -> None:
    assert refused(kind, {"target": "t", "from": claimed, "description": OFFER}) == "forbidden"


@pytest.mark.parametrize("negotiation", ["1", "x" * 64, "ß"])
def test_a_negotiation_s_id_goes_out(negotiation: str) -> None:
    signal = read("bye", {"target": "t", "negotiation": negotiation})
    assert signal.payload("me") == {"from": "me", "target": "t", "negotiation": negotiation}


@pytest.mark.parametrize("negotiation", ["", "x" * 65, 0, 7, True, ["1"], {}])
@pytest.mark.parametrize(
    ("kind", "content"),
    [("offer", {"offer": OFFER}), ("answer", {"answer": ANSWER}), ("candidate", {"candidate": None}), ("bye", {})],
)
def test_a_negotiation_s_id_of_the_wrong_kind_is_refused(kind: str, content: Any, negotiation: Any) -> None:
    assert refused(kind, {"target": "t", "negotiation": negotiation, **content}) == f"invalid_{kind}"


@pytest.mark.parametrize(
    ("kind", "content", "describes"),
    [
        ("offer", {"offer": OFFER}, True),
        ("answer", {"answer": {"type": "pranswer", "sdp": SDP}}, True),
        ("offer", {"offer": {"type": "rollback"}}, False),
        ("candidate", {"candidate": None}, False),
        ("bye", {}, False),
    ],
)
def test_candidates_can_follow_descriptions_but_no_rollback(kind: str, content: Any, describes: bool) -> None:
    assert read(kind, {"target": "t", **content}).describes is describes


# Requests ------------------------------------------------------------------------------------------------


def ask(kind: str, payload: Any, **fields: Any) -> CallRequest:
    return read_request(kind, Message(f"webrtc:{kind}", payload, **fields), BOUNDS)


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_names_its_room_in_the_payload_or_beside_it(kind: str) -> None:
    assert ask(kind, {"room": "lobby"}).room == ask(kind, None, room="lobby").room == "lobby"
    assert ask(kind, {"room": "a"}, room="b").room == "a"


def test_a_join_may_carry_metadata_and_a_token() -> None:
    request = ask("join", {"room": "r", "metadata": {"name": "x"}, "resume": "t"})
    assert request == CallRequest("r", {"name": "x"}, "t")
    assert ask("join", {"room": "r", "metadata": None, "resume": None}) == CallRequest("r")
    assert ask("leave", {"room": "r", "metadata": "x" * 10_000, "resume": 5}) == CallRequest("r")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (None, "invalid_join"),
        ({}, "invalid_join"),
        ("lobby", "invalid_join"),
        (["lobby"], "invalid_join"),
        ({"room": None}, "invalid_join"),
        ({"room": "r", "resume": 7}, "invalid_join"),
        ({"room": "r", "resume": {"token": "x"}}, "invalid_join"),
        ({"room": "r", "metadata": "x" * 4095}, "too_large"),
        ({"room": "r", "metadata": object()}, "invalid_join"),
    ],
)
def test_a_join_of_another_shape_is_refused(payload: Any, code: str) -> None:
    with pytest.raises(Reject) as caught:
        ask("join", payload)
    assert caught.value.code == code


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "64k"])
@pytest.mark.parametrize("name", ["sdp", "candidate", "metadata"])
def test_a_bound_is_a_whole_number_above_0(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"max_{name}="):
        SignalBounds(**{name: value})


scalars = st.sampled_from([None, True, 0, -1, 1.5, "", "x", "\ud800", b"b", [], {}, ["x"], {"type": "offer"}])


def members_of(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of these members, each as it should be or anything at all."""
    return st.fixed_dictionaries({}, optional={name: values | scalars for name, values in known.items()})


names = st.text(max_size=3)
types = st.sampled_from(["offer", "answer", "pranswer", "rollback"])
descriptions = members_of(type=types, sdp=names, x=names)
candidates = members_of(candidate=names, sdpMid=names, sdpMLineIndex=st.integers(), usernameFragment=names, x=names)
payloads = scalars | members_of(
    target=names,
    room=names,
    description=descriptions,
    offer=descriptions,
    answer=descriptions,
    candidate=candidates,
    metadata=names,
    negotiation=names,
    **{"from": names | st.just("me")},
)


@example(kind="offer", payload={"description": {"type": "offer", "sdp": "\ud800"}}, target="bob")
@example(kind="candidate", payload={"candidate": {"candidate": "", "sdpMid": "\ud800"}}, target="bob")
@given(kind=st.sampled_from(KINDS), payload=payloads, target=st.none() | names | st.lists(names, max_size=2))
def test_whatever_comes_is_a_signal_of_the_documented_shape_or_refused_with_a_reason(
    kind: str, payload: Any, target: Any
) -> None:
    message = Message(f"webrtc:{kind}", payload, None, target)
    destination_of(message)  # an error tells where the signal was meant to go: that works for anything
    reason = None
    try:
        signal = read_signal(kind, message, BOUNDS, "me")
    except Reject as error:
        reason = error.code
    if reason is not None:
        assert reason in {f"invalid_{kind}", "target_or_room_required", "too_large", "forbidden"}
        return
    out = signal.payload("me")
    assert out["from"] == "me"
    assert set(out) <= {"from", "target", "room", "negotiation", "description", "candidate", "metadata"}
    assert 0 < len(out.get("negotiation", "x")) <= 64
    assert signal.target or signal.room
    assert isinstance(out.get("target", ""), str)
    assert isinstance(out.get("room", ""), str)
