"""What is for lunch? A blueprint whose page is told of every vote; the handlers stand beside the views."""

from __future__ import annotations

from flask import Blueprint, current_app, render_template, request
from flask_login import current_user, login_required

from realtime import Context, Message, Reject, Toolkit

from .extensions import realtime

pages = Blueprint("poll", __name__)
DISHES = ("Soup", "Dumplings", "Curry")
MOST_DISHES, NAME_LENGTH = 12, 40


class Poll:
    """The dishes, and who wants which. Each app has its own, so that tests do not meet."""

    def __init__(self) -> None:
        self.dishes = list(DISHES)
        self.votes: dict[str, str] = {}

    def shown(self) -> list[dict[str, object]]:
        wanted = list(self.votes.values())
        return [{"name": dish, "votes": wanted.count(dish)} for dish in self.dishes]


@pages.record
def make_poll(state: object) -> None:
    state.app.extensions["poll"] = Poll()  # type: ignore[attr-defined]


def poll() -> Poll:
    """Return the poll of the app whose context this is: in views and in handlers alike."""
    found: Poll = current_app.extensions["poll"]
    return found


@pages.get("/")
@login_required
def index() -> str:
    mine = poll().votes.get(current_user.id)
    return render_template("poll.html", dishes=poll().shown(), mine=mine, length=NAME_LENGTH)


@pages.post("/dishes")
@login_required
def add_dish() -> tuple[str, int]:
    """A view that tells everybody."""
    name = request.form.get("name", "").strip()
    dishes = poll().dishes
    if not 0 < len(name) <= NAME_LENGTH or name in dishes or len(dishes) >= MOST_DISHES:
        return "That cannot be added.", 400
    dishes.append(name)
    realtime.broadcast({"type": "poll:changed", "payload": {"dishes": poll().shown(), "by": current_user.name}})
    return "", 201


@realtime.on("client:connected")
def connected(message: Message, context: Context, toolkit: Toolkit) -> None:
    toolkit.rooms.join(f"user:{context.identity}")  # all pages of one user


@realtime.on("poll:now")
def now(message: Message, context: Context, toolkit: Toolkit) -> dict[str, object]:
    """What a page may have missed before it connected, or while it could not."""
    return {"dishes": poll().shown(), "mine": poll().votes.get(current_user.id)}


@realtime.on("poll:vote")
def vote(message: Message, context: Context, toolkit: Toolkit) -> dict[str, str]:
    """A handler: ``current_user`` is who was logged in when the page connected."""
    if message.payload not in poll().dishes:
        raise Reject("that is not on the list", code="unknown_dish")
    poll().votes[current_user.id] = message.payload
    toolkit.broadcast({"type": "poll:changed", "payload": {"dishes": poll().shown(), "by": current_user.name}})
    toolkit.rooms.broadcast({"type": "poll:mine", "payload": message.payload}, f"user:{current_user.id}")
    return {"thanks": current_user.name}
