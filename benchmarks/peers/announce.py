"""How a peer tells the benchmark that it listens, by one line on standard output; and where it may listen."""

from __future__ import annotations

import socket

__all__ = ["announce", "free_port"]


def announce(port: int) -> None:
    """Print the line that ``benchmarks.servers`` waits for."""
    print(f"listening {port}", flush=True)


def free_port() -> int:
    """A port that nothing listens on, for servers that cannot pick one and tell it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
