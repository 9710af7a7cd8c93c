"""What connects to a kernel from elsewhere: the Python client, and the JavaScript client in ``javascript/``.

``WebSocketTransport(path="/realtime")`` serves the latter to browsers at ``/realtime/client.js``. The former is
``realtime.Client``.
"""

from realtime.client.client import Client
from realtime.client.options import Backoff, ClientLimits
from realtime.client.states import ClientState
from realtime.client.wire import ClientMessage

__all__ = ["Backoff", "Client", "ClientLimits", "ClientMessage", "ClientState"]
