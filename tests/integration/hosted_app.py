"""What the servers in test_hosting.py serve: ``application`` for any of them, ``app`` for Flask's command."""

from __future__ import annotations

import os
from typing import Any

import flask

from realtime import Limits, RealtimeKernel, Reject
from realtime.integrations.wsgi import RealtimeMiddleware

MiB = 1024 * 1024
LARGE = 5_000_000  # bytes of the largest payload that the tests send

PAGE = """<!doctype html><title>chat</title><link rel="icon" href="data:,">
<form><input id="text"></form><ul></ul>
<script type="module">
  import { connect } from "/realtime/client.js";
  const client = connect("/realtime", { backoff: { min: 0.1, max: 1 } });
  client.on("said", (payload) => {
    const entry = document.createElement("li");
    entry.textContent = payload;
    document.querySelector("ul").append(entry);
  });
  document.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    client.send("say", document.querySelector("#text").value, { room: "page" });
  });
  window.members = () => client.call("join", null, { room: "page" });
</script>
"""

kernel = RealtimeKernel(limits=Limits(message_size=LARGE + 1000, outbox=8 * MiB))


@kernel.on("echo")
def echo(message: Any, context: Any, toolkit: Any) -> Any:
    return message.payload


@kernel.on("where")
def where(message: Any, context: Any, toolkit: Any) -> Any:
    """Tell which process serves, and what it knows of the client."""
    return {"pid": os.getpid(), "id": context.id, "who": context.identity}


@kernel.on("join")
def join(message: Any, context: Any, toolkit: Any) -> int:
    toolkit.rooms.join(message.room)
    return len(kernel.rooms.members(message.room))


@kernel.on("say")
def say(message: Any, context: Any, toolkit: Any) -> None:
    toolkit.rooms.broadcast({"type": "said", "payload": message.payload}, message.room)


@kernel.on("clients")
def clients(message: Any, context: Any, toolkit: Any) -> int:
    return int(kernel.stats()["clients"])


def authenticate(request: Any) -> str:
    name = request.query.get("name", "anybody")
    if name == "nobody":
        raise Reject("nobody may connect", status=401)
    return str(name)


app = flask.Flask(__name__)


@app.get("/")
def index() -> str:
    return PAGE


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())


site = app.wsgi_app
application = RealtimeMiddleware(site, kernel, authenticate=authenticate)
app.wsgi_app = application  # type: ignore[method-assign]

print(f"loaded by process {os.getpid()}", flush=True)
