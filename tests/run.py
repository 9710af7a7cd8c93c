"""Runs the tests in three processes side by side, as many of them mostly wait: see GROUPS.

    python tests/run.py                    all of them
    python tests/run.py tests/unit -x      exactly what pytest would do with these arguments, in one process
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("test_browser", "test_examples_flask", "test_examples_webrtc", "test_javascript_client")
BROWSERS += ("test_javascript_package", "test_npm_ws", "test_webrtc_aiortc", "test_webrtc_browser")
BROWSER_FILES = [f"tests/integration/{name}.py" for name in BROWSERS]
GROUPS = {
    "browsers and Node": BROWSER_FILES,
    "other processes and sockets": ["tests/integration", *(f"--ignore={file}" for file in BROWSER_FILES)],
    "the rest": ["tests", "--ignore=tests/integration"],
}


def main() -> int:
    """Return the exit code: 0 if every test passed."""
    pytest = [sys.executable, "-m", "pytest"]
    if sys.argv[1:]:
        return subprocess.call([*pytest, *sys.argv[1:]], cwd=ROOT)
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        try:
            for number, (name, arguments) in enumerate(GROUPS.items()):
                output = (Path(folder) / f"{number}.txt").open("w+")
                command = [*pytest, "-p", "no:cacheprovider", *arguments]
                running[name] = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT), output
            return _follow(running)
        finally:
            for process, output in running.values():
                process.terminate()
                process.wait()
                output.close()


def _follow(running: dict[str, tuple[subprocess.Popen[bytes], object]]) -> int:
    """Print what each group said when it has ended, so that they do not mix; return the worst exit code."""
    worst, waiting = 0, dict(running)
    while waiting:
        for name, (process, output) in list(waiting.items()):
            code = process.poll()
            if code is None:
                continue
            del waiting[name]
            worst = max(worst, abs(code))
            output.seek(0)  # type: ignore[attr-defined]
            print(f"{'=' * 30} {name}\n{output.read()}", flush=True)  # type: ignore[attr-defined]
        time.sleep(0.2)
    return worst


if __name__ == "__main__":
    sys.exit(main())
