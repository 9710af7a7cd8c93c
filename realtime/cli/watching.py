"""The served side of ``--reload``: tells the process that waits for changes which files this one has imported."""

from __future__ import annotations

import json
import os
import re
import signal
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator

__all__ = ["ImportReporter"]

LOOK = 1.0  # seconds until what a handler has imported meanwhile is told
VARIABLE = "REALTIME_RELOAD_FD"
_NOT_IN = re.compile(r"cannot import name '(\w+)' from ")  # ImportError.name_from, which is there from Python 3.12 on


class ImportReporter:
    """One end of a stream, a line of JSON for each file. When the stream ends, so does this process.

    :param descriptor: of the stream; it blocks, and the other end reads always.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._served_by = os.getpid()  # with workers that is the pool, not the worker that it was forked to
        self._told: set[str] = set()
        self._not_ours = tuple(_installed_elsewhere())

    @classmethod
    def from_environment(cls) -> ImportReporter | None:
        """Return the reporter if a reloader started this process. Programs it starts are not told."""
        value = os.environ.pop(VARIABLE, None)
        return cls(int(value)) if value is not None else None

    def report(self) -> None:
        """Tell of the files that were imported since the last time. If an exception is handled, also of those in its
        traceback, and of where a module may appear that they did not find."""
        for path in self._files():
            if path in self._told:
                continue
            self._told.add(path)
            try:
                os.write(self._descriptor, json.dumps(path).encode() + b"\n")  # short: no other's line gets in between
            except OSError:
                return  # the end of the stream is noticed by ``keep_reporting``

    def keep_reporting(self) -> None:
        """Report from time to time, until the reloader is gone: then tell this process to stop. For a greenlet."""
        from gevent import socket

        while True:
            try:
                socket.wait_read(self._descriptor, timeout=LOOK)
            except TimeoutError:
                self.report()
            else:
                os.kill(self._served_by, signal.SIGTERM)
                return

    def _files(self) -> Iterator[str]:
        """Every file of the application that can be seen now."""
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and self._is_ours(path):
                yield os.path.abspath(path)
        error = sys.exc_info()[1]
        while error is not None:
            files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
            importing = [os.path.abspath(path) for path in files if self._is_ours(path)]
            yield from importing
            missing = _missing_module(error)
            if missing and importing:
                yield from self._places(missing)
            if isinstance(error, SyntaxError) and error.filename and self._is_ours(error.filename):
                yield os.path.abspath(error.filename)
            error = error.__cause__ or error.__context__

    def _places(self, name: str) -> Iterator[str]:
        """Where a module that was not found may appear: below the folders of the Python path that are not installed."""
        for folder in dict.fromkeys(map(os.path.abspath, sys.path)):
            missing = os.path.join(folder, *name.split("."))
            for path in (f"{missing}.py", os.path.join(missing, "__init__.py")):
                if os.path.isdir(folder) and self._is_ours(path):
                    yield path

    def _is_ours(self, path: str) -> bool:
        return path.endswith(".py") and not os.path.abspath(path).startswith(self._not_ours)


def _missing_module(error: BaseException) -> str | None:
    """Return the name of the module that an import has not found, if that is what the error says."""
    if isinstance(error, ModuleNotFoundError):
        return error.name
    if isinstance(error, ImportError) and (found := _NOT_IN.match(error.msg)):
        return f"{error.name}.{found[1]}"  # from package import module
    return None


def _installed_elsewhere() -> Iterator[str]:
    """The folders of the standard library, of what pip installs, and of this package."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    folders.append(os.path.dirname(os.path.dirname(__file__)))
    for folder in folders:
        yield os.path.join(os.path.abspath(folder), "")
