"""Programs the tests need that pip does not install: found, or the test is skipped with the command that helps.

With ``CI=true`` in the environment nothing is skipped: what is missing there is a failure.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

__all__ = ["chromium", "module", "node_with_ws"]

WS_VERSION = "8"
INSTALL_TIMEOUT = 120.0  # seconds for npm to fetch one small package


def missing(what: str, remedy: str) -> NoReturn:
    """Skip the test, or fail it where everything must be there."""
    text = f"{what} is missing: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def module(name: str) -> ModuleType:
    """Import a library that only tests use."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the Python package {name.partition('.')[0]}", "pip install 'realtime-toolkit[test]'")


def chromium() -> str:
    """Return the path of a Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            return path
    missing("Chromium", "apt-get install chromium")


def node_with_ws() -> tuple[str, Path]:
    """Return the paths of node and of a ``node_modules`` with npm's ``ws``, which is installed once into a cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing("node or npm", "apt-get install nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realtime-tests" / f"ws-{WS_VERSION}"
    modules = cache / "node_modules"
    if not (modules / "ws" / "package.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(cache), f"ws@{WS_VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            missing("the npm package ws", f"{' '.join(command)} did not end within {INSTALL_TIMEOUT:g} s")
        if done.returncode:
            missing("the npm package ws", f"{' '.join(command)} said {done.stderr.strip()[-500:]}")
    return node, modules
