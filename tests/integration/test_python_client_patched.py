"""The tests of the Python client once more, where its threads are greenlets: in a monkey-patched process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROOT

FILES = ("test_python_client.py", "test_python_client_faults.py")
LONGEST = 600  # seconds for all of them: ten times what they take


@pytest.mark.timeout(LONGEST + 30)
def test_all_of_it_holds_for_greenlets() -> None:
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    options = ["-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=0"]
    command = [sys.executable, "-m", "gevent.monkey", "--module", "pytest", *options, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
