"""Options complain where they are written, and say what is allowed."""

from __future__ import annotations

import dataclasses
import math

import pytest

from realtime import ConfigurationError, Heartbeat, KiB, Limits, MiB, RealtimeKernel, WebSocketTransport

DEFAULTS = {
    "message_size": 1_000_000,
    "before_authentication": 64 * KiB,
    "handshake": 10,
    "close_handshake": 5,
    "outbox": 1 * MiB,
    "park_above": 0.75,
    "park_timeout": 1,
    "stall": 0.005,
    "inbox": 16,
    "fragments": 4096,
    "rooms_per_client": 128,
    "room_name": 255,
    "presence_listed": 100,
    "ack_timeout": 10,
    "blocked_loop": 0.1,
}


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_the_defaults_are_the_documented_ones(name: str, value: float) -> None:
    assert getattr(Limits(), name) == value


def test_the_heartbeat_is_25_and_10_seconds() -> None:
    assert (Heartbeat().interval, Heartbeat().timeout) == (25, 10)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", None, True])
def test_a_limit_must_be_a_number_above_zero(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"Limits\({field}=.*above 0"):
        Limits(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits) if field.type == "int"])
def test_a_limit_that_counts_must_be_whole(field: str) -> None:
    with pytest.raises(ConfigurationError, match="a whole number"):
        Limits(**{field: 1.5})


def test_park_above_is_a_share() -> None:
    assert Limits(park_above=1).park_above == 1
    with pytest.raises(ConfigurationError, match="at most 1"):
        Limits(park_above=1.01)


def test_a_heartbeat_must_be_above_zero() -> None:
    with pytest.raises(ConfigurationError, match=r"Heartbeat\(interval=0\): must be a number above 0"):
        Heartbeat(interval=0)


def test_options_are_frozen_and_named() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().outbox = 1
    with pytest.raises(TypeError):
        Limits(1)


@pytest.mark.parametrize("level", ["loud", "", None, 10, "warn"])
def test_an_unknown_log_level_is_refused(level: object) -> None:
    with pytest.raises(ConfigurationError, match="debug, info, warning, error, critical"):
        RealtimeKernel(log_level=level)


def test_limits_must_be_limits() -> None:
    with pytest.raises(ConfigurationError, match=r"must be a realtime\.Limits"):
        RealtimeKernel(limits={"outbox": 1})


@pytest.mark.parametrize("transport", [object(), "websocket", 8080, None, WebSocketTransport])
def test_what_is_no_transport_is_refused(transport: object) -> None:
    with pytest.raises(ConfigurationError):
        RealtimeKernel([transport])


def test_a_transport_belongs_to_one_kernel() -> None:
    transport = WebSocketTransport(port=0)
    RealtimeKernel([transport])
    with pytest.raises(ConfigurationError, match="belongs to another kernel"):
        RealtimeKernel([transport])


def test_a_configuration_error_is_a_value_error() -> None:
    assert issubclass(ConfigurationError, ValueError)
