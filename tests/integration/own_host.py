"""Our own server with what test_hosting.py serves: ``python -m own_host``."""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

    from hosted_app import authenticate, kernel, site

    from realtime import WebSocketTransport

    transport = WebSocketTransport(port=0, path="/realtime", app=site, authenticate=authenticate)
    kernel.use_transport(transport)
    kernel.run()
