"""``--reload``: runs the server in a process of its own, and again when a file changes that it has imported."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from realtime.cli.common import OK, complain
from realtime.cli.watching import VARIABLE

__all__ = ["Files", "Reloader", "module_files", "server_command"]

LOOK = 0.25  # seconds between two looks at the files; a change counts when the next look finds no other
GRACE = 15.0  # seconds until a server that was told to stop is killed: its drain takes up to 10

_STOPPING = (signal.SIGINT, signal.SIGTERM)

Signature = tuple[int, int]
"""When a file was changed last, in nanoseconds, and its size."""


def module_files(name: str) -> list[str]:
    """Return the files that ``import name`` reads first in the current directory, without importing.

    Also those of them that are missing, unless all are: then it is elsewhere, or the name is wrong.
    """
    parts = name.split(".")
    candidates = [Path(*parts).with_suffix(".py")]
    candidates += [Path(*parts[: count + 1], "__init__.py") for count in range(len(parts))]
    return [str(path.absolute()) for path in candidates] if any(path.is_file() for path in candidates) else []


class Files:
    """The files that are watched. One that is missing for a moment, while an editor saves it, has not changed yet."""

    def __init__(self) -> None:
        self._signatures: dict[str, Signature | None] = {}
        self._since = 0
        self._changed: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._signatures)

    def begin(self) -> None:
        """A server starts now. What was changed before is not news to it; what is changed from now on may be."""
        self.changed()
        self._changed.clear()
        self._since = time.time_ns()

    def add(self, path: str) -> None:
        """Watch a file that the server has read since ``begin``: which it may have done just before a change."""
        if path in self._signatures:
            return
        found = _signature(path)
        self._signatures[path] = found
        if found is not None and self._since <= found[0] <= time.time_ns():
            self._changed.add(path)

    def changed(self) -> list[str]:
        """Return the files that have changed since the last call."""
        for path, known in self._signatures.items():
            found = _signature(path)
            if found is not None and found != known:
                self._signatures[path] = found
                self._changed.add(path)
        changed, self._changed = sorted(self._changed), set()
        return changed


def _signature(path: str) -> Signature | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class Reloader:
    """Keeps a server running. This process imports nothing of the application, and needs no event loop.

    :param command: starts the server.
    :param files: what is watched from the start, also if the server never gets as far as telling what it imports.
    """

    def __init__(self, command: Sequence[str], files: Iterable[str]) -> None:
        self._command = list(command)
        self._files = Files()
        for path in files:
            self._files.add(path)
        self._stops = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._stream: socket.socket | None = None
        self._unfinished = b""

    def run(self) -> int:
        """Serve until SIGINT, SIGTERM or the server's own end; return the exit code. Blocks.

        A server that fails, as it does while the code has a syntax error, is started again at the next change.
        """
        with self._signals():
            while not self._stops:
                self._start()
                code = self._serve()
                if code is None:
                    continue
                if self._stops or code == OK or not self._files:
                    return code
                complain("it starts again when a file changes")
                self._await_change()
        return OK

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._told_to_stop) for number in _STOPPING}
        try:
            yield
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stops += 1

    def _start(self) -> None:
        """Start the server. Ctrl-C in a terminal goes to both; here it is decided what that means."""
        self._files.begin()
        self._stream, theirs = socket.socketpair()
        self._stream.setblocking(False)
        self._unfinished = b""
        environment = {**os.environ, VARIABLE: str(theirs.fileno())}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._server = subprocess.Popen(self._command, env=environment, pass_fds=[theirs.fileno()])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()

    def _serve(self) -> int | None:
        """Watch; return the exit code of a server that has ended by itself or was told to, None after a change."""
        assert self._server is not None
        while not self._stops:
            self._listen()
            code = self._server.poll()
            if code is not None:
                return self._end()
            changed = self._files.changed()
            if changed:
                self._settle(changed)
                complain(f"{', '.join(map(_short, changed))} changed: starting again")
                self._end()
                return None
        return self._end()

    def _settle(self, changed: list[str]) -> None:
        """Wait until nothing has changed for one look: many files are saved at once."""
        while not self._stops:
            self._listen()
            more = self._files.changed()
            if not more:
                return
            changed += [path for path in more if path not in changed]

    def _await_change(self) -> None:
        """Wait for a change while nothing runs."""
        while not self._stops:
            time.sleep(LOOK)
            changed = self._files.changed()
            if changed:
                self._settle(changed)
                return

    def _listen(self) -> None:
        """Take in what the server tells, for as long as one look."""
        deadline = time.monotonic() + LOOK
        poller = select.poll()
        if self._stream is not None:
            poller.register(self._stream, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poller.poll(left * 1000):
            if not self._take_in():  # it has ended, or will in a moment
                time.sleep(left)
                return

    def _take_in(self) -> bool:
        """Read what is there; return whether there was anything."""
        assert self._stream is not None
        try:
            data = self._stream.recv(65536)
        except (BlockingIOError, ConnectionResetError):
            return False
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            self._files.add(json.loads(line))
        return bool(data)

    def _end(self) -> int:
        """Have the server end, and return its exit code. One signal more kills it."""
        server, self._server = self._server, None
        if server is None:
            return OK
        deadline = time.monotonic() + GRACE
        patience = max(1, self._stops)
        if server.poll() is None:
            server.terminate()
        while server.poll() is None:
            if time.monotonic() > deadline or self._stops > patience:
                server.kill()
                server.wait()
            self._listen()
        assert self._stream is not None
        while self._take_in():
            pass
        self._stream.close()
        self._stream = None
        return server.returncode if server.returncode >= 0 else 128 - server.returncode  # as a shell tells a signal


def _short(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def server_command(arguments: Sequence[str]) -> list[str]:
    """Return what runs ``realtime`` with these arguments in a new process."""
    return [sys.executable, *subprocess._args_from_interpreter_flags(), "-m", "realtime", *arguments]  # type: ignore[attr-defined]
