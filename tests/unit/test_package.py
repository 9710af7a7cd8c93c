"""What ``import realtime`` gives: every public name, each loaded when it is first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import realtime


def homes_for_type_checkers() -> dict[str, str]:
    """The names that the package imports for type checkers, each with its module."""
    found = {}
    for node in ast.walk(ast.parse(Path(realtime.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("realtime."):
            found.update({alias.name: node.module for alias in node.names})
    return found


def test_type_checkers_and_programs_find_the_same_names() -> None:
    assert homes_for_type_checkers() == realtime._HOME_OF
    assert sorted(realtime._HOME_OF) == sorted(realtime.__all__)


@pytest.mark.parametrize("name", realtime.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(realtime, name) is getattr(sys.modules[realtime._HOME_OF[name]], name)
    assert name in dir(realtime)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'realtime' has no attribute 'Clinet'"):
        realtime.Clinet  # type: ignore[attr-defined]  # noqa: B018


def test_a_program_that_is_only_a_client_loads_no_gevent() -> None:
    code = "import sys; from realtime import Client; print([name for name in sys.modules if name.startswith('gevent')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
