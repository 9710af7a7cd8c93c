"""Runs the tests in eight processes side by side, as many of them mostly wait: see GROUPS.

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
INTEGRATION = "tests/integration"


def _files(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / INTEGRATION).glob(pattern))


_OF_THEIR_OWN = {
    "calls": _files("test_webrtc_*.py"),
    "examples in browsers": _files("test_examples_flask.py", "test_examples_webrtc.py"),
    "browsers and Node": _files(
        "test_browser.py", "test_page_left.py", "test_javascript_*.py", "test_*_javascript.py", "test_npm_ws.py"
    ),
    "servers that host": _files("test_hosting*.py", "test_flask.py", "test_worker_pool*.py", "test_wsgi_hosts.py"),
    "nodes": _files("test_mesh*.py", "test_sessions_mesh.py", "test_recovery_python.py", "test_recovery_schedule.py"),
    "clients and the command line": _files("test_cli*.py", "test_python_client*.py", "test_websocket*.py"),
}
_ELSEWHERE = [f"--ignore={file}" for files in _OF_THEIR_OWN.values() for file in files]
GROUPS = {
    **_OF_THEIR_OWN,
    "the other integration tests": [INTEGRATION, *_ELSEWHERE],
    "the rest": ["tests", f"--ignore={INTEGRATION}"],
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
