"""A Flask app in the usual parts: a factory, extensions in a module of their own, a blueprint, Flask-Login.

    pip install flask-login
    flask --app examples/flask_factory run --debug

Then open http://127.0.0.1:5000/ in two browsers, log in as ``ada``, ``grace`` or ``joan``, and vote; the password is
the name. In production, with one process or more (votes are kept in the memory of each, so here one)::

    SECRET_KEY=... gunicorn -k gevent --chdir examples "flask_factory:create_app()"
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

from flask import Flask

from . import accounts, poll
from .extensions import login_manager, realtime


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make an app. ``flask run`` and gunicorn call this, and so does each test."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_hex(), SESSION_COOKIE_SAMESITE="Lax")
    app.config.update(config or {})
    login_manager.init_app(app)
    realtime.init_app(app)
    app.register_blueprint(accounts.pages)
    app.register_blueprint(poll.pages)
    return app
