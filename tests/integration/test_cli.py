"""``realtime serve`` as people use it: in a process of its own, with real clients, signals and exit codes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from cli_rig import KERNEL, SOCKET, app, ask, connect, receive, run, said_by, send, serving
from programs import PATIENCE, Program, complain_of_faults
from requirements import module
from tls_peer import TLSPeer

from realtime.cli import main

BLOCKING = f"""
import time
{KERNEL}
released = False

@kernel.on("sleep")
def sleep(message, context, toolkit):
    toolkit.rooms.broadcast({{"type": "sleeping"}}, "watchers")
    while not released:  # without patching nobody could ever release it
        time.sleep(0.01)
    return "released"

@kernel.on("watch")
def watch(message, context, toolkit):
    toolkit.rooms.join("watchers")

@kernel.on("release")
def release(message, context, toolkit):
    global released
    released = True
"""


# serve: patching ------------------------------------------------------------------------------------------


def test_a_handler_in_time_sleep_holds_up_nobody(tmp_path: Path) -> None:
    with serving(app(tmp_path, BLOCKING)) as program:
        url = program.wait_for(SOCKET)[1]
        with connect(url) as sleeper, connect(url) as other:
            ask(other, "watch")
            send(sleeper, "sleep")
            assert receive(other)["type"] == "sleeping"
            ask(other, "release")  # answered while the handler of the first sleeps: it waits for just this
            assert receive(sleeper)["payload"] == {"ack": "sleep", "result": "released"}
        assert program.stop() == 0
    assert "not monkey-patched" not in "".join(program.output)


def test_the_module_finds_everything_patched_and_nothing_warns(tmp_path: Path) -> None:
    text = f"""
from realtime.startup import unpatched_modules
print("unpatched:", unpatched_modules(), flush=True)
{KERNEL}"""
    with serving(app(tmp_path, text)) as program:
        assert program.wait_for(r"unpatched: (.*)")[1] == "[]"
        program.wait_for(SOCKET)
        assert program.stop() == 0
    complain_of_faults(program.text, "Warning", "Traceback", "ERROR")


def test_native_threads_reach_the_kernel_although_it_was_imported_before_patching(tmp_path: Path) -> None:
    text = f"""{KERNEL}
from gevent.monkey import get_original
get_ident = get_original("_thread", "get_ident")
home = get_ident()

@kernel.on("pooled", threadpool=True)
def pooled(message, context, toolkit):
    toolkit.rooms.join("tea")
    toolkit.reply("from the pool")
    return [get_ident() != home, len(kernel.rooms.members("tea"))]
"""
    with serving(app(tmp_path, text)) as program, connect(program.wait_for(SOCKET)[1]) as client:
        send(client, "pooled")
        assert receive(client)["payload"] == {"message": "from the pool"}
        assert receive(client)["payload"]["result"] == [True, 1]
        assert program.stop() == 0


def test_the_watchdog_names_a_handler_that_never_waits(tmp_path: Path) -> None:
    text = f"""{KERNEL}
@kernel.on("spin")
def spin(message, context, toolkit):
    before = kernel.stats()["blocked_loops"]  # whatever held it at the start
    while kernel.stats()["blocked_loops"] == before:
        pass
"""
    with serving(app(tmp_path, text)) as program, connect(program.wait_for(SOCKET)[1]) as client:
        ask(client, "spin")
        program.wait_for(r"held for more than .* by handler spin ")
        assert program.stop() == 0


def test_tls_works_on_both_sides_of_a_patched_server(tmp_path: Path) -> None:
    trustme = module("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    text = """
        import ssl
        from realtime import RealtimeKernel, WebSocketTransport

        kernel = RealtimeKernel([WebSocketTransport(port=0, tls=("cert.pem", "key.pem"))])

        @kernel.on("context")
        def context(message, context, toolkit):
            made = ssl.create_default_context()
            made.minimum_version = ssl.TLSVersion.TLSv1_3  # recurses for ever if ssl was patched too late
            return made.minimum_version.name
    """
    ssl = module("ssl")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with (
        serving(app(tmp_path, text)) as program,
        TLSPeer(program.wait_for(SOCKET)[1], trusting, open_timeout=PATIENCE) as client,
    ):
        assert ask(client, "context") == "TLSv1_3"
        assert program.stop() == 0


def test_importing_realtime_or_its_command_line_patches_nothing() -> None:
    code = "import realtime, realtime.cli, gevent.monkey; print(gevent.monkey.saved)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=PATIENCE) == "{}\n"


# serve: finding, starting and stopping --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("app", "app"),
        ("app", "app:kernel"),
        ("shop.sockets", "shop.sockets:kernel"),
        ("app", "app:holder.inner.kernel"),
    ],
)
def test_the_kernel_is_found_where_the_target_says(tmp_path: Path, name: str, target: str) -> None:
    text = f"{KERNEL}\nclass holder:\n    class inner:\n        pass\nholder.inner.kernel = kernel\n"
    with serving(app(tmp_path, text, name), target) as program, connect(program.wait_for(SOCKET)[1]):
        assert program.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_tells_clients_to_come_back_and_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    with serving(app(tmp_path, KERNEL)) as program, connect(program.wait_for(SOCKET)[1]) as client:
        assert program.stop(number) == 0
        with pytest.raises(module("websockets.exceptions").ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE)
    assert closed.value.rcvd.code == 4013
    complain_of_faults(program.text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_while_the_module_is_imported_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    text = f"import time\nprint('importing', flush=True)\nwhile True:\n    time.sleep(0.01)\n{KERNEL}"
    with serving(app(tmp_path, text)) as program:
        program.wait_for("importing")
        assert program.stop(number) == 0
    assert program.output == ["importing\n"]


def test_the_installed_command_finds_modules_in_the_current_directory(tmp_path: Path) -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="realtime")
    assert script.load() is main
    # what pip writes into bin/, where Python puts that directory and not the current one on its path
    command = tmp_path / "bin" / "realtime"
    command.parent.mkdir()
    command.write_text("import sys\nfrom realtime.cli import main\nsys.exit(main())\n")
    folder = app(tmp_path / "project", KERNEL)
    with Program(command, "serve", "app", cwd=folder) as program, connect(program.wait_for(SOCKET)[1]):
        assert program.stop() == 0


@pytest.mark.parametrize(("options", "shown"), [((), True), (("--log-level", "error"), False)])
def test_log_level_overrides_the_kernels_own(tmp_path: Path, options: tuple[str, ...], shown: bool) -> None:
    text = f"""{KERNEL}
import gevent
gevent.spawn(lambda: print("up", kernel.transports[0].url, flush=True))
"""
    with serving(app(tmp_path, text), "app", *options) as program:
        program.wait_for(f"up {SOCKET}")
        assert program.stop() == 0
    assert ("WebSocket clients connect" in "".join(program.output)) is shown


# serve: what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing_such:kernel", "there is no module 'nothing_such' in {folder} or elsewhere on"),
        ("app.missing:kernel", "there is no module 'app.missing' in "),
        ("app:kernal", "module 'app' has no 'kernal'; there is app:kernel, app:second"),
        ("app:kernel.deeper", "module 'app' has no 'kernel.deeper'; there is app:kernel, app:second"),
        ("app:number", "app:number is of type int, not a RealtimeKernel; there is app:kernel, app:second"),
        ("empty", "module 'empty' has no 'kernel'; there is no RealtimeKernel in it"),
        ("app.py", "'app.py' is a file; give its module instead: app:kernel"),
        ("./shop/app.py:live", "'./shop/app.py' is a file; give its module instead: shop.app:live"),
        ("app:", "'app:': must be MODULE or MODULE:KERNEL, such as chat:kernel"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_target_that_is_no_kernel_gets_one_line_and_exit_code_2(
    tmp_path: Path, command: str, target: str, message: str
) -> None:
    app(tmp_path, "", "empty")
    done = run(app(tmp_path, f"{KERNEL}\nsecond = RealtimeKernel()\nnumber = 5\n"), command, target)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"realtime: {message.format(folder=tmp_path)}")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("RealtimeKernel(log_level='loud')", "ConfigurationError: log_level='loud': must be one of"),
    ],
)
def test_an_exception_in_the_module_shows_its_traceback(tmp_path: Path, line: str, error: str) -> None:
    done = run(app(tmp_path, f"{KERNEL}\n{line}\n"), "serve", "app:kernel")
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{tmp_path / "app.py"}", line ')
    assert lines[2].strip() == line
    assert error in "\n".join(lines[3:-1])
    assert lines[-1].startswith(f"realtime: module 'app' could not be imported: {error}")
    assert "importlib" not in done.stderr
    assert "realtime/cli" not in done.stderr


def test_a_syntax_error_is_shown_with_its_line(tmp_path: Path) -> None:
    done = run(app(tmp_path, "kernel = (\n"), "serve", "app")
    assert done.returncode == 2
    assert f'File "{tmp_path / "app.py"}", line 1' in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("realtime: module 'app' could not be imported: SyntaxError: ")


def test_a_port_in_use_gets_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(app(tmp_path, KERNEL.replace("port=0", f"port={port}")), "serve", "app:kernel")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"realtime: 127.0.0.1:{port} is in use: stop what listens there, or choose")


# help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "serve", "demo", "send", "listen", "bench", "doctor"])
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  realtime {command}" in capsys.readouterr().out


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"realtime {metadata.version('realtime-toolkit')}\n"


@pytest.mark.parametrize("arguments", [(), ("serve",), ("sing",), ("serve", "app", "--log-level", "x"), ("send", "x")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    code, said = said_by(*arguments)
    assert code == 2
    assert "usage: realtime" in said
