"""What ``send``, ``listen`` and ``bench`` have in common: where to connect, how, and what to say when that fails."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from realtime.cli.common import FAILED, MISUSED, Complaint

if TYPE_CHECKING:
    from realtime.client import Client

__all__ = ["add_client_options", "connected", "made_client", "payload", "plain_failures", "seconds"]

TIMEOUT = 10.0  # seconds for the connection, and for an answer


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Add the URL, and how to connect to it."""
    parser.add_argument("url", metavar="URL", help="ws://localhost:8080/realtime, wss://, http:// or https://")
    parser.add_argument(
        "--header", metavar="'NAME: VALUE'", action="append", default=[], type=_header, help="of the handshake"
    )
    parser.add_argument("--msgpack", action="store_true", help="speak MessagePack instead of JSON")
    parser.add_argument("--cafile", metavar="FILE", help="certificates to trust instead of the system's, for wss://")
    parser.add_argument(
        "--timeout", type=seconds, default=TIMEOUT, help=f"seconds to connect, and for an answer: {TIMEOUT:g}"
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: must be as in 'Authorization: Bearer abc'")
    return name.strip(), value.strip()


def seconds(text: str) -> float:
    """Read a duration."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be seconds, above 0")
    return value


def payload(text: str) -> Any:
    """Read a payload: JSON, or else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # the latter for brackets upon brackets
        return text


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are no JSON


def made_client(arguments: argparse.Namespace, *, reconnect: bool) -> Client:
    """Return a client, not connected. Raises ConfigurationError."""
    from realtime.client import Client

    return Client(
        arguments.url,
        headers=arguments.header,
        msgpack=arguments.msgpack,
        tls=arguments.cafile,
        timeout=arguments.timeout,
        reconnect=reconnect,
    )


@contextmanager
def connected(client: Client) -> Iterator[Client]:
    """Connect, and close in the end. Raises a Complaint if there is no connection to be had."""
    with plain_failures():
        client.connect()
    try:
        yield client
    finally:
        client.close()


@contextmanager
def plain_failures() -> Iterator[None]:
    """Turn what a client raises into a Complaint of one line."""
    from realtime.errors import CallFailed, ConfigurationError, ConnectionClosed, RealtimeError

    try:
        yield
    except ConfigurationError as error:
        raise Complaint(error, MISUSED) from None
    except ConnectionClosed as error:
        raise Complaint(error.reason if error.__cause__ else f"connection closed: {error}", FAILED) from None
    except CallFailed as error:
        details = "" if error.details is None else f" ({error.details})"
        raise Complaint(f"the server says no: {error}{details}", FAILED) from None
    except RealtimeError as error:
        raise Complaint(error, FAILED) from None
