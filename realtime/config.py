"""Options, grouped by what they bound. Each field says its unit, its default and why it is that.

All are frozen: change one with ``Limits(outbox=4 * MiB)`` or ``dataclasses.replace``. A value that cannot
work raises :class:`~realtime.errors.ConfigurationError` where it is written, not later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from realtime.errors import ConfigurationError

__all__ = ["Heartbeat", "KiB", "Limits", "MeshOptions", "MiB", "PoolOptions"]

KiB = 1024
MiB = 1024 * KiB


def _require_positive(options: object) -> None:
    """Raise ConfigurationError unless every number of the dataclass is finite and above zero."""
    for field in fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        kind = "a whole number" if field.type == "int" else "a number"
        wrong_kind = isinstance(value, bool) or not isinstance(value, int if field.type == "int" else (int, float))
        if wrong_kind or not math.isfinite(value) or value <= 0:
            raise ConfigurationError(
                f"{type(options).__name__}({field.name}={value!r}): must be {kind} above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one client may cost. Sizes are bytes, durations seconds."""

    message_size: int = 1_000_000
    """Largest message a client may send, counted after defragmenting and inflating. A larger one is refused
    from its frame header on: close 1009. (Socket.IO's ``maxHttpBufferSize`` is 1e6 too.)"""

    fragments: int = 4096
    """Fragments of one message that may be empty or small. Each 64 bytes of payload allow one more, so only
    hostile streams meet it: close 1009."""

    before_authentication: int = 64 * KiB
    """Request line and headers together. More is answered 431."""

    handshake: float = 10.0
    """From accept to the end of the request's headers, and again for each further request on a kept-alive
    connection. A slower client is dropped."""

    close_handshake: float = 5.0
    """How long we wait for the answer to our close frame before the socket is closed anyway."""

    outbox: int = 1 * MiB
    """Bytes that wait for one client beside what its socket has taken. A message that does not fit meets
    its overflow policy: close with 4008 (default), drop the oldest, or itself: see ``realtime.delivery``."""

    park_above: float = 0.75
    """Share of ``outbox`` above which ``send`` and ``reply`` park the handler and a broadcast stalls."""

    park_timeout: float = 1.0
    """How long ``send`` and ``reply`` park at most before the message meets its overflow policy."""

    stall: float = 0.005
    """How long one broadcast stalls at most for members above ``park_above`` (NATS's stall gate)."""

    backpressure_timeout: float = 30.0
    """How long an item of a streamed answer, or ``send`` of a plain WebSocket, waits for a reader that is too
    slow before the connection is closed with 4008."""

    inbox: int = 16
    """Messages of one client that wait for its handler. Past it we stop reading: TCP pushes back."""

    inbox_while_waiting: int = 1024
    """Messages that may wait while a handler is parked in ``call`` or ``wait_for``, when reading must go on
    so that the answer can arrive. Past it further ones are answered ``inbox_full``."""

    inbox_at_end: int = 16_384
    """Messages that may wait of a client that has hung up: what its socket still holds is read then, so that it is
    gone now and not once its handler gets so far. Past it, or past ``inbox_bytes`` and what one read may bring, the
    rest is not read, and the connection counts as lost (1006). About 300 bytes each, beside what they hold."""

    inbox_bytes: int = 4 * MiB
    """Bytes in which the messages that wait came, whatever their number. One message is always taken."""

    concurrent: int = 64
    """``concurrent=True`` handlers of one client that run at once; further ones wait in the inbox. With 1 all
    run in line."""

    lane: int = 1000
    """Messages that wait for one lane (``kernel.on(..., serial=...)``), each of another client but for concurrent
    ones. Past it further ones are answered ``lane_full``: who is behind so many waits too long anyway."""

    threads: int = 16
    """Native threads for ``threadpool=True`` handlers; further ones wait for a free one. Ten is gevent's own
    default; these wait more than they compute."""

    rooms_per_client: int = 128
    """Rooms one client may be in: the next join raises ``TooManyRooms``."""

    room_name: int = 255
    """Characters of a room name."""

    history: int = 64 * MiB
    """Bytes that the histories of all rooms may take, overhead counted. Past it the oldest messages go."""

    history_room: int = 1 * MiB
    """Bytes that the history of one room may take, overhead counted."""

    presence_listed: int = 100
    """Members ``presence.list()`` shows unless told otherwise; ``.total`` always counts all."""

    presence_quiet: float = 0.05
    """From a change in a room to the ``presence:diff`` that tells it, where none was sent lately: what comes together
    is told together."""

    presence_busy: float = 1.5
    """Between two ``presence:diff`` of a room (Phoenix's tracker broadcasts every 1.5 s)."""

    presence_metadata: int = 4 * KiB
    """Bytes, as JSON, of the metadata of a client that changes its presence by itself (``system:presence``)."""

    session_grace: float = 30.0
    """How long a client that asked for a session (``system:hello``) keeps its place after its connection ended
    without a close frame. More bridges a longer tunnel, and shows those who never come back for longer."""

    session_buffer: int = 256 * KiB
    """Bytes sent to such a client that are kept until it says that it has them, beside what waits in its outbox. A
    client that lost more than this, and what was sent while it was away (``outbox`` at most), cannot resume."""

    sessions_away: int = 65_536
    """Clients whose place is kept at a time: past it the one that has been away for longest is gone."""

    ack_timeout: float = 10.0
    """How long ``call`` waits for the client's answer unless told otherwise."""

    blocked_loop: float = 0.1
    """A handler that holds the event loop for longer is named in the log."""

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.inbox_while_waiting < self.inbox:
            raise ConfigurationError(
                f"Limits(inbox_while_waiting={self.inbox_while_waiting!r}): at least as many as inbox ({self.inbox})"
            )
        if self.inbox_at_end < self.inbox:
            raise ConfigurationError(
                f"Limits(inbox_at_end={self.inbox_at_end!r}): at least as many as inbox ({self.inbox})"
            )
        if self.park_above > 1:
            raise ConfigurationError(f"Limits(park_above={self.park_above!r}): a share of outbox, at most 1")


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """How a connection that vanished without FIN is noticed. Any byte received counts as life."""

    interval: float = 25.0
    """Seconds of silence before a ping (Engine.IO's ``pingInterval``)."""

    timeout: float = 10.0
    """Seconds after the ping by which something must have arrived, else the connection is dropped."""

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """How the links between nodes behave. Sizes are bytes, durations seconds.

    All nodes of a cluster should have the same ``message_size``; the rest may differ.
    """

    ping: float = 1.0
    """Between two pings on a link (memberlist's ``ProbeInterval``). Less notices a dead node sooner and costs
    a few bytes on every link each time."""

    suspect: float = 5.0
    """Silence after which a node is shown as ``"suspect"``, and a new link from it takes the old one's place."""

    down: float = 10.0
    """Silence after which a link is dropped and its node reported as left. Less than a few pings takes a busy
    node for a dead one; more keeps sending to a dead one for longer."""

    backoff: float = 1.0
    """Before the second attempt to reach a peer; doubled for each further one. A random half is taken off, so
    that nodes that lost each other at one moment do not come back at one moment."""

    backoff_max: float = 30.0
    """The longest pause between two attempts (gRPC waits up to 120, nats-server 1 s without growing)."""

    authentication: float = 2.0
    """From the TCP connection until both sides have proved the secret; also how long connecting may take
    (nats-server's ``auth_timeout``)."""

    meeting: float = 2.0
    """How long the start of a node with ``discover`` waits, before its clients come, until it knows the clients of
    the nodes that are there. One that does not answer costs so much at each start."""

    farewell: float = 1.0
    """How long a link that ends stays to have its last words read."""

    outbox: int = 16 * MiB
    """Bytes that wait for one node beside what its socket has taken. Past it the link is dropped, as a node
    that cannot keep up would otherwise hold up the memory of all others."""

    message_size: int = 4 * MiB
    """Largest encoded message a node sends or takes: four times what a client may send. A longer one is refused
    from its announcement on."""

    handshakes: int = 64
    """Accepted connections that have not proved the secret yet; the next ones are closed at once."""

    resend: int = 16 * MiB
    """Bytes sent to one node that it has not acknowledged yet and that are kept to be sent again after its link
    broke. What is older is forgotten, counted, and told to both sides as a gap. More bridges a longer loss of
    the link and costs as much memory per node (a Redis replica's backlog is 1 MiB, Phoenix keeps none)."""

    resend_frames: int = 65_536
    """The same in frames, however small they are."""

    digest: float = 30.0
    """Between two digests of a node's clients and rooms, by which the others notice that they missed something.
    Nothing should be missed, so this only bounds how long a fault lasts (Phoenix's tracker, whose messages may be
    lost, compares every 3 s)."""

    tombstones: float = 600.0
    """How long a node that is down or has left is remembered, so that old rumours do not bring it back, and one
    that is down is tried again. A partition that lasts longer heals through ``peers`` alone."""

    known_nodes: int = 1024
    """Nodes of the cluster, and again as many that are down or have left. Rumours of further ones are dropped and
    counted. Full mesh costs each node one link per other one: past some hundreds it is the wrong shape."""

    def __post_init__(self) -> None:
        _require_positive(self)
        if not self.ping < self.suspect <= self.down:
            raise ConfigurationError(
                f"MeshOptions(ping={self.ping!r}, suspect={self.suspect!r}, down={self.down!r}): "
                "ping must be less than suspect, and suspect at most down"
            )
        if self.backoff > self.backoff_max:
            raise ConfigurationError(
                f"MeshOptions(backoff={self.backoff!r}): must be at most backoff_max, {self.backoff_max!r}"
            )
        for name, size in (("outbox", self.outbox), ("resend", self.resend)):
            if self.message_size > size // 2:
                raise ConfigurationError(
                    f"MeshOptions(message_size={self.message_size!r}): must be at most half of {name}, {size!r}"
                )


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How a WorkerPool treats its worker processes. Durations are seconds."""

    start: float = 30.0
    """From the fork until a worker must serve (gunicorn's ``timeout``). One that takes longer is killed: more only
    where importing the application really takes longer."""

    drain: float = 10.0
    """For a worker that is told to end to finish with its clients, as ``kernel.stop`` has by default; it is killed
    2 s after that."""

    backoff: float = 1.0
    """Before the second attempt to restart a worker that dies; the first is made at once. Doubled for each
    further one. A random half is taken off, so that workers that die together do not restart together."""

    backoff_max: float = 30.0
    """The longest pause between two attempts."""

    hold: float = 5.0
    """How long connections wait for the next process of a worker that died, while other workers serve: importing the
    application must fit into it. After that, and while a worker pauses because it died more than once, they are reset
    and new ones go to the other workers."""

    steady: float = 10.0
    """A worker that has served for so long was healthy: when it dies, the pauses begin anew (supervisord's
    ``startsecs`` is 1)."""

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.backoff > self.backoff_max:
            raise ConfigurationError(
                f"PoolOptions(backoff={self.backoff!r}): must be at most backoff_max, {self.backoff_max!r}"
            )
