"""Our own server with what test_hosting.py serves: ``python -m own_host``."""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

    import hosted_app

    from realtime import WebSocketTransport

    transport = WebSocketTransport(port=0, app=hosted_app.app, authenticate=hosted_app.authenticate)
    hosted_app.kernel.use_transport(transport)
    hosted_app.kernel.start()
    print(f"listening at http://127.0.0.1:{transport.port}", flush=True)
    hosted_app.kernel.run()
