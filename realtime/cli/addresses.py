"""``--host``, ``--port``, ``--path``, ``--mesh`` and ``--peer``: where a kernel listens, whatever its code says."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from realtime.cli.common import Complaint

if TYPE_CHECKING:
    from realtime.kernel import RealtimeKernel
    from realtime.transports.mesh import PeerMeshTransport
    from realtime.worker_pool import Worker

__all__ = ["LOCAL", "SECRET", "add_mesh_options", "add_websocket_options", "join_mesh", "move_websocket", "port_number"]

SECRET = "REALTIME_MESH_SECRET"  # an environment variable: every user of a machine can read command lines
DEFAULT_HOST = "127.0.0.1"


class MeshPlace(NamedTuple):
    """The value of ``--mesh``. Without a port nodes of this machine find each other."""

    host: str = DEFAULT_HOST
    port: int | None = None


LOCAL = MeshPlace()


def add_websocket_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--host`` and ``--port``."""
    parser.add_argument("--host", help="listen there instead: 0.0.0.0 to be reached from other machines")
    parser.add_argument("--port", type=port_number, help="listen on this port instead; 0 picks a free one")


def add_mesh_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--mesh`` and ``--peer``."""
    parser.add_argument(
        "--mesh",
        metavar="[HOST:]PORT",
        nargs="?",
        const=LOCAL,
        type=_mesh_place,
        help="act as one kernel with other nodes: those on this machine, or with PORT those that connect there "
        "and the --peer ones",
    )
    parser.add_argument(
        "--peer", metavar="HOST:PORT", action="append", default=[], help="a node to connect to; any one is enough"
    )


def port_number(text: str) -> int:
    """Read a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a port, 0 to 65535")
    return int(text)


def _mesh_place(text: str) -> MeshPlace:
    host, colon, port = text.rpartition(":")
    try:
        return MeshPlace(host.strip("[]") if colon else DEFAULT_HOST, port_number(port))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be PORT, HOST:PORT or nothing; MODULE goes before it"
        ) from None


def move_websocket(kernel: RealtimeKernel, *, host: str | None, port: int | None, path: str | None = None) -> None:
    """Let the kernel's WebSocketTransport listen elsewhere; add one where there is none. None: as it is.

    :raises Complaint: there are several.
    :raises ConfigurationError: a value that cannot work.
    """
    from realtime.transports.websocket import WebSocketTransport

    given = {"--host": host, "--port": port, "--path": path}
    options = ", ".join(name for name, value in given.items() if value is not None)
    if not options:
        return
    there = [transport for transport in kernel.transports if isinstance(transport, WebSocketTransport)]
    if len(there) > 1:
        raise Complaint(f"{options}: the kernel has {len(there)} WebSocketTransports; say it in the code instead")
    transport = there[0] if there else WebSocketTransport()
    transport.listen_at(host=host, port=port, path=path)
    if not there:
        kernel.use_transport(transport)


def join_mesh(kernel: RealtimeKernel, arguments: argparse.Namespace, worker: Worker | None) -> None:
    """Give the kernel the mesh that ``--mesh`` asks for.

    :param worker: the worker of a pool that the kernel belongs to. With a port each worker has one of its own,
        counted from there, as others must reach every node.
    :raises Complaint: the kernel has one, or the options do not fit each other.
    :raises ConfigurationError: a value that cannot work.
    """
    from realtime.transports.mesh import PeerMeshTransport

    place: MeshPlace | None = arguments.mesh
    if place is None or place.port is None:
        if arguments.peer:
            raise Complaint("--peer needs --mesh PORT: nodes of other machines must reach this one, too")
        if place is None:
            return
    if any(isinstance(transport, PeerMeshTransport) for transport in kernel.transports):
        raise Complaint(f"--mesh: {arguments.target} has a PeerMeshTransport in its code; leave the option away")
    if place.port is None:
        kernel.use_transport(PeerMeshTransport(port=None, discover=f"unix:{_meeting_place(arguments.target)}"))
    else:
        kernel.use_transport(_listening_mesh(place, place.port, arguments.peer, worker))


def _listening_mesh(place: MeshPlace, port: int, peers: list[str], worker: Worker | None) -> PeerMeshTransport:
    from realtime.transports.mesh import PeerMeshTransport
    from realtime.transports.mesh_dial import is_loopback

    secret = os.environ.get(SECRET)
    if not secret and not is_loopback(place.host):
        raise Complaint(
            f"--mesh {place.host}:{port}: other machines can reach it, and whoever does is a node; set the environment "
            f"variable {SECRET} to a secret that all nodes know"
        )
    return PeerMeshTransport(
        port=port + worker.index if worker is not None and port else port,
        host=place.host,
        peers=peers,
        secret=secret or None,
        discover=f"unix:{worker.directory}" if worker is not None else None,
    )


def _meeting_place(target: str) -> Path:
    """Return the directory where processes that serve the same kernel find each other.

    It is for this user, this module and this current directory: two applications must not become one by accident.
    The mesh refuses a directory in which others may write.
    """
    from realtime.transports.mesh_discovery import parent_for

    module, _, path = target.partition(":")
    place = "\0".join((os.path.realpath(os.curdir), module, path or "kernel"))
    name = f"realtime-{os.geteuid()}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"
    return parent_for(name) / name
