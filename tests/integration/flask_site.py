"""A Flask app that test_flask.py serves in every way there is: with a session, Flask-Login, views and handlers.

``python flask_site.py`` serves it by our own server; ``flask --app`` and gunicorn find ``app``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask
import gevent
from flask import Flask, abort, g, request, session
from flask_login import LoginManager, UserMixin, current_user, login_user

from realtime import Context, Message, Toolkit
from realtime.integrations.flask import Realtime, login_required

VERSION = 1

app = Flask(__name__)
app.config["SECRET_KEY"] = "the same in every process"
login_manager = LoginManager(app)
ended: list[str] = []


class User(UserMixin):
    def __init__(self, user_id: str) -> None:
        self.id = user_id


@login_manager.user_loader
def load_user(user_id: str) -> User:
    return User(user_id)


def authenticate(request: flask.Request) -> str:
    if request.args.get("banned"):
        abort(403, "you are banned")
    return login_required(request)


realtime = Realtime(app, authenticate=authenticate)


@app.teardown_request
def teardown(error: BaseException | None) -> None:
    ended.append(request.path)


@app.route("/login/<name>")
def login(name: str) -> dict[str, str]:
    login_user(User(name))
    session["greeting"] = f"hello {name}"
    return {"name": name}


@app.get("/version")
def version() -> dict[str, int]:
    return {"version": VERSION}


@app.post("/tell")
def tell() -> dict[str, Any]:
    return {
        "told": realtime.broadcast({"type": "told", "payload": request.form["text"]}, "told"),
        "clients": [entry["metadata"]["name"] for entry in realtime.presence.list("told")],
        "rooms": list(realtime.rooms.list()),
    }


@app.get("/ended")
def what_ended() -> dict[str, int]:
    return {"handlers": ended.count("/realtime")}


@app.get("/broken")
def broken() -> str:
    raise KeyError("a broken view")


@realtime.on("client:connected")
def connected(message: Message, context: Context, toolkit: Toolkit) -> None:
    toolkit.presence.update({"name": current_user.id})
    toolkit.rooms.join("told")


@realtime.on("who")
def who(message: Message, context: Context, toolkit: Toolkit) -> list[Any]:
    return [context.identity, current_user.id, session["greeting"], request.args.get("page"), request.is_secure]


@realtime.on("count", threadpool=True)
def count(message: Message, context: Context, toolkit: Toolkit) -> Iterator[Any]:
    g.count = 0
    for _ in range(message.payload):
        g.count += 1
        yield [current_user.id, g.count]


@realtime.on("work")
def work(message: Message, context: Context, toolkit: Toolkit) -> None:
    realtime.spawn(report, context.id)


def report(client_id: str) -> None:
    gevent.sleep(0)
    realtime.send(client_id, {"type": "worked", "payload": flask.current_app.name})


@realtime.on("fail")
def fail(message: Message, context: Context, toolkit: Toolkit) -> None:
    raise KeyError("a broken handler")


if __name__ == "__main__":
    realtime.run(app, port=0)
