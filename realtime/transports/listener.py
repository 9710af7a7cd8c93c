"""A TCP port that accepts in bulk and outlives whatever goes wrong while accepting."""

from __future__ import annotations

import errno
import logging
import os
import socket as stdlib_socket
import time
from collections.abc import Callable

import gevent
import gevent.event
import gevent.socket

from realtime.errors import ConfigurationError
from realtime.transports.ports import Address, check_listening, join_address, open_port
from realtime.transports.sockets import take_over

__all__ = ["Address", "Listener"]

_ACCEPT_AT_ONCE = 64
"""Connections taken per wake-up before other greenlets get a turn: enough that a burst costs one loop turn
per 64 and not per connection, few enough (about a millisecond of work) that clients already served do not
notice."""

_BACK_OFF = 0.25
"""Seconds without accepting after the process ran out of descriptors or memory. Four attempts a second cost
nothing, and serving resumes at most this long after a descriptor is free."""

_LOG_INTERVAL = 1.0
"""Seconds between two log lines about the same trouble."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PEER_FAULTS = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "EPROTO", "EINTR", "EPERM", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH",
        "ENONET", "ENOPROTOOPT", "EOPNOTSUPP", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""What accept(2) says under "Error handling" concerns the one connection only: the next may be fine."""

_NOTHING_WAITS = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})


class Listener:
    """Listens on one port and hands each connection over.

    One greenlet, owned by the listener, waits on a single watcher for the listening descriptor and then
    accepts until nothing waits or ``64`` are taken. A greenlet rather than a bare watcher callback, which
    would run in the hub: there a log handler that needs a lock held by another greenlet could not wait for
    it. The price is one greenlet switch per wake-up, not per connection.

    :param host: an IPv4 or IPv6 address of this machine, or a name for one (IPv4 is preferred); ``"0.0.0.0"``
        or ``"::"`` for all.
    :param port: 0 to 65535; 0 lets the system pick, :attr:`port` tells.
    :param on_accept: called in the listener's greenlet as ``on_accept(socket, address)`` with a gevent socket
        that is non-blocking, not inherited by child processes, and has ``TCP_NODELAY``; it owns the socket
        from then on. It should not wait: nothing is accepted meanwhile. If it raises, the error is logged,
        the socket closed, and accepting goes on.
    :param backlog: connections the system may keep waiting (it applies its own upper bound, ``somaxconn``).
    :param reuse_port: let several processes listen on the port and share its connections (``SO_REUSEPORT``).
    :param listening: a socket that listens already, for the first start: ``host`` and ``port`` say only what it is
        called. The listener owns it from then on.
    :param name: what the listener is called in the log.
    """

    def __init__(
        self,
        host: str,
        port: int,
        on_accept: Callable[[gevent.socket.socket, Address], None],
        *,
        backlog: int = 1024,
        reuse_port: bool = False,
        listening: stdlib_socket.socket | None = None,
        name: str = "listener",
        logger: logging.Logger | None = None,
    ) -> None:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ConfigurationError(f"port={port!r}: must be a whole number from 0 to 65535")
        if not isinstance(host, str) or not host:
            raise ConfigurationError(f"host={host!r}: must be an address or a name; '0.0.0.0' or '::' means all")
        if listening is not None:
            check_listening(listening)
        self.host = host
        self.port = port
        self.counters = {"accepted": 0, "accept_errors": 0, "accept_exhausted": 0}
        self._on_accept = on_accept
        self._backlog = backlog
        self._reuse_port = reuse_port
        self._given = listening
        self._name = name
        self._logger = logger or logging.getLogger("realtime.transports")
        self._socket: stdlib_socket.socket | None = None
        self._greenlet: gevent.Greenlet[..., None] | None = None
        self._wanted = gevent.event.Event()
        self._quiet_until = 0.0
        self._unlogged = 0

    def start(self) -> None:
        """Bind, listen and begin to accept. A host name is resolved first, which may switch greenlets.

        :raises PortInUse: something else listens on the port.
        :raises ConfigurationError: the host is not of this machine, or the port is not allowed to this
        process.
        """
        if self._socket is not None:
            return
        self._socket = self._given_socket() or open_port(
            self.host,
            self.port,
            backlog=self._backlog,
            reuse_port=self._reuse_port,
            resolve=gevent.socket.getaddrinfo,
        )
        if self._socket.family != stdlib_socket.AF_UNIX:
            self.port = self._socket.getsockname()[1]
        self._wanted.set()
        self._greenlet = gevent.spawn(self._accept_forever, self._socket)

    def _given_socket(self) -> stdlib_socket.socket | None:
        given, self._given = self._given, None
        if given is None:
            return None
        sock = take_over(given)  # plain and non-blocking, whatever kind it is
        sock.setblocking(False)
        return sock

    def pause(self) -> None:
        """Leave further connections waiting in the system's backlog until :meth:`resume`."""
        self._wanted.clear()

    def resume(self) -> None:
        """Accept again after :meth:`pause`."""
        self._wanted.set()

    def stop_accepting(self) -> None:
        """Take no further connection. Switches greenlets until the accept loop has ended.

        The port is closed at once: connections that could never be served must be refused, not left hanging
        in the backlog, and beside it another process sharing the port gets them. Calling it again does
        nothing.
        """
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill()
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def close(self) -> None:
        """Give everything back: the same as :meth:`stop_accepting`, which leaves nothing else to release."""
        self.stop_accepting()

    def __repr__(self) -> str:
        return f"<Listener {self._name} on {join_address(self.host, self.port)}>"

    def _accept_forever(self, sock: stdlib_socket.socket) -> None:
        """The accept loop; ends only when it is killed or the socket is closed under it."""
        hub = gevent.get_hub()
        watcher = hub.loop.io(sock.fileno(), 1)
        try:
            while self._socket is sock:
                self._wanted.wait()
                hub.wait(watcher)
                if not self._accept_some(sock):
                    gevent.sleep(_BACK_OFF)
        finally:
            watcher.stop()
            watcher.close()

    def _accept_some(self, sock: stdlib_socket.socket) -> bool:
        """Accept what waits, up to the bound; False if trying again at once would only fail again."""
        for _ in range(_ACCEPT_AT_ONCE):
            if not self._wanted.is_set() or self._socket is not sock:
                return True
            try:
                fd, address = sock._accept()  # type: ignore[attr-defined]
            except OSError as error:
                if error.errno in _NOTHING_WAITS:
                    return True
                if error.errno in _EXHAUSTED:
                    self.counters["accept_exhausted"] += 1
                    self._log_seldom("cannot accept: %s; clients wait until some are free", error.strerror)
                    return False
                self.counters["accept_errors"] += 1
                if error.errno in _PEER_FAULTS:
                    continue
                self._log_seldom("cannot accept: %s", error)
                return False
            self.counters["accepted"] += 1
            self._hand_over(sock, fd, address)
        return True

    def _hand_over(self, listening: stdlib_socket.socket, fd: int, address: Address) -> None:
        try:
            sock = gevent.socket.socket(listening.family, listening.type, listening.proto, fileno=fd)
        except OSError:
            os.close(fd)
            self.counters["accept_errors"] += 1
            return
        try:
            sock.settimeout(None)  # whatever socket.setdefaulttimeout() says
            if listening.family != stdlib_socket.AF_UNIX:
                sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
            self._on_accept(sock, address)
        except Exception:
            self.counters["accept_errors"] += 1
            sock.close()
            self._log_seldom("could not take a connection over", exc_info=True)

    def _log_seldom(self, text: str, *args: object, exc_info: bool = False) -> None:
        """Log at most one line a second; the next one says how many were left out."""
        now = time.monotonic()
        if now < self._quiet_until:
            self._unlogged += 1
            return
        if self._unlogged:
            text += f" ({self._unlogged} more since the last line)"
        self._quiet_until, self._unlogged = now + _LOG_INTERVAL, 0
        self._logger.warning(f"%s: {text}", self, *args, exc_info=exc_info)
