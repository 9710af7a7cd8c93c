"""What kept messages take: run as a process of its own, it prints the bytes by which its resident memory grows."""

from __future__ import annotations

import gc
import os
import sys

from benchmarks.process import resident_bytes
from realtime import RealtimeKernel

__all__ = ["fill"]


def fill(rooms: int, messages: int, size: int) -> int:
    """Have a kernel keep ``messages`` of ``size`` bytes payload in each of ``rooms``; return the bytes that takes."""
    kernel = RealtimeKernel(log_level="error")
    kernel.rooms.configure("kept:*", history=messages, ttl=3600.0, recover=True)
    kernel.start()
    kernel.broadcast({"type": "chat", "payload": "warm"}, "kept:warm")
    gc.collect()
    before = resident_bytes(os.getpid())
    for number in range(messages):
        for room in range(rooms):
            text = f"{number:06}{room:06}".ljust(size, "x")  # each is a text of its own, as from clients
            kernel.broadcast({"type": "chat", "payload": text}, f"kept:{room}")
    gc.collect()
    taken = resident_bytes(os.getpid()) - before
    kept = kernel.stats()["history"]["messages"]
    if kept != rooms * messages + 1:
        raise SystemExit(f"{kept} messages are kept, not {rooms * messages + 1}")
    kernel.stop()
    return taken


if __name__ == "__main__":
    print(fill(*map(int, sys.argv[1:])))
