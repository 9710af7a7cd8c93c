"""Which addresses to connect to, and when: configured peers, and the nodes that others told of.

Each attempt that fails doubles the pause before the next, up to a bound; a random half is taken off, so that nodes
that lost each other at one moment do not all come back at one moment. Nothing is dialled while there is a link to
the node behind it, nor our own address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from realtime.config import MeshOptions

__all__ = ["DialPlan"]


class _Target:
    """One address."""

    __slots__ = ("delay", "due", "failed", "node", "seed", "under_way")

    def __init__(self, node: str | None, due: float, delay: float, seed: bool) -> None:
        self.node = node
        self.due = due
        self.delay = delay
        self.seed = seed
        self.under_way = False
        self.failed = False
        """The last attempt led to nobody of the cluster."""


class DialPlan:
    """The addresses, each with its node once that is known.

    :param seeds: dialled for ever.
    :param own: our own address, never dialled.
    :param is_linked: tells whether there is a link to a node.
    """

    def __init__(
        self,
        seeds: Iterable[str],
        own: str | None,
        is_linked: Callable[[str], bool],
        options: MeshOptions,
        random: Random,
    ) -> None:
        self._own = {own}
        self._is_linked = is_linked
        self._options = options
        self._random = random
        self._targets = {
            address: _Target(None, 0.0, options.backoff, True) for address in dict.fromkeys(seeds) if address != own
        }

    def add_seed(self, address: str, due: float) -> None:
        """Somebody listens at an address: dial it from ``due`` on, until ``drop_seed``."""
        target = self._targets.get(address)
        if target is not None:
            target.seed = True
        elif address not in self._own:
            self._targets[address] = _Target(None, due, self._options.backoff, True)

    def drop_seed(self, address: str) -> None:
        """Nobody listens there any more."""
        target = self._targets.get(address)
        if target is not None:
            target.seed = False  # goes with the next ``keep_only``

    def want(self, node: str, address: str, due: float) -> None:
        """A node is known to be at an address: dial it from ``due`` on."""
        target = self._targets.get(address)
        if target is not None:
            target.node = node
        elif address not in self._own:
            self._targets[address] = _Target(node, due, self._options.backoff, False)

    def keep_only(self, wanted: Callable[[str, str], bool]) -> None:
        """Forget addresses that are no seeds and no longer those of a node: ``wanted(node, address)``."""
        for address, target in list(self._targets.items()):
            if not target.seed and not target.under_way and not wanted(target.node or "", address):
                del self._targets[address]

    def due(self, now: float) -> tuple[list[str], float | None]:
        """Return the addresses to dial now, which are under way from now on, and when to ask again."""
        chosen, next_due = [], None
        for address, target in self._targets.items():
            if target.under_way or (target.node is not None and self._is_linked(target.node)):
                continue
            if target.due <= now:
                target.under_way = True
                chosen.append(address)
            elif next_due is None or target.due < next_due:
                next_due = target.due
        return chosen, next_due

    def found(self, address: str) -> tuple[str | None, bool]:
        """Return which node is at an address, as far as known, and whether it is of no use to wait for that."""
        target = self._targets.get(address)
        return (None, True) if target is None else (target.node, target.failed)

    def ended(self, address: str, node: str | None, now: float, *, failed: bool) -> None:
        """An attempt led to no link; ``node`` is who answered, if that is known.

        :param failed: it led to nobody of the cluster.
        """
        target = self._targets.get(address)
        if target is not None:
            target.under_way = False
            target.failed = failed
            target.node = node or target.node
            self._pause(target, now)

    def is_own(self, address: str) -> None:
        """An attempt led to this node itself: never again."""
        self._own.add(address)
        self._targets.pop(address, None)

    def linked(self, node: str, address: str | None) -> None:
        """A link to a node started, by dialling ``address`` if that is not None."""
        target = self._targets.get(address) if address is not None else None
        if target is not None:
            target.under_way = target.failed = False
            target.node = node

    def unlinked(self, node: str, now: float, *, refused: bool = False) -> None:
        """The link to a node ended: it is dialled again after a pause.

        :param refused: the node did not want it, and will not want the next one either: the pauses go on growing.
        """
        for target in self._targets.values():
            if target.node == node:
                if not refused:
                    target.delay = self._options.backoff
                self._pause(target, now)

    def _pause(self, target: _Target, now: float) -> None:
        target.due = now + target.delay * self._random.uniform(0.5, 1.0)
        target.delay = min(2 * target.delay, self._options.backoff_max)
