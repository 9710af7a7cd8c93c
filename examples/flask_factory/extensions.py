"""The extensions, made before there is an app, so that every module can import them."""

from __future__ import annotations

from flask_login import LoginManager

from realtime.integrations.flask import Realtime, login_required

login_manager = LoginManager()
login_manager.login_view = "accounts.login"

# who is not logged in is refused before the upgrade; of others context.identity is the user's id
realtime = Realtime(authenticate=login_required)
