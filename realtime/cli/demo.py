"""``realtime demo``: the basic example with its page, from wherever the package is installed.

The files are those of ``examples/``, to which ``example-files`` in this package is a link; an installed package has
copies in its place.
"""

from __future__ import annotations

import argparse
import importlib
import socket
import sys
from importlib.resources import files
from typing import TYPE_CHECKING

from realtime.cli.addresses import add_websocket_options
from realtime.cli.common import add_command
from realtime.cli.serve import run_here

if TYPE_CHECKING:
    from realtime.cli.common import Commands
    from realtime.kernel import RealtimeKernel
    from realtime.transports.websocket import WebSocketTransport

__all__ = ["add"]

BACKLOG = 128  # connections that wait to be accepted

_DESCRIPTION = """\
Runs the basic example: a kernel with WebSocket clients, a mesh and WebRTC signaling switched on, and a page to chat on
that shows every message as it goes over the wire. Prints where the page is, and where the code.
"""
_EXAMPLES = """\
examples:
  realtime demo                                  http://127.0.0.1:8080/, or another port if that one is taken
  realtime demo --port 8000

Open the page in two windows. Ctrl-C stops it.
"""


def add(commands: Commands) -> None:
    """Put the command on the command line."""
    parser = add_command(
        commands,
        "demo",
        _demo,
        summary="run the basic example, with a page to chat on",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_websocket_options(parser)


def _demo(arguments: argparse.Namespace) -> int:
    """Patch, import the example, run it. Returns the exit code; blocks until it is stopped."""
    from gevent import monkey

    monkey.patch_all()
    return run_here(lambda: _kernel(arguments.host, arguments.port))


def _kernel(host: str | None, port: int | None) -> RealtimeKernel:
    """Return the example's kernel, which listens already. Raises PortInUse or ConfigurationError."""
    from realtime.transports.mesh import PeerMeshTransport
    from realtime.transports.websocket import WebSocketTransport

    folder = str(files("realtime") / "example-files")
    sys.path.insert(0, folder)
    basic = importlib.import_module("basic")
    kernel: RealtimeKernel = basic.kernel
    for transport in kernel.transports:
        if isinstance(transport, WebSocketTransport):
            transport.listen_at(host=host, port=port)
            listening = _listen(transport, any_port=port is None)
            transport.listen_on(listening)
            _tell(listening, basic.__file__)
        elif isinstance(transport, PeerMeshTransport):
            transport.listen_at(port=0)  # nobody is told to connect there, and a second demo must not be in its way
    return kernel


def _listen(transport: WebSocketTransport, *, any_port: bool) -> socket.socket:
    """Open the port now, so that it can be told; another one if it is taken and nobody has asked for it."""
    from realtime.errors import PortInUse
    from realtime.transports.ports import open_port

    address = transport.shared_address()
    try:
        return open_port(address.host, address.port, backlog=BACKLOG, reuse_port=False, resolve=socket.getaddrinfo)
    except PortInUse:
        if not any_port:
            raise
        return open_port(address.host, 0, backlog=BACKLOG, reuse_port=False, resolve=socket.getaddrinfo)


def _tell(listening: socket.socket, code: str | None) -> None:
    from realtime.transports.ports import join_address

    host, port = listening.getsockname()[:2]
    print(f"Open this page in two windows, and chat:\n\n    http://{join_address(host, port)}/\n\n", end="")
    print(f"Its code is {code}\nCtrl-C stops it.", flush=True)
