"""Reaching another node: its address, and the connection to it, over TCP or a Unix socket."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket as stdlib_socket
import struct
from typing import Any, NamedTuple

import gevent
import gevent.socket

from realtime.errors import ConfigurationError
from realtime.transports.mesh_tls import MeshTLS

__all__ = ["MeshAddress", "connect", "is_loopback", "parse_address", "peer_address"]

_SCHEME = "mesh://"
UNIX = "unix:"
_CREDENTIALS = struct.Struct("3i")  # process, user, group (unix(7))


class MeshAddress(NamedTuple):
    """Where a node listens: host and port, or the path of a Unix socket as ``host`` and no port.

    Who connects to a Unix socket has no address: then it is ``"/"`` and the number of its process.
    """

    host: str
    port: int

    @property
    def is_unix(self) -> bool:
        """Whether ``host`` is the path of a Unix socket."""
        return self.host.startswith("/")

    def __str__(self) -> str:
        if self.is_unix:
            return f"process {self.port}" if self.port else f"{UNIX}{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object, option: str = "peers") -> MeshAddress:
    """Read ``"host:port"``, ``"[::1]:port"``, ``"mesh://host:port"``, ``("host", port)`` or ``"unix:/path"``.

    :raises ConfigurationError: it is none of these.
    """
    if isinstance(value, str) and value.startswith(UNIX + "/"):
        return MeshAddress(value.removeprefix(UNIX), 0)
    if isinstance(value, str):
        host, _, digits = value.removeprefix(_SCHEME).rstrip("/").rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""  # IPv6 without brackets: which colon begins the port?
        port: Any = int(digits) if digits.isascii() and digits.isdigit() else None
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        host, port = value
    else:
        host, port = "", None
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port <= 65535:
        port = None
    if not isinstance(host, str) or not host or any(mark in host for mark in "/[] ") or port is None:
        raise ConfigurationError(
            f"{option}: {value!r} is no address; write 'host:9090', '[::1]:9090', 'mesh://host:9090', ('host', 9090) "
            "or 'unix:/path'"
        )
    return MeshAddress(host, port)


def peer_address(sock: Any, address: tuple[Any, ...]) -> MeshAddress:
    """Return who is at the other end of a connection that was accepted.

    :param address: what ``accept`` told.
    """
    if sock.family != stdlib_socket.AF_UNIX:
        return MeshAddress(str(address[0]), int(address[1]))
    if not hasattr(stdlib_socket, "SO_PEERCRED"):
        return MeshAddress("/", 0)
    credentials = sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_PEERCRED, _CREDENTIALS.size)
    return MeshAddress("/", _CREDENTIALS.unpack(credentials)[0])


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` can only be reached from this machine. A name may switch greenlets.

    A name that cannot be resolved is none; listening on it will tell what is wrong.
    """
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        found = gevent.socket.getaddrinfo(host, None, type=stdlib_socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def connect(address: MeshAddress, timeout: float, tls: MeshTLS | None = None) -> gevent.socket.socket:
    """Connect, with TLS if given; switches greenlets, at most for ``timeout`` seconds.

    :raises OSError: nobody listens there, nothing answered in time, or the node's certificate is not trusted.
    """
    timer = gevent.Timeout.start_new(timeout)
    try:
        sock = _connect_unencrypted(address)
        return sock if tls is None or address.is_unix else tls.wrap(sock, server_side=False)
    except gevent.Timeout as expired:
        if expired is not timer:
            raise  # the caller's own
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout:g} s") from None
    finally:
        timer.close()


def _connect_unencrypted(address: MeshAddress) -> gevent.socket.socket:
    failure = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    for family, target in _targets(address):
        try:
            return _connect_to(family, target)
        except OSError as error:
            failure = error
    raise failure


def _targets(address: MeshAddress) -> list[tuple[int, Any]]:
    """Return families and socket addresses; only names go to the resolver."""
    if address.is_unix:
        return [(stdlib_socket.AF_UNIX, address.host)]
    try:
        version = ipaddress.ip_address(address.host).version
    except ValueError:
        pass
    else:
        return [(stdlib_socket.AF_INET6 if version == 6 else stdlib_socket.AF_INET, tuple(address))]
    try:
        found = gevent.socket.getaddrinfo(address.host, address.port, type=stdlib_socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"not a host name: {error}") from None
    return [(entry[0], entry[4]) for entry in found]


def _connect_to(family: int, target: Any) -> gevent.socket.socket:
    sock = gevent.socket.socket(family, stdlib_socket.SOCK_STREAM)
    try:
        sock.settimeout(None)  # whatever socket.setdefaulttimeout() says
        sock.connect(target)
        if family == stdlib_socket.AF_UNIX:
            return sock
        if sock.getsockname() == sock.getpeername():
            # Linux connects a socket to itself where nobody listens on the port it picked for the near end
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock
