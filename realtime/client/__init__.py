"""What connects to a kernel from elsewhere: the JavaScript client, in ``javascript/``.

``WebSocketTransport(path="/realtime")`` serves it to browsers at ``/realtime/client.js``.
"""
