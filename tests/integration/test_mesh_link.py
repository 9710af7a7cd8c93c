"""One link by itself: its owner may have it pause between two frames of one read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest
from mesh_here import QUICK, until

from realtime.flusher import Flusher
from realtime.protocols.mesh import MeshProtocol, State
from realtime.protocols.mesh_frames import DataReceived, SessionEvent, data_header
from realtime.protocols.mesh_handshake import Hello, Reason, Role
from realtime.transports.mesh_dial import parse_address
from realtime.transports.mesh_link import Link, LinkOwner


class Owner(LinkOwner):
    """Takes one frame at a time."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def authenticated(self, link: Link) -> str | None:
        return None

    def started(self, link: Link) -> None:
        pass

    def received(self, link: Link, event: SessionEvent) -> None:
        assert isinstance(event, DataReceived)
        self.bodies.append(event.body)
        link.pause()

    def alive(self, link: Link) -> None:
        pass

    def settle(self, link: Link) -> None:
        pass

    def ended(self, link: Link) -> None:
        pass


def protocol(role: Role, node: str) -> MeshProtocol:
    hello = Hello(node, "default", node.encode().ljust(16), b"n" * 16, None)
    return MeshProtocol(role, hello, secret=b"", message_size=1000)


def open_with(sock: gevent.socket.socket, peer: MeshProtocol) -> None:
    """Shake hands: the node with the smaller id, which is not ``peer``, decides."""
    while peer.state is not State.OPEN:
        sock.sendall(peer.data_to_send())
        peer.receive_data(sock.recv(65536))
        while peer.next_event() is not None:
            pass


@pytest.fixture
def opened() -> Iterator[tuple[Link, Owner, gevent.socket.socket]]:
    """An open link, its owner, and the socket of its peer."""
    ours, theirs = gevent.socket.socketpair()
    owner = Owner()
    flusher = Flusher(gevent.get_hub(), Counter())
    link = Link(
        ours, protocol(Role.LISTENER, "ann"), parse_address("127.0.0.1:1"), owner, options=QUICK, flusher=flusher
    )
    running = gevent.spawn(link.run)
    theirs.settimeout(5.0)
    open_with(theirs, protocol(Role.DIALLER, "bob"))
    yield link, owner, theirs
    link.part(Reason.LEAVING)
    theirs.close()
    assert running.join(5.0) is None
    assert running.dead


def frame(number: int, body: bytes) -> bytes:
    return data_header(number, 0, len(body)) + body


def test_what_a_pause_leaves_unhandled_comes_first_after_it(
    opened: tuple[Link, Owner, gevent.socket.socket],
) -> None:
    link, owner, peer = opened
    peer.sendall(frame(1, b"one") + frame(2, b"two") + frame(3, b"three")[:5])
    until(lambda: owner.bodies == [b"one"], "the first frame alone")
    peer.sendall(frame(3, b"three")[5:])
    link.resume()
    until(lambda: owner.bodies == [b"one", b"two"], "the one that had come with it")
    link.resume()
    until(lambda: owner.bodies == [b"one", b"two", b"three"], "the one in two pieces")
    peer.sendall(frame(4, b"four"))
    link.resume()
    until(lambda: owner.bodies[3:] == [b"four"], "one that came meanwhile")
