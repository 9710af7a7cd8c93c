"""Who is not let in, in a way that can be seen: strangers, old sessions, foreign certificates, open directories."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket as plain_socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent.socket
import msgpack
import pytest
import trustme
from mesh_rig import CALM, HERE, PATIENCE, QUICK, Asked, NodeHere, NodeProcess, eventually

from realtime import ConfigurationError, MeshOptions, PeerMeshTransport, RealtimeKernel
from realtime.protocols.mesh import MeshProtocol, State
from realtime.protocols.mesh_bodies import Event, encode
from realtime.protocols.mesh_frames import (
    AckReceived,
    DataReceived,
    ResumeReceived,
    SessionEvent,
    ack_frame,
    data_header,
    resume_frame,
)
from realtime.protocols.mesh_handshake import ByeReceived, Hello, Role
from realtime.transports.memory import MemoryTransport

SECRET = "between us"

Start = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start nodes that end with the test: ``kind`` tells whether in a process of their own."""
    with ExitStack() as stack:

        def start_one(node_id: str, *, kind: type[NodeHere | NodeProcess] = NodeHere, **mesh: Any) -> Asked:
            node = kind({"node_id": node_id, "port": 0, **mesh})
            stack.callback(node.kill)
            assert node.where
            return node

        yield start_one


def meet(*nodes: Asked) -> None:
    """Wait until nodes see each other."""
    ids = sorted(node.id for node in nodes)
    for node in nodes:
        eventually(lambda node=node: node.ask("view")["nodes"] == ids, f"{ids} at {node.id}")  # type: ignore[misc]


def is_refused(node: Asked, counter: str, line: str) -> None:
    """Wait until a refusal was counted, and logged with its reason; nobody has joined."""
    eventually(lambda: node.counter(counter) >= 1, f"{counter}: {node.ask('counters')}")
    node.logged(line)
    assert node.events("joined") == []


class Peer:
    """A node that says what a test wants, in the protocol or beside it."""

    def __init__(self, node: Asked, *, address: str | None = None, epoch: int = 7) -> None:
        self.sock = gevent.socket.create_connection(("127.0.0.1", node.where["port"]), timeout=PATIENCE)
        # ids larger than all others leave the decision to the node
        hello = Hello("zoe", "default", b"z" * 16, os.urandom(16), address)
        self.protocol = MeshProtocol(Role.DIALLER, hello, secret=_key(SECRET), message_size=1 << 20)
        self.epoch = epoch
        self.said: list[bytes] = []
        self.heard: list[SessionEvent] = []
        self.bye: ByeReceived | None = None

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *args: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        """Send bytes."""
        self.said.append(data)
        self.sock.sendall(data)

    def hear(self, done: Callable[[], object]) -> None:
        """Talk until ``done``, or the end."""
        while not done():
            self.say(self.protocol.data_to_send())
            data = self.sock.recv(65536)
            if not data:
                break
            self.protocol.receive_data(data)
            while (event := self.protocol.next_event()) is not None:
                if isinstance(event, ByeReceived):
                    self.bye = event
                else:
                    self.heard.append(event)  # type: ignore[arg-type]
        self.say(self.protocol.data_to_send())

    def open(self, known: int = 0, received: int = 0) -> ResumeReceived:
        """Link, and resume a session; return the node's own word of it."""
        self.hear(lambda: self.protocol.state is State.OPEN)
        self.say(resume_frame(self.epoch, known, received, False))
        self.hear(lambda: any(isinstance(event, ResumeReceived) for event in self.heard))
        return next(event for event in self.heard if isinstance(event, ResumeReceived))

    def hear_bye(self) -> tuple[str, str]:
        """Wait for the node's last words; return them."""
        self.hear(lambda: self.bye is not None)
        assert self.bye is not None
        return self.bye.reason, self.bye.text


def _key(secret: str) -> bytes:
    return hashlib.sha256(b"realtime mesh key\0" + secret.encode()).digest()


# The handshake ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "reason", "line"),
    [
        ({"secret": "right"}, {"secret": "wrong"}, "secret", "'zed' does not know our secret"),
        ({"secret": "right"}, {}, "secret", "'zed' does not know our secret"),
        ({"cluster": "blue"}, {"cluster": "green"}, "cluster", "of cluster 'green', not 'blue'"),
    ],
)
def test_a_node_that_does_not_belong_is_refused_with_a_reason(
    start: Start, ours: dict[str, str], theirs: dict[str, str], reason: str, line: str
) -> None:
    ann = start("ann", **ours)
    zed = start("zed", peers=[ann.where["address"]], **theirs)
    is_refused(ann, f"refused_{reason}", line)
    is_refused(zed, f"refused_{reason}", f"refused: {reason}")


@pytest.mark.parametrize(
    ("said", "reason", "line"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "broken", "what it said first is no frame"),
        (b"\x97\x00\x01\xc6\x3f\xff\xff\xff" + b"x" * 65536, "broken", "a frame of more than 4096 bytes"),
        (b"\x97\x00\x01\xc6\x3f\xff\xff\xff", "timeout", "no handshake within 0.5 s"),
        (b"\x97\x00\x01" + random.Random(1).randbytes(65536), "broken", "refused a link"),
        (msgpack.packb([0, 99, "default", "zoe", b"z" * 16, b"n" * 16, None]), "version", "speaks version 99"),
        (msgpack.packb([0, 1, "other", "zoe", b"z" * 16, b"n" * 16, None]), "cluster", "of cluster 'other'"),
        (msgpack.packb([0, 1, "default", "zoe", b"z" * 16, b"n" * 16, None]) + msgpack.packb([1, b"p" * 32]), "secret",
         "'zoe' does not know our secret"),
        (b"", "timeout", "no handshake within 0.5 s"),
    ],
    ids=["HTTP", "1 GB", "1 GB that does not come", "noise", "version", "cluster", "secret", "silence"],
)  # fmt: skip
def test_bytes_of_a_stranger_are_refused_with_a_reason(start: Start, said: bytes, reason: str, line: str) -> None:
    ann = start("ann", secret=SECRET, options={**HERE, "authentication": 0.5} if reason == "timeout" else HERE)
    with gevent.socket.create_connection(("127.0.0.1", ann.where["port"]), timeout=PATIENCE) as sock:
        try:
            sock.sendall(said)
        except OSError:
            pass  # refused before all was said
        while _read(sock):
            pass
    is_refused(ann, f"refused_{reason}", line)
    meet(ann, start("bob", secret=SECRET, peers=[ann.where["address"]]))  # and others are served


def _read(sock: gevent.socket.socket) -> bytes:
    try:
        return sock.recv(65536)  # type: ignore[no-any-return]
    except ConnectionResetError:
        return b""


# One who knows the secret ---------------------------------------------------------------------------------------


def test_a_handshake_that_was_heard_cannot_be_played_again(start: Start) -> None:
    ann = start("ann", secret=SECRET)
    with Peer(ann) as peer:
        peer.open()
    eventually(lambda: ann.counter("links_ended_lost") == 1, "the link is gone")
    with gevent.socket.create_connection(("127.0.0.1", ann.where["port"]), timeout=PATIENCE) as sock:
        sock.sendall(b"".join(peer.said))
        while _read(sock):
            pass
    eventually(lambda: ann.counter("refused_secret") == 1, "refused")
    ann.logged("'zoe' does not know our secret")


@pytest.mark.parametrize(
    ("again", "line"),
    [
        (lambda peer: data_header(5, 0, 1) + b"\xc0", "some are missing"),
        (lambda peer: ack_frame(2**40), "was sent"),
        (lambda peer: resume_frame(peer.epoch, 0, 0, False), "a second resume"),
        (lambda peer: b"\x94\x06\x01\x00\xce\x40\x00\x00\x00", "a body of 1073741824 bytes"),
        (lambda peer: data_header(1, 0, 1) + b"\xc1", "refused"),
    ],
    ids=["a future sequence", "an ack of what was never sent", "a second resume", "1 GB", "no body"],
)
def test_a_node_that_breaks_the_session_is_cut_off(start: Start, again: Callable[[Peer], bytes], line: str) -> None:
    ann = start("ann", secret=SECRET)
    with Peer(ann) as peer:
        peer.open()
        peer.say(again(peer))
        reason, text = peer.hear_bye()
    assert reason == "broken"
    assert text in ann.logged("the link with node zoe ended: broken")
    if line != "refused":
        assert line in text
    assert ann.counter("links_ended_broken") == 1


def test_an_old_session_cannot_be_played_again(start: Start) -> None:
    ann = start("ann", secret=SECRET)
    ann.ask("connect", name="c", room="tea")
    with Peer(ann) as peer:
        theirs = peer.open()
        peer.hear(lambda: any(isinstance(event, DataReceived) for event in peer.heard))
        received = max(event.sequence for event in peer.heard if isinstance(event, DataReceived))
        event = encode(Event(b"\x81\xa4type\xa9mesh:test"))
        peer.say(data_header(1, received, len(event)) + event)
        peer.hear(lambda: AckReceived(1) in peer.heard)  # the node knows that we have it
        eventually(lambda: ann.events("suspect", "zoe"), "silent for long enough to be replaced")
        with Peer(ann) as older:  # takes over, and claims to be where this one was before
            older.open(known=theirs.epoch, received=received - 1)
            reason, text = older.hear_bye()
    assert reason == "broken"
    assert "a replay of something older" in text
    ann.logged("a replay of something older")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:0", "unix:/nothing/there", "999.1.1.1:1", "ä" * 250 + ":1"])
def test_an_address_that_is_none_is_tried_in_vain_like_others(start: Start, address: str) -> None:
    ann = start("ann", secret=SECRET)
    with Peer(ann, address=address) as peer:
        peer.open()
    eventually(lambda: ann.counter("dial_failures") >= 2, "tried, and tried again")
    if not address.startswith("unix:"):  # a socket that went with its process is nothing to warn of
        ann.logged(f"cannot link with {address}")


# TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> Callable[[str, trustme.CA, trustme.CA], dict[str, str]]:
    """Write a node's certificate by one authority, and trust another one; return MeshTLS's options."""

    def write(name: str, signer: trustme.CA, trusted: trustme.CA) -> dict[str, str]:
        issued = signer.issue_cert(f"{name}.example")
        paths = {part: str(tmp_path / f"{name}.{part}") for part in ("certfile", "keyfile", "cafile")}
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(paths["certfile"], append=number > 0)
        issued.private_key_pem.write_to_path(paths["keyfile"])
        trusted.cert_pem.write_to_path(paths["cafile"])
        return paths

    return write


def test_nodes_meet_over_tls_and_a_foreign_certificate_is_refused(
    start: Start, tls: Callable[[str, trustme.CA, trustme.CA], dict[str, str]]
) -> None:
    authority, foreign = trustme.CA(), trustme.CA()
    ann = start("ann", tls=tls("ann", authority, authority))
    bob = start("bob", tls=tls("bob", authority, authority), peers=[ann.where["address"]])
    meet(ann, bob)
    id_ = bob.ask("connect", name="c", room="tea")
    eventually(lambda: ann.ask("view")["rooms"] == {"tea": [id_]}, "the room")
    ann.ask("broadcast", type="news", payload="x" * 300_000, room="tea")
    eventually(lambda: bob.ask("others", name="c") == [["news", "x" * 300_000]], "the message")
    eve = start("eve", tls=tls("eve", foreign, authority), peers=[ann.where["address"]])
    eventually(lambda: ann.counter("refused_tls") >= 1, "refused")
    ann.logged("refused a link from 127.0.0.1:")
    ann.logged("certificate")
    eventually(lambda: eve.counter("dials") >= 2, "tried again")
    assert ann.ask("view")["nodes"] == bob.ask("view")["nodes"] == ["ann", "bob"]
    fay = start("fay", tls=tls("fay", authority, foreign), peers=[ann.where["address"]])  # believes others
    fay.logged("cannot link with", "certificate verify failed")  # the log is that of all nodes here
    assert fay.counter("dial_failures") >= 1
    assert fay.ask("view")["nodes"] == ["fay"]


def test_a_certificate_that_is_taken_away_is_told_at_each_new_link(
    start: Start, tls: Callable[[str, trustme.CA, trustme.CA], dict[str, str]]
) -> None:
    authority = trustme.CA()
    ann = start("ann", tls=(files := tls("ann", authority, authority)))
    bob = start("bob", tls=tls("bob", authority, authority), peers=[ann.where["address"]])
    meet(ann, bob)
    Path(files["certfile"]).unlink()
    start("zed", tls=tls("zed", authority, authority), peers=[ann.where["address"]])
    eventually(lambda: ann.counter("refused_tls") >= 1, "refused")
    assert files["certfile"] in ann.logged("refused a link from")
    assert ann.ask("view")["nodes"] == ["ann", "bob"]  # the link that there was lasts


@pytest.mark.parametrize("encrypted", ["listener", "dialler"])
def test_a_node_without_tls_and_one_with_it_refuse_each_other(
    start: Start, tls: Callable[[str, trustme.CA, trustme.CA], dict[str, str]], encrypted: str
) -> None:
    authority = trustme.CA()
    options = {"tls": tls("ann", authority, authority)}
    # short, as each may wait for what the other will never say
    ann = start("ann", options=QUICK, **(options if encrypted == "listener" else {}))
    bob = start("bob", options=QUICK, peers=[ann.where["address"]], **(options if encrypted == "dialler" else {}))
    is_refused(ann, "refused_tls" if encrypted == "listener" else "refused_broken", "refused a link from")
    bob.logged("cannot link with")
    assert bob.events("joined") == []


# A directory ------------------------------------------------------------------------------------------------------


def test_processes_meet_in_a_directory_and_a_dead_one_is_cleared_away(start: Start, tmp_path: Path) -> None:
    where = tmp_path / "nodes"
    options = {"kind": NodeProcess, "port": None, "discover": f"unix:{where}"}
    nodes = [start(f"n{place}", **options) for place in range(3)]
    meet(*nodes)
    assert where.stat().st_mode & 0o777 == 0o700
    ids = [node.ask("connect", name="c", room="tea") for node in nodes]
    for node in nodes:
        eventually(lambda node=node: node.ask("view")["rooms"] == {"tea": sorted(ids)}, "the room")  # type: ignore[misc]
    assert nodes[0].ask("broadcast", type="news", payload=1, room="tea") == 3
    for node in nodes:
        eventually(lambda node=node: node.ask("others", name="c") == [["news", 1]], "the message")  # type: ignore[misc]
    assert len(list(where.iterdir())) == 3
    nodes[2].tell(signal.SIGKILL)
    eventually(lambda: len(list(where.iterdir())) == 2, "the file of the killed one is gone")
    meet(*nodes[:2])
    meet(*nodes[:2], start("n3", **options))
    nodes[1].ask("stop")
    assert len(list(where.iterdir())) == 2


def test_whoever_comes_to_a_new_node_sees_the_clients_of_those_in_its_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = []
    options = MeshOptions(meeting=PATIENCE, authentication=PATIENCE)
    try:
        for _ in range(3):
            clients = MemoryTransport()
            mesh = PeerMeshTransport(None, discover=f"unix:{tmp_path}", options=options)
            kernel = RealtimeKernel([clients, mesh], log_level="info")
            kernel.start()
            kernels.append(kernel)
            kernel.rooms.join("tea", clients.connect().id)  # at once, on each
            assert len(kernel.rooms.members("tea")) == len(kernels)
        lines = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
        assert all(line.count(str(tmp_path)) == 1 for line in lines if "listens at" in line), lines
        assert any(f"(accepted process {os.getpid()})" in line for line in lines), lines
    finally:
        for kernel in kernels:
            kernel.stop()


@pytest.mark.parametrize("meeting", [1e6, 0.1])
def test_a_node_does_not_wait_for_those_who_do_not_answer(tmp_path: Path, meeting: float) -> None:
    with plain_socket.socket(plain_socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.node"))
        if meeting < 1:
            other.listen()  # and takes nobody: with the larger one it would hang here
        mesh = PeerMeshTransport(None, discover=f"unix:{tmp_path}", options=MeshOptions(meeting=meeting))
        kernel = RealtimeKernel([mesh], log_level="critical")
        kernel.start()
        assert mesh.nodes() == []
        kernel.stop()


def test_a_stranger_in_the_directory_is_not_waited_for(tmp_path: Path) -> None:
    kernels = [
        RealtimeKernel(
            [PeerMeshTransport(None, cluster=name, discover=f"unix:{tmp_path}", options=MeshOptions(meeting=1e6))],
            log_level="critical",
        )
        for name in ("ours", "theirs")
    ]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.stop()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777], ids=oct)
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    where = tmp_path / "nodes"
    where.mkdir()
    where.chmod(mode)
    kernel = RealtimeKernel([PeerMeshTransport(None, discover=f"unix:{where}")], log_level="critical")
    with pytest.raises(ConfigurationError, match="others may write there"):
        kernel.start()
    assert list(where.iterdir()) == []


def test_only_sockets_of_the_directory_are_nodes_and_nothing_else_is_touched(start: Start, tmp_path: Path) -> None:
    where = tmp_path / "nodes"
    where.mkdir(0o755)
    (where / "addon.node").write_bytes(b"a compiled module of Node's")
    (where / "folder.node").mkdir()
    with plain_socket.socket(plain_socket.AF_UNIX) as dead:
        dead.bind(str(where / "dead.node"))
    umask = os.umask(0)
    try:
        first = start("ann", port=None, discover=f"unix:{where}")
        second = start("bob", port=None, discover=f"unix:{where}")
    finally:
        os.umask(umask)
    meet(first, second)
    eventually(lambda: not (where / "dead.node").exists(), "the dead one's socket is gone")
    assert (where / "addon.node").read_bytes() == b"a compiled module of Node's"
    assert (where / "folder.node").is_dir()
    modes = [path.stat().st_mode & 0o777 for path in where.iterdir() if path.is_socket()]
    assert modes == [0o600, 0o600]  # whoever may write to a socket is a node


# A client that does not read ------------------------------------------------------------------------------------------


def test_a_client_that_never_reads_does_not_hold_up_the_link(start: Start) -> None:
    ann = start("ann", kind=NodeProcess, options=CALM)
    bob = start("bob", kind=NodeProcess, peers=[ann.where["address"]], options=CALM)
    bob.ask("connect", name="healthy", room="calm")
    bob.ask("connect", name="both", room="busy")
    with plain_socket.socket() as lazy:
        lazy.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", bob.where["sockets"]))
        lazy.sendall(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        lazy.sendall(_masked(b'{"type":"join","room":"busy"}'))
        eventually(lambda: len(ann.ask("view")["rooms"].get("busy", [])) == 2, "it is in the room")
        sent = 0
        while not bob.counter("stalls"):
            ann.ask("broadcast", type="number", payload=["ann", sent, "x" * 20_000], room="busy")
            sent += 1
            assert sent < 2_000
        before = bob.counter("stalls")
        for number in range(2_000):  # small ones: its outbox is never full
            ann.begin("broadcast", type="number", payload=["ann", sent + number], room="busy")
        ann.ask("broadcast", type="number", payload=["ann", 0], room="calm")
        eventually(lambda: bob.ask("seen", name="healthy"), "the other room's message")
        eventually(lambda: bob.ask("seen", name="both")["ann"]["last"] == sent + 1_999, "all")
        assert bob.ask("seen", name="both")["ann"]["gaps"] == []
        assert len(bob.ask("view")["rooms"]["busy"]) == 2  # it was there all the time
        assert bob.counter("stalls") - before <= 20  # and not for each of the 2,000


def _masked(payload: bytes) -> bytes:
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload
