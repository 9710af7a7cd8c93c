"""A chat in Flask: log in with a name, enter rooms, see who is there. The page comes with what was said before.

    python examples/flask_chat.py

Then open http://127.0.0.1:5000/ in two browsers, or in a normal and a private window. For development, with the
reloader and the debugger::

    flask --app examples/flask_chat run --debug

Messages are kept in memory: in one process, and until it ends. Set SECRET_KEY in the environment to keep people logged
in across restarts. ``--port 0`` picks a free port. Ctrl-C stops it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import time
from collections import defaultdict, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from flask import Flask, redirect, render_template, request, send_from_directory, session, url_for
from werkzeug.wrappers import Response

from realtime import CloseCode, Context, Message, Reject, Toolkit, UnknownClient
from realtime.integrations.flask import Realtime

HERE = Path(__file__).parent
ROOMS = ("lobby", "tea", "music")
NAME_LENGTH, ROOM_LENGTH, TEXT_LENGTH = 40, 40, 4000  # characters
KEPT = 100  # messages of a room

app = Flask(__name__)
app.config.update(SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_hex(), SESSION_COOKIE_SAMESITE="Lax")


def who_is_it(_: object) -> str:
    """Let in who has logged in; ``session`` is that of the page's visitor."""
    if "person" not in session:
        raise Reject("log in first", code="unauthorized", status=401)
    return session["person"]


realtime = Realtime(app, authenticate=who_is_it)
history: defaultdict[str, deque[dict[str, Any]]] = defaultdict(lambda: deque(maxlen=KEPT))
numbers = itertools.count(1)


# The pages ------------------------------------------------------------------------------------------------


@app.get("/")
def index() -> Response:
    return redirect(url_for("room", name="lobby") if "person" in session else url_for("login"))


@app.route("/login", methods=["GET", "POST"])
def login() -> Response | str | tuple[str, int]:
    if request.method == "GET":
        return render_template("flask_chat_login.html", length=NAME_LENGTH)
    name = request.form.get("name", "").strip()
    if not 0 < len(name) <= NAME_LENGTH:
        alert = f"Give a name of 1 to {NAME_LENGTH} characters."
        return render_template("flask_chat_login.html", length=NAME_LENGTH, alert=alert), 400
    session.update(person=secrets.token_hex(4), name=name)
    return redirect(url_for("index"))


@app.post("/logout")
def logout() -> Response:
    for client in realtime.rooms.members(f"person:{session.get('person')}"):
        with suppress(UnknownClient):  # closed meanwhile
            realtime.disconnect(client, CloseCode.UNAUTHORIZED, reason="logged out")  # all open pages of theirs
    session.clear()
    return redirect(url_for("login"))


@app.get("/room/<name>")
def room(name: str) -> Response | str | tuple[str, int]:
    if "person" not in session:
        return redirect(url_for("login"))
    if len(name) > ROOM_LENGTH:
        return "The name of that room is too long.", 404
    return render_template("flask_chat.html", room=name, rooms=open_rooms(name), entries=list(history[f"chat:{name}"]))


@app.post("/room")
def open_room() -> Response:
    return redirect(url_for("room", name=request.form["name"].strip().replace("/", "-") or "lobby"))


@app.template_filter("hue")
def hue(person: str) -> int:
    """Return the colour of a person, as page.js does."""
    return int(person[:6], 16) % 360


@app.get("/<any('page.css', 'page.js', 'flask_chat.css', 'flask_chat.js'):name>")
def file(name: str) -> Response:
    return send_from_directory(HERE, name)


def open_rooms(current: str) -> list[str]:
    """Return the rooms to show: those that are always there, those with somebody in them, and this one."""
    busy = sorted(name.removeprefix("chat:") for name in realtime.rooms.list() if name.startswith("chat:"))
    return list(dict.fromkeys([*ROOMS, *busy, current]))


# What the page sends ---------------------------------------------------------------------------------------


@realtime.on("client:connected")
def connected(message: Message, context: Context, toolkit: Toolkit) -> None:
    toolkit.presence.update({"person": context.identity, "name": session["name"]})
    toolkit.rooms.join(f"person:{context.identity}")


@realtime.on("room:enter")
def enter(message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
    """Sent at the start and after each reconnect: ``payload`` is the number of the last message the page has."""
    name = message.room or ""
    if not name.startswith("chat:") or len(name) > len("chat:") + ROOM_LENGTH:
        raise Reject(f"name a room: chat: and at most {ROOM_LENGTH} characters", code="bad_room")
    seen = message.payload if isinstance(message.payload, int) else 0
    toolkit.rooms.join(name)
    tell_people(name)
    return {"missed": [entry for entry in history[name] if entry["number"] > seen]}


@realtime.on("chat:message")
def chat(message: Message, context: Context, toolkit: Toolkit) -> None:
    text = message.payload
    if message.room not in context.rooms or not message.room.startswith("chat:"):
        raise Reject("enter the room first", code="forbidden")
    if not isinstance(text, str) or not 0 < len(text.strip()) <= TEXT_LENGTH:
        raise Reject(f"a message has 1 to {TEXT_LENGTH} characters", code="bad_text")
    entry = {
        "number": next(numbers),
        "person": context.identity,
        "name": session["name"],
        "text": text.strip(),
        "time": time.time(),
    }
    history[message.room].append(entry)
    toolkit.rooms.broadcast({"type": "chat:message", "payload": entry})


@realtime.on("client:disconnected")
def disconnected(message: Message, context: Context, toolkit: Toolkit) -> None:
    for name in context.rooms:
        if name.startswith("chat:"):
            tell_people(name)


def tell_people(name: str) -> None:
    """Tell everybody in a room who is there; whoever reads slowly needs only the newest list."""
    shown = [entry["metadata"] for entry in realtime.presence.list(name)]
    people = {entry["person"]: entry["name"] for entry in shown}  # once, however many pages are open
    listed = [{"person": person, "name": people[person]} for person in sorted(people, key=people.__getitem__)]
    realtime.broadcast({"type": "room:people", "payload": listed}, name, conflate=f"people:{name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat in Flask.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args()
    realtime.run(app, options.host, options.port)
