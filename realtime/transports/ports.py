"""Opens a listening port, or says in plain words why that cannot be."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket as stdlib_socket
from collections.abc import Callable
from typing import Any

from realtime.errors import ConfigurationError, PortInUse
from realtime.transports.sockets import PlainSocket

__all__ = ["Address", "Resolve", "check_listening", "join_address", "open_port", "require_free"]

Address = tuple[Any, ...]
"""What ``accept`` tells of the peer: ``(host, port)``, for IPv6 ``(host, port, flow, scope)``."""

Resolve = Callable[..., list[tuple[Any, ...]]]
"""``getaddrinfo``: gevent's, or the one of the ``socket`` module in a process without an event loop."""

_NO_SUCH_HOST = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL})


def open_port(host: str, port: int, *, backlog: int, reuse_port: bool, resolve: Resolve) -> stdlib_socket.socket:
    """Return a non-blocking socket that listens. Resolves a host name first, which may switch greenlets.

    :raises PortInUse: something else listens on the port.
    :raises ConfigurationError: the host is not of this machine, or the port is not allowed to this process.
    """
    sock = _bind(host, port, reuse_port=reuse_port, resolve=resolve)
    try:
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _explain(error, host, port) from error
    return sock


def require_free(host: str, port: int, *, resolve: Resolve) -> None:
    """Raise PortInUse if something listens on the port, even something that would share it."""
    _bind(host, port, reuse_port=False, resolve=resolve).close()


def check_listening(sock: stdlib_socket.socket) -> None:
    """Raise ConfigurationError unless ``sock`` is a TCP or Unix socket that listens."""
    try:
        is_known = sock.family in (stdlib_socket.AF_INET, stdlib_socket.AF_INET6, stdlib_socket.AF_UNIX)
        listens = sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN)
    except (AttributeError, OSError) as error:
        raise ConfigurationError(f"{sock!r}: must be a listening socket ({error})") from None
    if not (is_known and listens):
        raise ConfigurationError(f"{sock!r}: must be a TCP or Unix socket that listens")


def join_address(host: str, port: int) -> str:
    """Write an address as people do."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _resolve(host: str, port: int, resolve: Resolve) -> tuple[int, Address]:
    """Find the address family and the socket address of ``host``; only names go to the resolver."""
    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
    except ValueError:
        pass
    else:
        if "%" not in host:
            return (stdlib_socket.AF_INET6 if version == 6 else stdlib_socket.AF_INET), (host, port)
    try:
        found = resolve(host, port, type=stdlib_socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"host={host!r}: no such address on this machine ({error})") from error
    # Where a name has both, as localhost has, clients that know IPv4 only must get in.
    found.sort(key=lambda entry: entry[0] != stdlib_socket.AF_INET)
    return found[0][0], found[0][4]


def _bind(host: str, port: int, *, reuse_port: bool, resolve: Resolve) -> stdlib_socket.socket:
    """Open the socket, or explain why that cannot be."""
    family, address = _resolve(host, port, resolve)
    try:
        sock = PlainSocket(family, stdlib_socket.SOCK_STREAM)
    except OSError as error:
        raise _explain(error, host, port) from error
    try:
        sock.setblocking(False)
        if os.name == "posix":  # on Windows the option means something else: stealing the port
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if reuse_port:
            if not hasattr(stdlib_socket, "SO_REUSEPORT"):
                raise ConfigurationError("reuse_port=True: this system has no SO_REUSEPORT")
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _explain(error, host, port) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(error: OSError, host: str, port: int) -> Exception:
    place = join_address(host, port)
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"{place} is in use: stop what listens there, or choose another port (0 picks one)")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigurationError(
            f"{place}: this process may not listen there; ports below 1024 mostly need a privilege"
        )
    if error.errno in _NO_SUCH_HOST:
        return ConfigurationError(f"host={host!r}: not an address of this machine ({error.strerror})")
    return ConfigurationError(f"cannot listen on {place}: {error}")
