"""The application of hosted_app with a mesh of its own, as for other machines; HOSTED_START starts the kernel here."""

from __future__ import annotations

import os

from hosted_app import application, kernel

from realtime import PeerMeshTransport

__all__ = ["application"]

kernel.use_transport(PeerMeshTransport(port=0))
if "HOSTED_START" in os.environ:
    kernel.start()
