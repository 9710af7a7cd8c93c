"""Processes that one server has started, such as the workers of a pool: their kernels act as one."""

from __future__ import annotations

from pathlib import Path

from realtime.kernel import RealtimeKernel
from realtime.transports.mesh import PeerMeshTransport

__all__ = ["join_siblings"]


def join_siblings(kernel: RealtimeKernel, directory: str | Path) -> None:
    """Have a kernel find those of its sibling processes in a directory of theirs.

    A mesh that the kernel has, to be joined with other machines, finds them there too, unless it has a directory of its
    own, in which they meet then. A kernel without one gets one. Switches greenlets if the kernel runs.

    :raises ConfigurationError: the directory cannot be used.
    """
    meshes = [transport for transport in kernel.transports if isinstance(transport, PeerMeshTransport)]
    for mesh in meshes:
        mesh.meet_in(directory)
    if not meshes:
        kernel.use_transport(PeerMeshTransport(port=None, discover=f"unix:{directory}"))
