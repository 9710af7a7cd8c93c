"""An echo server on plain WebSockets, without the kernel: one blocking function per connection.

    python examples/echo.py                              it prints the address it listens on
    python -m websockets ws://127.0.0.1:8765/            pip install websockets; type a line, get it back

Or from Python::

    from websockets.sync.client import connect

    with connect("ws://127.0.0.1:8765/") as websocket:
        websocket.send("hello")
        print(websocket.recv())

``--port 0`` picks a free port. Ctrl-C stops it.
"""

from __future__ import annotations

import argparse

from realtime.transports.websocket import WebSocket, serve


def echo(ws: WebSocket) -> None:
    for data in ws:  # str for text, bytes for binary; ends when the connection does
        ws.send(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A WebSocket echo server.")
    parser.add_argument("--port", type=int, default=8765)
    with serve(echo, port=parser.parse_args().port, compression=True) as server:
        print(f"Echoing at {server.url}", flush=True)
        server.serve_forever()
