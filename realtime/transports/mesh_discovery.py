"""Nodes of one machine find each other through a directory of Unix sockets: ``discover="unix:/run/my-cluster"``."""

from __future__ import annotations

import logging
import os
import secrets
import socket as stdlib_socket
import stat
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import gevent

from realtime.errors import ConfigurationError
from realtime.transports.mesh_dial import UNIX
from realtime.transports.sockets import PlainSocket

__all__ = ["UnixDirectory", "parent_for", "parse_discover"]

log = logging.getLogger("realtime.mesh")

SUFFIX = ".node"
LOOK_EVERY = 1.0  # seconds between two looks into the directory
LONGEST_PATH = 107  # bytes of a Unix socket's path (unix(7))
BACKLOG = 128
SHORT = "/tmp"  # where TMPDIR is a long path, as those of build systems are


def parse_discover(value: object) -> Path | None:
    """Return the directory of ``"unix:/directory"``; None for None.

    :raises ConfigurationError: it is something else, or too long for the paths of sockets in it.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith(UNIX) or not value.removeprefix(UNIX):
        raise ConfigurationError(f"discover={value!r}: must be 'unix:' and a directory, such as 'unix:/run/shop'")
    directory = Path(value.removeprefix(UNIX)).absolute()
    if not _fits(directory):
        raise ConfigurationError(f"discover={value!r}: too long, a socket's path has {LONGEST_PATH} bytes at most")
    return directory


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory / ("0" * 32 + SUFFIX))) <= LONGEST_PATH


def parent_for(name: str) -> Path:
    """Return where a directory of this name goes whose sockets are to be found by processes of this user.

    ``XDG_RUNTIME_DIR``, the directory for temporary files, or ``/tmp``: the first that there is, where sockets' paths
    fit. It is nobody else's, or such that nobody else can put another directory in the place of one of ours.
    """
    temporary = tempfile.gettempdir()
    places = [place for place in (os.environ.get("XDG_RUNTIME_DIR", ""), temporary, SHORT) if _is_usable(place)]
    return Path(next((place for place in places if _fits(Path(place, name))), temporary))


def _is_usable(place: str) -> bool:
    return Path(place).is_absolute() and os.access(place, os.W_OK | os.X_OK)


class UnixDirectory:
    """One node's socket in the directory, and a look at those of the others.

    :param found: told the address of another node's socket, once.
    :param gone: told that it is no longer there.
    :raises ConfigurationError: the directory cannot be used.
    """

    def __init__(self, directory: Path, found: Callable[[str], None], gone: Callable[[str], None]) -> None:
        self._found = found
        self._gone = gone
        self._directory = directory
        self._check()
        self.path = directory / f"{secrets.token_hex(16)}{SUFFIX}"
        self._known: set[str] = set()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def _check(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._directory.stat()
        except OSError as error:
            raise ConfigurationError(f"discover='unix:{self._directory}': {error.strerror}") from error
        if found.st_mode & (stat.S_IWOTH | stat.S_IWGRP) or found.st_uid not in (os.geteuid(), 0):
            raise ConfigurationError(
                f"discover='unix:{self._directory}': others may write there, and whoever may is a node; use a "
                "directory of your own with mode 0700"
            )

    @property
    def address(self) -> str:
        """Where other nodes of this machine reach this one."""
        return f"{UNIX}{self.path}"

    @property
    def others(self) -> Collection[str]:
        """The addresses of the other nodes' sockets that are there."""
        return self._known

    def listen(self) -> stdlib_socket.socket:
        """Return the listening socket. Raises ConfigurationError."""
        sock = PlainSocket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM)
        unready = self.path.with_suffix(".new")  # nobody finds it before it listens: a refusal means a dead node
        try:
            sock.setblocking(False)
            sock.bind(str(unready))
            unready.chmod(0o600)  # whoever may write to it is a node: nobody else, whatever the umask is
            sock.listen(BACKLOG)
            unready.rename(self.path)
        except OSError as error:
            sock.close()
            unready.unlink(missing_ok=True)
            raise ConfigurationError(f"discover='unix:{self._directory}': {error.strerror}") from error
        return sock

    def start(self) -> None:
        """Look for others, now and again and again."""
        self._look()
        self._greenlet = gevent.spawn(self._look_again)

    def stop(self) -> None:
        """Take the socket out of the directory. Switches greenlets."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill()
        self.path.unlink(missing_ok=True)

    def refused(self, address: str) -> None:
        """Nobody listens on a socket: its node died without taking it away, so that is done for it."""
        if address not in self._known:
            return
        try:
            Path(address.removeprefix(UNIX)).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot clear away %s: %s", address, error)

    def _look_again(self) -> None:
        while True:
            gevent.sleep(LOOK_EVERY)
            try:
                self._look()
            except OSError as error:
                log.warning("cannot look into %s: %s", self._directory, error)

    def _look(self) -> None:
        with os.scandir(self._directory) as entries:
            there = {
                f"{UNIX}{self._directory / entry.name}"
                for entry in entries
                if entry.name.endswith(SUFFIX) and entry.name != self.path.name and _is_socket(entry)
            }
        for address in sorted(there - self._known):
            self._found(address)
        for address in self._known - there:
            self._gone(address)
        self._known = there


def _is_socket(entry: os.DirEntry[str]) -> bool:
    """Tell whether this is a socket: Node's compiled modules are named so as well, and are not to be cleared away."""
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False  # gone since
