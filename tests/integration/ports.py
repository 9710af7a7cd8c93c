"""Ports for those who must know each other's before they start."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

__all__ = ["free_ports"]

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """Return ports on 127.0.0.1 that were free a moment ago.

    They are of those that the system gives nobody by itself, or whatever else runs here could have them before their
    owner, and whoever dials one at which nobody listens could be given that very port, and meet himself.
    """
    highest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    candidates = random.sample(range(_LOWEST, highest), 50 + count)
    found: list[int] = []
    with ExitStack() as stack:
        for port in candidates:
            one = stack.enter_context(socket.socket(socket.AF_INET, kind))
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"of {len(candidates)} ports, {len(found)} are free")
