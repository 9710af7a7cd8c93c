"""Decides which worker processes of a pool start, end, or wait: events in, actions out.

No process, no socket and no clock here: whoever runs it says what happened, and when, and performs the actions.
A process is one of three of its slot: the current one; while the pool is reloaded the one that is to take its
place; and the one whose place was taken and that still drains.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from realtime.config import PoolOptions

__all__ = ["Action", "Backoff", "Do", "Phase", "PoolState", "Process", "Supervisor"]

log = logging.getLogger("realtime.workers")

KILL_AFTER = 2.0  # seconds beyond the drain: kernel.stop takes up to one more to end handlers
LOOK_AGAIN = 1.0  # seconds until a slot that is down, as all are, is looked at again


class Phase(Enum):
    """How far a process is."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"
    ENDED = "ended"


_PHASES = {
    Phase.STARTING: {Phase.SERVING, Phase.LEAVING, Phase.ENDED},
    Phase.SERVING: {Phase.LEAVING, Phase.ENDED},
    Phase.LEAVING: {Phase.ENDED},
    Phase.ENDED: set(),
}


class PoolState(Enum):
    """How far the pool is."""

    NEW = "new"
    STARTING = "starting"
    """Until every worker has served once."""
    SERVING = "serving"
    STOPPING = "stopping"
    STOPPED = "stopped"


_STATES = {
    PoolState.NEW: {PoolState.STARTING},
    PoolState.STARTING: {PoolState.SERVING, PoolState.STOPPING},
    PoolState.SERVING: {PoolState.STOPPING},
    PoolState.STOPPING: {PoolState.STOPPED},
    PoolState.STOPPED: set(),
}


class Do(Enum):
    """What to do with a process."""

    START = "start"
    TERMINATE = "terminate"
    """Tell it to drain and end."""
    KILL = "kill"
    WITHDRAW = "withdraw"
    """Let nobody connect to its slot until the next process there asks for it."""


@dataclass(frozen=True)
class Action:
    """One thing to do now."""

    do: Do
    process: Process


class Process:
    """One worker process.

    :param generation: counts the processes of a slot, from 1.
    """

    def __init__(self, index: int, generation: int, deadline: float) -> None:
        self.index = index
        self.generation = generation
        self.phase = Phase.STARTING
        self.serving_since: float | None = None
        self.deadline: float | None = deadline
        """When it is killed unless it has gone on to the next phase."""

    def move(self, phase: Phase, deadline: float | None = None) -> None:
        """Go on to the next phase."""
        assert phase in _PHASES[self.phase], (self, phase)
        self.phase = phase
        self.deadline = deadline

    def __repr__(self) -> str:
        return f"<Process {self.index}.{self.generation} {self.phase.value}>"


class Backoff:
    """How long to wait before a worker that died is started again.

    :param jitter: returns by what to multiply a pause: 0.5 to 1.
    """

    def __init__(self, options: PoolOptions, jitter: Callable[[], float]) -> None:
        self._options = options
        self._jitter = jitter
        self._next = 0.0

    def reset(self) -> None:
        """Forget the failures so far."""
        self._next = 0.0

    def pause_after(self, served: float) -> float:
        """Return the seconds to wait after a worker that served for ``served`` seconds: 0 the first time."""
        options = self._options
        if served >= options.steady:
            self.reset()
        pause = self._next
        self._next = min(2 * pause, options.backoff_max) if pause else options.backoff
        return pause * self._jitter()


class _Slot:
    """The place of one worker among the others, which its processes take one after the other."""

    def __init__(self, index: int, backoff: Backoff) -> None:
        self.index = index
        self.backoff = backoff
        self.generation = 0
        self.current: Process | None = None
        self.replacement: Process | None = None
        self.leaving: Process | None = None
        self.restart_at: float | None = None
        self.withdraw: tuple[float, Process] | None = None
        """When other slots get its share of connections, and the process whose end left it without one."""

    def processes(self) -> Iterator[Process]:
        """Those that have not ended."""
        for process in (self.current, self.replacement, self.leaving):
            if process is not None:
                yield process

    @property
    def is_starting(self) -> bool:
        """Whether one of its processes is on its way to serve."""
        return self.replacement is not None or (self.current is not None and self.current.phase is Phase.STARTING)


class Supervisor:
    """Keeps ``count`` workers running. Every method says what happened; ``take_actions`` what to do about it.

    :param jitter: see :class:`Backoff`.
    """

    def __init__(self, count: int, options: PoolOptions, *, jitter: Callable[[], float]) -> None:
        self.state = PoolState.NEW
        self.failed: Process | None = None
        """The worker for which the pool could not even start."""
        self._options = options
        self._slots = [_Slot(index, Backoff(options, jitter)) for index in range(count)]
        self._actions: list[Action] = []
        self._reloading = False
        self._reload_again = False
        self._to_reload: deque[_Slot] = deque()
        self._in_turn: _Slot | None = None
        self._kept = 0  # slots whose old process goes on

    def take_actions(self) -> list[Action]:
        """Return what is to be done now, in this order."""
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """Return when ``tick`` must be called at the latest; None: when something happens."""
        times = [process.deadline for slot in self._slots for process in slot.processes()]
        times += [slot.restart_at for slot in self._slots]
        times += [slot.withdraw[0] for slot in self._slots if slot.withdraw is not None]
        return min((time for time in times if time is not None), default=None)

    # What happens ------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Start the first worker; the others follow once it serves, so that a fault of all is shown once."""
        self._move(PoolState.STARTING)
        self._launch(self._slots[0], now)

    def is_serving(self, process: Process, now: float) -> None:
        """A process said that it is ready."""
        if process.phase is not Phase.STARTING:
            return  # told to end meanwhile
        process.move(Phase.SERVING)
        process.serving_since = now
        slot = self._slots[process.index]
        slot.withdraw = None
        if process is slot.replacement:
            self._take_over(slot, process, now)
        if self.state is PoolState.STARTING:
            self._continue_starting(now)
        self._continue_reload(now)

    def has_ended(self, process: Process, now: float) -> None:
        """A process is gone, whatever the reason."""
        was_told = process.phase is Phase.LEAVING
        process.move(Phase.ENDED)
        slot = self._slots[process.index]
        if process is slot.leaving:
            slot.leaving = None
        elif process is slot.replacement:
            slot.replacement = None
            if not was_told:
                self._kept += 1
                log.error("worker %d: the new process did not start, the old one goes on", slot.index)
        elif process is slot.current:
            slot.current, slot.replacement = slot.replacement, None
            if not was_told:
                self._current_died(slot, process, now)
        if self.state is PoolState.STOPPING:
            self._stop_if_empty()
        self._continue_reload(now)

    def reload(self, now: float) -> None:
        """Replace the processes, one slot after the other. While that goes on already: once more after it."""
        if self._reloading or self.state is PoolState.STARTING:
            self._reload_again = True
        elif self.state is PoolState.SERVING:
            log.info("reloading the workers one by one")
            self._reloading = True
            self._kept = 0
            self._to_reload = deque(self._slots)
            self._continue_reload(now)

    def stop(self, now: float) -> None:
        """Tell every process to drain and end."""
        if self.state not in (PoolState.STARTING, PoolState.SERVING):
            return
        self._move(PoolState.STOPPING)
        self._reloading = self._reload_again = False
        for slot in self._slots:
            slot.restart_at = slot.withdraw = None
            for process in slot.processes():
                if process.phase is not Phase.LEAVING:
                    self._tell_to_leave(process, now)
        self._stop_if_empty()

    def hurry(self) -> None:
        """Kill what has not ended."""
        for slot in self._slots:
            for process in slot.processes():
                self._kill(process)

    def tick(self, now: float) -> None:
        """Do what the time has come for."""
        for slot in self._slots:
            for process in slot.processes():
                if process.deadline is not None and process.deadline <= now:
                    log.error("worker %d: still %s after its time, killed", slot.index, process.phase.value)
                    self._kill(process)
            if slot.restart_at is not None and slot.restart_at <= now:
                self._launch(slot, now)
            if slot.withdraw is not None and slot.withdraw[0] <= now:
                self._withdraw(slot, slot.withdraw[1], now)

    # Steps -------------------------------------------------------------------------------------------

    def _move(self, state: PoolState) -> None:
        assert state in _STATES[self.state], (self.state, state)
        self.state = state

    def _launch(self, slot: _Slot, now: float) -> None:
        """Start a process: the slot's current one, or the replacement of that."""
        slot.generation += 1
        slot.restart_at = None
        process = Process(slot.index, slot.generation, now + self._options.start)
        if slot.current is None:
            slot.current = process
        else:
            assert slot.replacement is None
            slot.replacement = process
        self._actions.append(Action(Do.START, process))

    def _continue_starting(self, now: float) -> None:
        for slot in self._slots:
            if not slot.generation:
                self._launch(slot, now)
        if all(slot.current is not None and slot.current.phase is Phase.SERVING for slot in self._slots):
            self._move(PoolState.SERVING)
            log.info("1 worker serves" if len(self._slots) == 1 else f"{len(self._slots)} workers serve")
            if self._reload_again:
                self._reload_again = False
                self.reload(now)

    def _current_died(self, slot: _Slot, process: Process, now: float) -> None:
        if self.state is PoolState.STARTING and process.generation == 1 and process.serving_since is None:
            self.failed = process
            self.stop(now)
            return
        if len(self._slots) > 1:
            slot.withdraw = now + self._options.hold, process
        if slot.current is None:
            served = now - process.serving_since if process.serving_since is not None else 0.0
            pause = slot.backoff.pause_after(served)
            slot.restart_at = now + pause
            log.warning("worker %d is started again %s", slot.index, f"in {pause:.2g} s" if pause else "at once")
            if pause and slot.withdraw is not None:
                self._withdraw(slot, process, now)  # one that fails again and again is not worth waiting for

    def _withdraw(self, slot: _Slot, ended: Process, now: float) -> None:
        """A slot is without a process for too long: let others have its connections, if there are others."""
        if any(other.current is not None and other.current.phase is Phase.SERVING for other in self._slots):
            slot.withdraw = None
            self._actions.append(Action(Do.WITHDRAW, ended))
        else:
            slot.withdraw = now + LOOK_AGAIN, ended

    def _tell_to_leave(self, process: Process, now: float) -> None:
        process.move(Phase.LEAVING, now + self._options.drain + KILL_AFTER)
        self._actions.append(Action(Do.TERMINATE, process))

    def _kill(self, process: Process) -> None:
        process.deadline = None
        self._actions.append(Action(Do.KILL, process))

    def _stop_if_empty(self) -> None:
        if not any(True for slot in self._slots for _ in slot.processes()):
            self._move(PoolState.STOPPED)

    # Reloading ---------------------------------------------------------------------------------------

    def _take_over(self, slot: _Slot, process: Process, now: float) -> None:
        """The replacement serves: the one before it may go."""
        old, slot.current, slot.replacement = slot.current, process, None
        assert old is not None
        assert slot.leaving is None
        slot.leaving = old
        log.info("worker %d: a new process serves, the old one drains", slot.index)
        self._tell_to_leave(old, now)

    def _continue_reload(self, now: float) -> None:
        """Go to the next slot if the one in turn is done, and the next one's earlier processes are settled."""
        while self._reloading:
            if self._in_turn is not None and self._in_turn.is_starting:
                return
            self._in_turn = None
            if not self._to_reload:
                self._end_reload(now)
                return
            slot = self._to_reload[0]
            if slot.leaving is not None or slot.is_starting:
                return
            self._in_turn = self._to_reload.popleft()
            slot.backoff.reset()
            self._launch(slot, now)

    def _end_reload(self, now: float) -> None:
        self._reloading = False
        if self._kept:
            log.error("reloaded, but not %d of %d", self._kept, len(self._slots))
        else:
            log.info("reloaded")
        if self._reload_again:
            self._reload_again = False
            self.reload(now)
