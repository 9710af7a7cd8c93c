"""A handler that holds a whole conversation: it asks, waits and answers in straight-line code.

    python examples/conversation.py

Only the handler's own greenlet waits; a thousand clients can be in the middle of an order at once. Talk to it
from Python (pip install websockets)::

    import json
    from websockets.sync.client import connect

    def send(message):
        websocket.send(json.dumps(message))

    with connect("ws://127.0.0.1:8766/realtime") as websocket:
        send({"type": "pizza:order", "ack": 1})
        for text in websocket:
            message = json.loads(text)
            print(message["type"], message["payload"])
            if message["type"] == "pizza:which":  # a question: its answer goes back with its ack
                send({"type": "system:ack", "payload": {"ack": message["ack"], "result": "Margherita"}})
            elif message["type"] == "pizza:price":  # no question: the client comes back to it when it likes
                send({"type": "pizza:confirm", "payload": "yes"})
            elif message["type"] == "system:ack":  # the end of what was asked with "ack": 1
                break

or open http://127.0.0.1:8766/ and send the same under "Raw messages". ``--port 0`` picks a free port. Ctrl-C
stops it.
"""

from __future__ import annotations

import argparse
from typing import Any

from console import open_console

from realtime import Context, Message, RealtimeKernel, Reject, TimedOut, Toolkit, WebSocketTransport

PRICES = {"Margherita": 8.5, "Funghi": 10.0, "Diavola": 11.0}


def order(message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
    for _ in range(3):
        pizza = toolkit.call(context.id, {"type": "pizza:which", "payload": list(PRICES)}, timeout=60)
        if isinstance(pizza, str) and pizza in PRICES:  # a client may answer anything
            break
        toolkit.reply(f"We have no {pizza}.")
    else:
        raise Reject("Come back when you know what you want.", code="undecided")

    toolkit.reply({"type": "pizza:price", "payload": PRICES[pizza]})
    try:
        confirmed = toolkit.wait_for("pizza:confirm", timeout=60)
    except TimedOut:
        raise Reject("Too late, the oven is cold.", code="too_late") from None

    if confirmed.payload != "yes":
        raise Reject("Nothing was ordered.", code="cancelled")
    return {"pizza": pizza, "price": PRICES[pizza]}  # the answer to the message that began it all


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Orders of pizza, each a conversation.")
    parser.add_argument("--port", type=int, default=8766)
    kernel = RealtimeKernel(transports=[WebSocketTransport(port=parser.parse_args().port, path="/realtime")])
    kernel.on("pizza:order", order)
    open_console(kernel)
    kernel.run()
