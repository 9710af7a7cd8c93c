"""Programs the tests need that pip does not install: found, or the test is skipped with the command that helps.

With ``CI=true`` in the environment nothing is skipped: what is missing there is a failure.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

__all__ = ["chromium", "module", "node_with", "turnserver"]

NPM_PACKAGES = {"typescript": "5.9.3", "ws": "8"}  # and their versions
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


def turnserver() -> str:
    """Return the path of coturn's TURN server."""
    path = shutil.which("turnserver")
    if path is None:
        missing("coturn", "apt-get install coturn")
    return path


def node_with(package: str) -> tuple[str, Path]:
    """Return the paths of node and of a ``node_modules`` with one of NPM_PACKAGES, installed once into a cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing("node or npm", "apt-get install nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realtime-tests"
    folder = cache / f"{package}-{NPM_PACKAGES[package]}"
    modules = folder / "node_modules"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes: none finds it half installed
        if not (modules / package / "package.json").exists():
            _install(npm, package, folder)
    return node, modules


def _install(npm: str, package: str, folder: Path) -> None:
    wanted = f"{package}@{NPM_PACKAGES[package]}"
    command = [npm, "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        missing(f"the npm package {package}", f"{' '.join(command)} did not end within {INSTALL_TIMEOUT:g} s")
    if done.returncode:
        missing(f"the npm package {package}", f"{' '.join(command)} said {done.stderr.strip()[-500:]}")
