"""gevent's pywsgi with what test_hosting.py serves: ``python -m pywsgi_host``; ``... gevent-websocket`` with that
package's handler."""

from __future__ import annotations

import sys

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

    from gevent.pywsgi import WSGIServer
    from hosted_app import application

    options = {}
    if sys.argv[1:] == ["gevent-websocket"]:
        from geventwebsocket.handler import WebSocketHandler

        options["handler_class"] = WebSocketHandler
    server = WSGIServer(("127.0.0.1", 0), application, log=None, **options)
    server.start()
    print(f"listening at http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
