"""Runs the tests in two processes side by side, as most of them wait: those that drive browsers and Node, and the rest.

    python tests/run.py                    all of them
    python tests/run.py tests/unit -x      exactly what pytest would do with these arguments, in one process
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("test_browser", "test_examples_flask", "test_examples_webrtc", "test_hosting", "test_javascript_client")
BROWSERS += ("test_javascript_package", "test_npm_ws", "test_webrtc_aiortc", "test_webrtc_browser")


def main() -> int:
    """Return the exit code: 0 if every test passed."""
    pytest = [sys.executable, "-m", "pytest"]
    if sys.argv[1:]:
        return subprocess.call([*pytest, *sys.argv[1:]], cwd=ROOT)
    files = [str(Path("tests/integration") / f"{name}.py") for name in BROWSERS]
    with tempfile.TemporaryFile("w+") as output:
        # its output comes at the end, so that the two do not mix
        browsers = subprocess.Popen(
            [*pytest, "-p", "no:cacheprovider", *files], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            rest = subprocess.call([*pytest, *(f"--ignore={file}" for file in files)], cwd=ROOT)
            code = browsers.wait()
        finally:
            browsers.terminate()
            browsers.wait()
        output.seek(0)
        print(output.read())
    return rest or code


if __name__ == "__main__":
    sys.exit(main())
