"""A chat served by gunicorn, by several processes that find each other by themselves.

    gunicorn -k gevent -w 4 --chdir examples gunicorn_app:app

Then open http://127.0.0.1:8000/ in two windows: whichever process each of them reaches, they are in the same rooms.
gunicorn's other workers for WebSockets serve it just as well::

    gunicorn -k geventwebsocket.gunicorn.workers.GeventWebSocketWorker -w 4 --chdir examples gunicorn_app:app

``kill -HUP`` the master to reload: clients are told to come back, and nobody is refused meanwhile. Ctrl-C stops it.
"""

from __future__ import annotations

import os

from console import FILES, handle_rooms
from page import Page

from realtime import Context, Message, RealtimeKernel, Toolkit
from realtime.integrations.wsgi import RealtimeMiddleware

kernel = RealtimeKernel()
handle_rooms(kernel)


@kernel.on("chat:message")
def chat(message: Message, context: Context, toolkit: Toolkit) -> dict[str, int]:
    room = message.room or "lobby"
    toolkit.rooms.join(room)
    body = {"from": context.id, "body": message.payload, "room": room}
    toolkit.rooms.broadcast({"type": "chat:message", "payload": body}, room, except_self=True)
    return {"process": os.getpid()}


app = RealtimeMiddleware(Page("/realtime", *FILES), kernel)
