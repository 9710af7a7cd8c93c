"""How a peer tells the benchmark that it listens: one line on standard output."""

from __future__ import annotations

__all__ = ["announce"]


def announce(port: int) -> None:
    """Print the line that ``benchmarks.servers`` waits for."""
    print(f"listening {port}", flush=True)
