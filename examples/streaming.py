"""A handler that streams: every value it yields goes out at once, and no faster than the client reads.

    python examples/streaming.py

Ask for a build, and read its log while it runs (pip install websockets)::

    import json
    from websockets.sync.client import connect

    with connect("ws://127.0.0.1:8767/realtime") as websocket:
        websocket.send(json.dumps({"type": "build:run", "payload": {"steps": 5}, "ack": "my build"}))
        for text in websocket:
            message = json.loads(text)
            if message["type"] == "system:ack":  # the generator returned; anything else is an item or an error
                print("done:", message["payload"]["result"])
                break
            print(message["payload"]["item"])

or open http://127.0.0.1:8767/ and send ``{"type": "build:run", "payload": {"steps": 5}, "ack": 1}`` under "Raw
messages". ``--port 0`` picks a free port. Ctrl-C stops it.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from typing import Any

import gevent
from console import open_console

from realtime import Context, Message, RealtimeKernel, Reject, Toolkit, WebSocketTransport

MOST_STEPS = 1_000_000


def build(message: Message, context: Context, toolkit: Toolkit) -> Generator[dict[str, Any], None, dict[str, Any]]:
    options = message.payload if isinstance(message.payload, dict) else {}
    steps, pause = options.get("steps", 5), options.get("pause", 0.2)
    if type(steps) is not int or not 0 < steps <= MOST_STEPS or not isinstance(pause, (int, float)):
        raise Reject(f'send {{"steps": 1 to {MOST_STEPS}, "pause": seconds}}', code="bad_options")

    finished = 0
    try:
        for step in range(1, steps + 1):
            gevent.sleep(min(max(pause, 0), 10))  # the work; others are served meanwhile
            # Parks here while the client does not keep up: a million lines never pile up in memory.
            yield {"progress": round(step / steps, 3), "line": f"step {step} of {steps}: ok"}
            finished = step
    finally:
        toolkit.log("%d of %d steps", finished, steps)  # also when the client left in the middle
    return {"steps": finished}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Builds that stream their log.")
    parser.add_argument("--port", type=int, default=8767)
    kernel = RealtimeKernel(transports=[WebSocketTransport(port=parser.parse_args().port, path="/realtime")])
    kernel.on("build:run", build, concurrent=True)  # several builds of one client at once
    open_console(kernel)
    kernel.run()
