"""A video call in the browser: everybody in a room sees, hears and writes to everybody else, directly.

    python examples/webrtc_call.py

Then open http://127.0.0.1:8768/ in two tabs, and enter the same room. Video, sound and chat go from browser to
browser; the server only introduces them. Without a camera a drawn picture is sent in its place.

Between networks the browsers need a STUN server, and where that is not enough a TURN server::

    python examples/webrtc_call.py --ice-server stun:stun.example.org --ice-server turn:turn.example.org \\
        --turn-secret "the static-auth-secret of that coturn"

Browsers give the camera only to pages of this machine or under https. ``--port 0`` picks a free port. Ctrl-C stops it.
"""

from __future__ import annotations

import argparse

from page import Page

from realtime import RealtimeKernel, WebRTCSignalingBridge, WebSocketTransport

FILES = ("webrtc_call.html", "page.css", "webrtc_call.css", "page.js", "webrtc_call.js", "webrtc_media.js")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Video calls in the browser.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8768)
    parser.add_argument("--ice-server", action="append", default=[], metavar="URL", help="stun:... or turn:...")
    parser.add_argument("--turn-secret", help="shared with the TURN server, for passwords that last an hour")
    options = parser.parse_args()

    page = Page("/realtime", *FILES)
    kernel = RealtimeKernel(
        transports=[WebSocketTransport(host=options.host, port=options.port, path="/realtime", app=page)]
    )
    WebRTCSignalingBridge(
        ice_servers=[{"urls": url} for url in options.ice_server], turn_secret=options.turn_secret
    ).attach(kernel)
    kernel.run()
