"""Delivery options: what may become of a message that a client cannot take at once.

Given as keywords wherever messages are sent (``reply``, ``send``, ``broadcast``), checked once, and carried along
to every outbox, those on other nodes included.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypedDict

from msgspec import Meta, Struct
from msgspec.structs import replace

from realtime.errors import BadMessage

__all__ = ["NO_OPTIONS", "Delivery", "DeliveryOptions", "Perishable", "delivery_from", "expires_at", "left_of"]


class DeliveryOptions(TypedDict, total=False):
    """The keywords. Without any of them a message waits in each outbox, in order, until it is sent."""

    overflow: str
    """If it does not fit into an outbox: ``"close"`` the connection with 4008, which is the default, or
    ``"drop_oldest"`` of the messages that wait and may be dropped."""

    volatile: bool
    """Drop it for each client that cannot take it now: whose outbox is above the high-water mark
    (``Limits.park_above``), or whose node cannot be reached. Nobody waits for room. Counted ``dropped_volatile``."""

    conflate: str | None
    """A key, such as ``"price:EUR"``, of which only the newest message waits in an outbox: this one takes the place
    of the one before it (counted ``dropped_conflated``), and goes to the end of the line."""

    ttl: float | None
    """Seconds after which it is of no use: dropped where it still waits then. Counted ``expired``."""


NO_OPTIONS: DeliveryOptions = {}

_OVERFLOWS = ("close", "drop_oldest")


class Delivery(Struct, frozen=True, array_like=True):
    """Delivery options that make sense together; also how they go to other nodes."""

    overflow: Literal["close", "drop_oldest"] = "close"
    volatile: bool = False
    conflate: Annotated[str, Meta(min_length=1)] | None = None
    ttl: Annotated[float, Meta(ge=0)] | None = None

    @property
    def may_drop(self) -> bool:
        """Whether a full outbox drops it, rather than end the connection."""
        return self.volatile or self.conflate is not None or self.overflow != "close"


class Perishable(bytes):
    """A finished frame with delivery options, for the outbox to look at."""

    delivery: Delivery
    expires: float | None
    """Seconds of ``time.monotonic()``."""


def expires_at(delivery: Delivery | None, now: float) -> float | None:
    """Return when ``ttl`` is over, by the clock of ``now``, at which it began; None if it never is."""
    return None if delivery is None or delivery.ttl is None else now + delivery.ttl


def left_of(delivery: Delivery, expires: float | None, now: float) -> Delivery:
    """Return the options as they are now: with what is left of ``ttl``, which is over at ``expires``."""
    return delivery if expires is None else replace(delivery, ttl=max(0.0, expires - now))


def delivery_from(options: DeliveryOptions) -> Delivery | None:
    """Check the keywords; None if they ask for nothing.

    :raises BadMessage: a value that an option cannot have, or two that contradict each other.
    :raises TypeError: no such option.
    """
    delivery = Delivery(**options)  # type: ignore[arg-type]  # checked right here
    overflow, volatile, conflate, ttl = delivery.overflow, delivery.volatile, delivery.conflate, delivery.ttl
    if overflow not in _OVERFLOWS:
        raise BadMessage(f"overflow={overflow!r}: must be one of {', '.join(map(repr, _OVERFLOWS))}")
    if not isinstance(volatile, bool):
        raise BadMessage(f"volatile={volatile!r}: must be True or False")
    if conflate is not None and (not isinstance(conflate, str) or not conflate):
        raise BadMessage(f"conflate={conflate!r}: must be a key, such as 'price:EUR'")
    if overflow != "close" and (volatile or conflate is not None):
        raise BadMessage(f"overflow={overflow!r} goes with neither volatile nor conflate: they say what is dropped")
    if ttl is not None:
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not math.isfinite(ttl) or ttl <= 0:
            raise BadMessage(f"ttl={ttl!r}: must be seconds, above 0")
        # a float on the wire between nodes too: there its length must not change with its value
        return Delivery(overflow, volatile, conflate, float(ttl))
    return delivery if delivery.may_drop else None
