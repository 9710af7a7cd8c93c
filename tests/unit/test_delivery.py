"""Delivery options: what is refused, and how they reach the frame."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from realtime.delivery import Delivery, Perishable, delivery_from
from realtime.errors import BadMessage
from realtime.message import JSON, Outbound, Wire

NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"overflow": "close", "volatile": False, "conflate": None, "ttl": None}, None),
        ({"overflow": "drop_oldest"}, Delivery("drop_oldest")),
        ({"conflate": "price:EUR"}, Delivery(conflate="price:EUR")),
        ({"volatile": True, "conflate": "k", "ttl": 2}, Delivery(volatile=True, conflate="k", ttl=2.0)),
        ({"ttl": 0.5}, Delivery(ttl=0.5)),
        ({"ttl": 5, "overflow": "drop_oldest"}, Delivery("drop_oldest", ttl=5.0)),
    ],
)
def test_options_become_a_delivery_or_nothing(options: Any, expected: Delivery | None) -> None:
    delivery = delivery_from(options)
    assert delivery == expected
    assert delivery is None or delivery.ttl is None or type(delivery.ttl) is float


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"overflow": "drop"}, "overflow='drop'"),
        ({"overflow": None}, "overflow=None"),
        ({"overflow": "conflate"}, "overflow='conflate'"),
        ({"overflow": "drop_oldest", "conflate": "k"}, "overflow='drop_oldest'"),
        ({"overflow": "drop_oldest", "volatile": True}, "overflow='drop_oldest'"),
        ({"volatile": 1}, "volatile=1"),
        ({"volatile": None}, "volatile=None"),
        ({"conflate": ""}, "conflate=''"),
        ({"conflate": 7}, "conflate=7"),
        ({"ttl": 0}, "ttl=0"),
        ({"ttl": -1.5}, "ttl=-1.5"),
        ({"ttl": True}, "ttl=True"),
        ({"ttl": "5"}, "ttl='5'"),
        ({"ttl": float("nan")}, "ttl=nan"),
        ({"ttl": float("inf")}, "ttl=inf"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options: Any, named: str) -> None:
    with pytest.raises(BadMessage, match=named):
        delivery_from(options)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="volatil"):
        delivery_from({"volatil": True})  # type: ignore[typeddict-unknown-key]


def test_only_messages_with_options_become_frames_that_are_looked_at() -> None:
    wire = Wire(JSON, lambda payload: payload)
    assert type(Outbound({"type": "x"}, NOW).finished(wire)) is bytes
    delivery = Delivery(conflate="k", ttl=5.0)
    frame = Outbound({"type": "x"}, NOW, delivery=delivery, expires=7.0).finished(wire)
    assert isinstance(frame, Perishable)
    assert (frame.delivery, frame.expires) == (delivery, 7.0)


def test_what_is_left_of_a_ttl_is_what_other_nodes_are_told() -> None:
    outbound = Outbound({"type": "x"}, NOW, delivery=Delivery(volatile=True, ttl=5.0), expires=105.0)
    assert outbound.delivery_left(101.0) == Delivery(volatile=True, ttl=4.0)
    assert outbound.delivery_left(106.0) == Delivery(volatile=True, ttl=0.0)
    assert Outbound({"type": "x"}, NOW, delivery=Delivery(conflate="k")).delivery_left(1.0) == Delivery(conflate="k")
    assert Outbound({"type": "x"}, NOW).delivery_left(1.0) is None


@pytest.mark.parametrize("hostile", [["drop"], ["close", 1], ["close", False, ""], ["close", False, None, -1.0]])
def test_a_node_cannot_send_options_that_make_no_sense(hostile: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(hostile), type=Delivery)
