"""A :class:`MeshNetwork` in real time: its virtual clock moves along with the real one."""

from __future__ import annotations

from time import monotonic

import gevent
from gevent.event import Event

from realtime.config import MeshOptions
from realtime.testing.mesh_network import MeshNetwork

__all__ = ["LiveNetwork"]

DELAY = (0.0001, 0.001)  # seconds from one node to another


class LiveNetwork:
    """Moves a network's virtual clock along with the real one, while any node needs it."""

    def __init__(self, options: MeshOptions | None = None) -> None:
        self.network = MeshNetwork(options=options, delay=DELAY)
        self._began = monotonic()
        self._wake = Event()
        self._users = 0
        self._scheduled = False
        self._clock: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """One more node needs the clock."""
        self._users += 1
        if self._clock is None:
            self._began = monotonic() - self.network.now
            self._clock = gevent.spawn(self._keep_time)

    def stop(self) -> None:
        """One needs it no longer. Switches greenlets."""
        self._users -= 1
        if not self._users and self._clock is not None:
            clock, self._clock = self._clock, None
            clock.kill()

    def act(self) -> None:
        """Carry out what cores were asked for."""
        self.network.flush()
        self._wake.set()

    def act_soon(self) -> None:
        """As ``act``, once this turn is over: so that changes of one turn reach other nodes together."""
        if not self._scheduled:
            self._scheduled = True
            gevent.get_hub().loop.run_callback(self._act_once)

    def _act_once(self) -> None:
        self._scheduled = False
        self.act()

    def _keep_time(self) -> None:
        network = self.network
        while True:
            self._wake.clear()
            network.run(max(0.0, monotonic() - self._began - network.now))
            network.flush()
            due = network.next_event
            self._wake.wait(None if due is None else max(0.0, due - (monotonic() - self._began)))
