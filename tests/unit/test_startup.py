"""What a kernel does about logging in a program that sets up none, or does so later."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("before", "between", "expected"),
    [
        ("", "", ["INFO    hello"]),
        ("logging.basicConfig()", "", ["INFO:realtime:hello"]),
        ("", "logging.basicConfig()", ["INFO:realtime:hello"]),
    ],
    ids=["no logging", "logging first", "logging later"],
)
def test_every_line_is_printed_once(before: str, between: str, expected: list[str]) -> None:
    code = f"""
import logging
from realtime import RealtimeKernel
{before}
kernel = RealtimeKernel()
{between}
logging.getLogger("realtime").info("hello")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    lines = [line.partition(" ")[2] if line[:1].isdigit() else line for line in done.stderr.splitlines()]
    assert lines == expected
