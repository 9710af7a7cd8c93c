"""Ports for those who must know each other's before they start."""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

__all__ = ["free_ports"]

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000
_BLOCK = 100  # ports that one process of the tests has for itself


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """Return ports on 127.0.0.1 that were free a moment ago, and that nobody else's ``free_ports`` returns.

    They are of those that the system gives nobody by itself, or whatever else runs here could have them before their
    owner, and whoever dials one at which nobody listens could be given that very port, and meet himself.
    """
    found: list[int] = []
    with ExitStack() as stack:
        for port in itertools.islice(_own_ports(), _BLOCK):
            one = stack.enter_context(socket.socket(socket.AF_INET, kind))
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"of {_BLOCK} ports, {len(found)} are free")


@functools.cache
def _own_ports() -> Iterator[int]:
    """Ports that are this process's as long as it lives, round and round: the tests run in several at a time."""
    highest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    blocks = range((highest - _LOWEST) // _BLOCK)
    claims = os.open(Path(tempfile.gettempdir()) / f"realtime-tests-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)
    for block in random.sample(blocks, len(blocks)):
        try:
            fcntl.lockf(claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)  # until this process ends
        except OSError:
            continue  # another's
        first = _LOWEST + block * _BLOCK
        return itertools.cycle(range(first, first + _BLOCK))
    raise AssertionError(f"each of {len(blocks)} blocks of ports is another process's")
