"""Who may vote: a blueprint with the login, and the users."""

from __future__ import annotations

import hmac
from contextlib import suppress

from flask import Blueprint, redirect, render_template, request, send_from_directory, url_for
from flask_login import UserMixin, current_user, login_user, logout_user
from werkzeug.wrappers import Response

from realtime import CloseCode, UnknownClient

from .extensions import login_manager, realtime

pages = Blueprint("accounts", __name__)
EXAMPLES = __file__.rsplit("/", 2)[0]


class User(UserMixin):
    """Somebody with a password that is no secret."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.name = name.title()


users = {name: User(name) for name in ("ada", "grace", "joan")}


@login_manager.user_loader
def load_user(user_id: str) -> User | None:
    return users.get(user_id)


@pages.route("/login", methods=["GET", "POST"])
def login() -> Response | str | tuple[str, int]:
    if request.method == "GET":
        return render_template("login.html")
    name = request.form.get("name", "").strip().lower()
    if name not in users or not hmac.compare_digest(name.encode(), request.form.get("password", "").encode()):
        return render_template("login.html", alert="There is nobody with this name and password."), 401
    login_user(users[name])
    return redirect(url_for("poll.index"))


@pages.post("/logout")
def logout() -> Response:
    if current_user.is_authenticated:
        for client in realtime.rooms.members(f"user:{current_user.id}"):
            with suppress(UnknownClient):  # closed meanwhile
                realtime.disconnect(client, CloseCode.UNAUTHORIZED, reason="logged out")
    logout_user()
    return redirect(url_for("accounts.login"))


@pages.get("/<any('page.css', 'page.js'):name>")
def shared(name: str) -> Response:
    """Serve what the pages of all examples have in common."""
    return send_from_directory(EXAMPLES, name)
