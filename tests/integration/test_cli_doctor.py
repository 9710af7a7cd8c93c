"""``realtime doctor``: what it finds, and what it says that means."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from cli_rig import KERNEL, app, run
from programs import PATIENCE

from realtime.startup import unpatched_modules


def test_doctor_tells_versions_patching_limits_and_optional_parts(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("gevent", "greenlet", "msgspec", "msgpack"):
        assert f"{name:<16} {metadata.version(name)}\n" in done.stdout
    assert f"python           {sys.version.split()[0]} " in done.stdout
    assert f"realtime         {metadata.version('realtime-toolkit')}\n" in done.stdout
    assert "event loop       lib" in done.stdout
    for name in unpatched_modules():
        assert f"{name:<16} not patched\n" in done.stdout
    assert "patch_all()` the first line" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout
    for name in ("open files", "resolver", "processors", "rich", "flask", "gunicorn", "gevent-websocket"):
        assert f"\n  {name} " in done.stdout


def test_doctor_names_the_extra_that_brings_an_optional_part(tmp_path: Path) -> None:
    code = (
        "import sys; from importlib import metadata as m; from realtime.cli import doctor, main\n"
        "there = m.version\n"
        "def version(name):\n"
        "    if name in ('rich', 'flask', 'gunicorn', 'gevent-websocket'): raise m.PackageNotFoundError(name)\n"
        "    return there(name)\n"
        "m.version = version\n"
        "sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.replace("\n      ", " ")
    extras = {"rich": "cli", "flask": "flask", "gunicorn": "gunicorn", "gevent-websocket": "gunicorn"}
    for part, extra in extras.items():
        advice = said.split(f"\n  {part} ")[1].split("\n")[0]
        assert advice.endswith(f"pip install 'realtime-toolkit[{extra}]'"), advice


def test_doctor_says_what_is_missing_on_libuv(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor", env={**os.environ, "GEVENT_LOOP": "libuv"})
    assert done.returncode == 0
    assert "event loop       libuv, " in done.stdout
    assert "not named in the log" in done.stdout


def test_doctor_imports_the_module_unpatched_and_tells_what_it_patches_itself(tmp_path: Path) -> None:
    app(tmp_path, KERNEL, "plain")
    app(tmp_path, f"from gevent import monkey\nmonkey.patch_all()\n{KERNEL}", "patched")
    app(tmp_path, f"from gevent import monkey\nmonkey.patch_time()\n{KERNEL}", "partly")
    plain, patched, partly = (run(tmp_path, "doctor", name) for name in ("plain", "patched", "partly"))
    assert [plain.returncode, patched.returncode, partly.returncode] == [0, 0, 0]
    assert "time             not patched" in plain.stdout
    assert "everything       patched" in patched.stdout
    assert "not patched" not in patched.stdout
    assert "time             not patched" not in partly.stdout
    assert "socket           not patched" in partly.stdout
    assert "WebSocketTransport a port the system picks" in plain.stdout


def test_doctor_says_that_a_kernel_without_transports_serves_nobody(tmp_path: Path) -> None:
    text = "from realtime import RealtimeKernel\nkernel = RealtimeKernel()\n"
    done = run(app(tmp_path, text), "doctor", "app")
    assert done.returncode == 0
    assert "Nobody can connect" in done.stdout


def test_doctor_counts_the_clients_that_file_descriptors_allow(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = run(tmp_path, "doctor", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (264, hard)))
    assert "open files       264, may be raised: " in low.stdout
    assert "about 200 clients" in low.stdout
    assert "ulimit -n NUMBER" in low.stdout
    full = run(tmp_path, "doctor", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (264, 264)))
    assert "open files       264, the most allowed here" in full.stdout
    assert "LimitNOFILE=" in full.stdout


def test_doctor_leaves_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "realtime", "doctor"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 0
