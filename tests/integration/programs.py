"""Examples as programs of their own: started, watched through what they print, and stopped with a signal."""

from __future__ import annotations

import ast
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["EXAMPLES", "PATIENCE", "ROOT", "Program", "basic_copy", "client_in", "complain_of_faults", "source_copy"]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BUILT_FROM = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "realtime", "examples")
PATIENCE = 60.0  # seconds any wait may take before the test fails
FAULTS = ("Traceback", "ERROR")
_BEFORE = 20  # lines that are shown before the first fault


class Program:
    """A Python program in a process of its own.

    :param script: its file, or ``"-m"`` and then a module; run with the interpreter of the tests.
    :param arguments: of its command line.
    :param cwd: where it is started.
    :param own_session: as from a terminal of its own: see :meth:`interrupt_all`.
    """

    def __init__(self, script: Path | str, *arguments: str, cwd: Path = ROOT, own_session: bool = False) -> None:
        self.output: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        # with PYTHONUNBUFFERED print() writes the end of a line by itself: lines of several processes would mix
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=own_session,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match in the next line of its output that has one."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {self.output}") from None
            if line is None:
                raise AssertionError(f"it ended without {pattern!r}: {''.join(self.output)}")
            found = re.search(pattern, line)
            if found:
                return found

    @property
    def text(self) -> str:
        """Its output so far."""
        return "".join(self.output)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE)

    def interrupt_all(self) -> int:
        """Send SIGINT to it and all its children in one moment, as Ctrl-C in a terminal; return the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(PATIENCE)

    def await_silence(self) -> str:
        """Return all its output, once it and all its children have ended: what they said last may still be read."""
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), self.text
        return self.text

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def complain_of_faults(output: str, *words: str) -> None:
    """Fail, and show what a program said from shortly before the first fault on, if it told of one.

    :param words: what tells of a fault; tracebacks and logged errors, if none are given.
    """
    lines = output.splitlines()
    faulty = [number for number, line in enumerate(lines) if any(word in line for word in words or FAULTS)]
    if faulty:
        shown = "\n".join(lines[max(0, faulty[0] - _BEFORE) :])
        raise AssertionError(f"{len(faulty)} line(s) tell of a fault, the first is {lines[faulty[0]]!r}:\n{shown}")


def basic_copy(folder: Path, port: int = 0) -> Path:
    """Copy the examples, and let ``basic.py`` listen on other ports than its own two; return its path."""
    copies = shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    script = copies / "basic.py"
    text = script.read_text()
    assert "port=8080" in text
    assert "port=9090" in text
    script.write_text(text.replace("port=8080", f"port={port}").replace("port=9090", "port=0"))
    return script


def source_copy(folder: Path) -> Path:
    """Copy what the package is built from, so that building leaves nothing in the source tree; return the folder."""
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "node_modules")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def client_in(script: Path, port: int, default: int) -> str:
    """Return the Python client in the docstring of an example, made to connect to ``port``."""
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert docstring is not None
    found = re.search(r"^    (?:import|from) .*(?:\n(?:    .*)?)*", docstring, re.MULTILINE)
    assert found is not None
    code = textwrap.dedent(found[0])
    assert f":{default}/" in code
    return code.replace(f":{default}/", f":{port}/")
