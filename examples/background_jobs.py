"""Work beside the requests: a job whose progress streams to its page, a greenlet and a view that tell everybody.

    python examples/background_jobs.py

Then open http://127.0.0.1:5001/ in two windows. Start a job in one: its progress comes item by item, and closing the
page, or Cancel, ends it. The board comes from a greenlet, once a second. Notices come from a view; a script can send
one, too::

    curl -d text="the coffee is ready" http://127.0.0.1:5001/notices

``--port 0`` picks a free port. Ctrl-C stops it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from flask import Flask, render_template, request, send_from_directory
from werkzeug.wrappers import Response

from realtime import Context, Message, Reject, Toolkit
from realtime.integrations.flask import Realtime

HERE = Path(__file__).parent
STEP = 250_000  # numbers looked at before the next sign of progress
LARGEST = 1_000_000_000
NOTICE_LENGTH = 200  # characters

app = Flask(__name__)
realtime = Realtime(app)
counts = {"running": 0, "finished": 0, "cancelled": 0}


# A job: a generator. It computes, so it runs in a native thread and holds nobody up. -----------------------


@realtime.on("job:primes", threadpool=True, concurrent=True)  # several at once for the same page
def count_primes(message: Message, context: Context, toolkit: Toolkit) -> Iterator[dict[str, Any]]:
    """Count the primes below ``payload``; yield how far it is, and return how many there are."""
    below = message.payload
    if not isinstance(below, int) or not 1000 <= below <= LARGEST:
        raise Reject(f"a whole number from 1,000 to {LARGEST:,}", code="bad_number")
    began, found, known = time.monotonic(), 0, primes_up_to(int(below**0.5))
    counts["running"] += 1
    try:
        for start in range(2, below, STEP):
            end = min(start + STEP, below)
            found += count_between(start, end, known)
            yield {"done": end / below, "found": found}  # GeneratorExit comes here when nobody wants it any more
        counts["finished"] += 1
    except GeneratorExit:
        counts["cancelled"] += 1
        raise
    finally:
        counts["running"] -= 1
    return {"found": found, "seconds": round(time.monotonic() - began, 2)}


def primes_up_to(number: int) -> list[int]:
    return [n for n in range(2, number + 1) if all(n % d for d in range(2, int(n**0.5) + 1))]


def count_between(start: int, end: int, known: list[int]) -> int:
    """Count the primes from ``start`` to before ``end``, with those up to the square root of ``end``."""
    prime = bytearray(b"\x01") * (end - start)
    for n in known:
        first = max(n * n, start + -start % n) - start  # the first multiple that is none of a smaller one
        prime[first::n] = bytes(len(range(first, len(prime), n)))
    return prime.count(1)


# A greenlet that tells everybody. It has a greenlet of the kernel's, from its start to its end. -------------


def tell_how_it_goes() -> None:
    began = time.monotonic()
    while True:
        board = {**counts, "pages": realtime.presence.list().total, "up": int(time.monotonic() - began)}
        realtime.broadcast({"type": "board", "payload": board}, conflate="board")
        gevent.sleep(1)


realtime.spawn(tell_how_it_goes)


# A view that tells everybody. -------------------------------------------------------------------------------


@app.post("/notices")
def notice() -> tuple[dict[str, int], int]:
    text = request.form.get("text", "").strip()
    if not 0 < len(text) <= NOTICE_LENGTH:
        return {"pages": 0}, 400
    pages = realtime.broadcast({"type": "notice", "payload": {"text": text, "time": time.time()}})
    return {"pages": pages}, 201


@app.get("/")
def index() -> str:
    return render_template("background_jobs.html", largest=LARGEST, length=NOTICE_LENGTH)


@app.get("/<any('page.css', 'page.js', 'background_jobs.css', 'background_jobs.js'):name>")
def file(name: str) -> Response:
    return send_from_directory(HERE, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Background jobs in Flask.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001)
    options = parser.parse_args()
    realtime.run(app, options.host, options.port)
