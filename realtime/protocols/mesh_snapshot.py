"""A node's whole state, sent in pieces and put together again.

Only so many pieces travel at once: a node with a million clients must not fill the outbox, nor the buffer of what
may have to be sent again. Changes made meanwhile go out as deltas between the pieces; the receiver sets them aside
until the snapshot is whole.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from realtime.config import KiB
from realtime.errors import MeshError
from realtime.protocols.mesh_bodies import Chunk, ClientState, Delta, encode
from realtime.protocols.mesh_state import NodeState, StateError

__all__ = ["Assembly", "SnapshotFeed"]

CHUNK = 256 * KiB  # bytes of a piece, but for a single client that is larger
WINDOW = 8  # pieces that are not acknowledged yet
_RECORD = 48  # bytes of a client beside its texts, at most
_SET_ASIDE = 65_536  # operations that may come while a snapshot is under way


class SnapshotFeed:
    """What is still to be sent of a snapshot to one node.

    :param number: tells this snapshot from others of the same link.
    """

    def __init__(self, number: int, state: NodeState) -> None:
        self._number = number
        self._version = state.version
        self._waiting = deque(state.states())
        self._index = 0
        self._travelling: deque[int] = deque()
        self.finished = False
        """All pieces are on their way."""

    def has_room(self, acknowledged: int) -> bool:
        """Tell whether another piece may be sent now."""
        travelling = self._travelling
        while travelling and travelling[0] <= acknowledged:
            travelling.popleft()
        return len(travelling) < WINDOW

    def next_piece(self) -> bytes:
        """Return the body of the next piece; say ``sent`` with its sequence."""
        waiting, size, count = self._waiting, 0, 0
        for state in waiting:
            size += _size_of(state)
            if count and size > CHUNK:
                break
            count += 1
        clients = list(islice(waiting, count))
        for _ in range(count):
            waiting.popleft()
        self.finished = not waiting
        index, self._index = self._index, self._index + 1
        return encode(Chunk(self._number, index, self.finished, self._version, clients))

    def sent(self, sequence: int) -> None:
        """The last piece has this sequence number."""
        self._travelling.append(sequence)


def _size_of(state: ClientState) -> int:
    texts = len(state.client) + len(state.codec) + len(state.key) + sum(map(len, state.rooms))
    return _RECORD + len(state.metadata) + 4 * texts + 5 * len(state.rooms)


class Assembly:
    """A snapshot that is coming in.

    :param chunk: its first piece.
    :raises MeshError: what it says cannot be.
    """

    def __init__(self, chunk: Chunk) -> None:
        self._number = chunk.number
        self._next = 0
        self._set_aside: list[Delta] = []
        self._operations = 0
        self._overflowed = False
        self.state = NodeState()
        self.state.version = chunk.version
        self.add(chunk)

    def fits(self, chunk: Chunk) -> bool:
        """Tell whether this is the next piece."""
        return (chunk.number, chunk.index, chunk.version) == (self._number, self._next, self.state.version)

    def add(self, chunk: Chunk) -> None:
        """Add the next piece. Raises MeshError."""
        self._next += 1
        try:
            for client in chunk.clients:
                self.state.put(client)
        except StateError as error:
            raise MeshError(str(error)) from None

    def set_aside(self, delta: Delta) -> None:
        """Keep a delta that came between two pieces."""
        self._operations += len(delta.operations)
        if self._operations > _SET_ASIDE:
            self._overflowed = True
            self._set_aside.clear()
        elif not self._overflowed:
            self._set_aside.append(delta)

    def complete(self) -> bool:
        """Apply what was set aside; False if the result is not what the node has now."""
        try:
            for delta in self._set_aside:
                if delta.version != self.state.version:
                    return False
                for operation in delta.operations:
                    self.state.apply(operation)
        except StateError:
            return False
        return not self._overflowed
