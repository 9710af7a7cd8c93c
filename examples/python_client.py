"""The other end of a conversation, in plain Python: orders a pizza from ``conversation.py``.

    python examples/conversation.py      in one terminal
    python examples/python_client.py     in another: asks which pizza you want

``--pizza Funghi`` answers by itself, ``--budget 9`` says no to a higher price, ``--url`` leads to another server.
Start it first if you like, or stop the server in between: it comes back when the server does, and orders again.
"""

from __future__ import annotations

import argparse
import sys

from realtime import CallFailed, Client, ConnectionClosed
from realtime.client import ClientMessage


def order(client: Client, pizza: str | None, budget: float) -> None:
    """Answer what the server asks on the way, and print what comes of it."""

    @client.answer("pizza:which")  # the server's toolkit.call: what this returns is its result
    def which(question: ClientMessage) -> str:
        return pizza or input(f"Which one: {', '.join(question.payload)}? ")

    @client.on("pizza:price")  # an ordinary message
    def price(message: ClientMessage) -> None:
        fits = message.payload <= budget
        print(f"It costs {message.payload:.2f}: {'fine' if fits else 'too much'}", flush=True)
        client.send("pizza:confirm", "yes" if fits else "no")

    @client.on("system:reply")  # the server's toolkit.reply("text")
    def reply(message: ClientMessage) -> None:
        print(message.payload["message"], flush=True)

    @client.on("client:state")
    def state(message: ClientMessage) -> None:
        if message.payload["name"] == "waiting":
            print(f"No connection: next attempt in {message.payload['retry_in']:.1f} s", flush=True)

    client.connect(retry=True)
    while True:
        try:
            ordered = client.call("pizza:order", timeout=120)  # returns what the handler returns in the end
            break
        except ConnectionClosed:  # a lost connection comes back and goes on; this server was another one then
            if client.state == "closed":
                raise
            print("The server has forgotten the order: here it is again", flush=True)
    print(f"Ordered: {ordered['pizza']}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Orders a pizza.")
    parser.add_argument("--url", default="ws://127.0.0.1:8766/realtime")
    parser.add_argument("--pizza", help="do not ask which")
    parser.add_argument("--budget", type=float, default=20.0)
    arguments = parser.parse_args()
    client = Client(arguments.url)
    try:
        order(client, arguments.pizza, arguments.budget)
    except CallFailed as error:  # the handler's Reject
        print(error.message)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
