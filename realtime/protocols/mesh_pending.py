"""What this node waits for from others: answers to calls, and confirmations of messages."""

from __future__ import annotations

from heapq import heappop, heappush

from realtime.protocols.mesh_actions import Action, CallAnswered, CallLost, Confirmed, ConfirmFailed

__all__ = ["MOST_PENDING", "Pending"]

MOST_PENDING = 65_536  # calls and messages to be confirmed


class _Waiting:
    """One call, or one message. ``nodes`` maps who has not answered yet to the frame's sequence number."""

    __slots__ = ("is_call", "nodes")

    def __init__(self, is_call: bool) -> None:
        self.is_call = is_call
        self.nodes: dict[str, int] = {}


class Pending:
    """By tokens, which their owner chooses and uses once."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, token: int) -> bool:
        return token in self._waiting

    def add(self, token: int, node: str, sequence: int, deadline: float, *, is_call: bool) -> None:
        """Wait for a node until the deadline."""
        waiting = self._waiting.get(token)
        if waiting is None:
            waiting = self._waiting[token] = _Waiting(is_call)
            heappush(self._deadlines, (deadline, token))
        waiting.nodes[node] = sequence

    def answered(self, token: int, node: str, ok: bool, body: bytes, more: bool) -> Action | None:
        """A node answered a call, or a part of it; None if it was not asked, or too late."""
        waiting = self._waiting.get(token)
        if waiting is None or not waiting.is_call or node not in waiting.nodes:
            return None
        if not more:
            del self._waiting[token]
        return CallAnswered(token, node, ok, body, more)

    def delivered(self, token: int, node: str, count: int) -> Action | None:
        """A node confirmed a message; None if it was not asked, or too late."""
        waiting = self._waiting.get(token)
        if waiting is None or waiting.is_call or waiting.nodes.pop(node, None) is None:
            return None
        if not waiting.nodes:
            del self._waiting[token]
        return Confirmed(token, node, count)

    def lost(self, node: str, reason: str, first: int = 0, last: int | None = None) -> list[Action]:
        """Frames to a node are lost, those from ``first`` to ``last``: return what will not be answered."""
        found: list[Action] = []
        for token, waiting in list(self._waiting.items()):
            sequence = waiting.nodes.get(node)
            if sequence is None or sequence < first or (last is not None and sequence > last):
                continue
            del waiting.nodes[node]
            found.append(CallLost(token, reason) if waiting.is_call else ConfirmFailed(token, node, reason))
            if not waiting.nodes:
                del self._waiting[token]
        return found

    def forget(self, token: int) -> None:
        """Nobody waits any more."""
        self._waiting.pop(token, None)

    def due(self, now: float) -> tuple[list[Action], float | None]:
        """Return what has waited too long, and the next deadline."""
        found: list[Action] = []
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or deadlines[0][1] not in self._waiting):
            _, token = heappop(deadlines)
            waiting = self._waiting.pop(token, None)
            if waiting is None:
                continue
            if waiting.is_call:
                found.append(CallLost(token, "timeout"))
            else:
                found += [ConfirmFailed(token, node, "timeout") for node in waiting.nodes]
        return found, deadlines[0][0] if deadlines else None
