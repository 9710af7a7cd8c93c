"""What Linux says about processes: CPU time used, time spent waiting for a core, resident memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

__all__ = ["CpuTime", "StillBusy", "children", "cpu_time", "resident_bytes", "settle"]

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTime:
    """Seconds since the processes began, summed over their threads."""

    run: float
    """On a core, in user and kernel mode."""
    wait: float
    """Ready to run while something else had the core: how much others disturbed the measurement."""
    kernel: float
    """The part of ``run`` in kernel mode, in steps of the kernel's tick (10 ms)."""

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.run - other.run, self.wait - other.wait, self.kernel - other.kernel)


def cpu_time(*pids: int) -> CpuTime:
    """Read ``/proc/<pid>``: nanoseconds from each thread's ``schedstat``, kernel ticks from ``stat``."""
    run = wait = kernel = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat") as schedstat:
                running, waiting, _ = schedstat.read().split()
            run += int(running)
            wait += int(waiting)
        with open(f"/proc/{pid}/stat") as stat:
            kernel += int(stat.read().rpartition(")")[2].split()[12])
    return CpuTime(run / 1e9, wait / 1e9, kernel / _TICK)


def children(pid: int) -> tuple[int, ...]:
    """Return the processes that a process has started and not reaped."""
    with open(f"/proc/{pid}/task/{pid}/children") as listed:
        return tuple(map(int, listed.read().split()))


def resident_bytes(pid: int) -> int:
    """Resident set size (``VmRSS``): what the process holds in memory; socket buffers are the kernel's."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has no memory of its own")


class StillBusy(Exception):
    """A server goes on using its core although it has nothing to do."""


def settle(*pids: int, timeout: float = 20.0, quiet: float = 0.05) -> None:
    """Wait until the processes together have used no more than 4 % CPU for ``quiet`` seconds.

    :raises StillBusy: that did not happen within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    before = cpu_time(*pids).run
    while time.monotonic() < deadline:
        time.sleep(quiet)
        now = cpu_time(*pids).run
        if now - before < quiet * 0.04:
            return
        before = now
    raise StillBusy(f"the server is still busy {timeout:.0f} s after its last client")
