"""``realtime serve --reload``: while somebody writes the application."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_rig import KERNEL, SOCKET, app, ask, connect, run, send, serving
from programs import PATIENCE, Program, complain_of_faults
from requirements import module

CHANGED = r"realtime: (.*) changed: starting again"
WAITING = "it starts again when a file changes"
APP = f"""
import answers
{KERNEL}
@kernel.on("answer")
def answer(message, context, toolkit):
    return answers.ANSWER

@kernel.on("late")
def late(message, context, toolkit):
    import later
    return later.ANSWER
"""


def answering(folder: Path, value: Any, name: str = "answers") -> None:
    """Write the module that the application imports."""
    app(folder, f"ANSWER = {value!r}\n", name)


def answer_of(program: Program, question: str = "answer") -> Any:
    """Wait until the program serves, and ask it."""
    with connect(program.wait_for(SOCKET)[1]) as client:
        return ask(client, question)


@pytest.fixture(autouse=True)
def no_bytecode_of_the_same_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached bytecode is taken for current if size and second are the same, which edits by a test easily are."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    answering(tmp_path, "first")
    answering(tmp_path, "late", "later")
    return app(tmp_path, APP)


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_a_change_starts_it_again_and_tells_clients_to_come_back(folder: Path, workers: tuple[str, ...]) -> None:
    with serving(folder, "app", "--reload", *workers) as program:
        with connect(program.wait_for(SOCKET)[1]) as client:
            assert ask(client, "answer") == "first"
            if workers:
                program.wait_for("2 workers serve")
            answering(folder, "second")
            with pytest.raises(module("websockets.exceptions").ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE)
            assert closed.value.rcvd.code == 4013
            assert "retry_after=" in closed.value.rcvd.reason
        assert program.wait_for(CHANGED)[1] == "answers.py"
        assert answer_of(program) == "second"
        assert program.stop() == 0
    complain_of_faults(program.text, "Traceback")


def test_code_that_does_not_run_waits_for_the_next_change(folder: Path) -> None:
    with serving(folder, "app", "--reload") as program:
        assert answer_of(program) == "first"
        app(folder, "ANSWER = (\n", "answers")
        program.wait_for("SyntaxError: ")
        program.wait_for(WAITING)
        app(folder, "import newcomer\nANSWER = newcomer.ANSWER\n", "answers")
        app(folder, "ANSWER = 1 / 0\n", "newcomer")
        program.wait_for("ZeroDivisionError: division by zero")
        program.wait_for(WAITING)
        answering(folder, "repaired", "newcomer")  # a file that was never imported with success
        assert answer_of(program) == "repaired"
        assert program.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("name", ["newcomer", "newcomer.__init__", "shop.newcomer"])
def test_a_module_that_is_imported_before_it_is_written_is_waited_for(folder: Path, name: str) -> None:
    app(folder, "", "shop.__init__")
    imported = name.removesuffix(".__init__")
    app(folder, f"from {imported} import ANSWER\n", "answers")
    with serving(folder, "app", "--reload") as program:
        program.wait_for("ModuleNotFoundError: ")
        program.wait_for(WAITING)
        answering(folder, "written", name)
        assert answer_of(program) == "written"
        assert program.stop() == 0


def test_an_application_that_is_broken_from_the_start_is_waited_for(tmp_path: Path) -> None:
    with serving(app(tmp_path, "kernel = (\n"), "app", "--reload") as program:
        program.wait_for(WAITING)
        app(tmp_path, "import os\nos._exit(3)\n")  # ends before it can tell anything
        program.wait_for(WAITING)
        app(tmp_path, KERNEL)
        program.wait_for(SOCKET)
        assert program.stop() == 0


def test_ctrl_c_while_it_waits_for_a_change_ends_it(tmp_path: Path) -> None:
    with serving(app(tmp_path, "kernel = (\n"), "app", "--reload") as program:
        program.wait_for(WAITING)
        assert program.stop() == 0


def test_what_a_handler_imports_later_is_watched_and_what_is_installed_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = tmp_path / "user" / "lib" / version / "site-packages"
    installed.mkdir(parents=True)
    answering(installed, "installed", "library")
    app(folder, f"import sys\nsys.path.append({str(installed)!r})\nimport library\n{APP}")
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "user"))
    with serving(folder, "app", "--reload") as program:
        assert answer_of(program, "late") == "late"
        answering(installed, "changed", "library")
        answering(folder, "changed", "later")
        changes = program.wait_for(CHANGED)[1]
        program.wait_for(SOCKET)
        assert program.stop() == 0
    assert changes == "later.py"


def test_the_server_ends_with_the_process_that_watches(folder: Path) -> None:
    with serving(folder, "app", "--reload") as program, connect(program.wait_for(SOCKET)[1]) as client:
        ask(client, "answer")
        program.stop(signal.SIGKILL)
        with pytest.raises(module("websockets.exceptions").ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE)
    assert closed.value.rcvd.code == 4013


def test_a_second_ctrl_c_does_not_wait_for_handlers(folder: Path) -> None:
    text = f"""{KERNEL}
import time

@kernel.on("stay")
def stay(message, context, toolkit):
    toolkit.reply("staying")
    time.sleep(1000)
"""
    with serving(app(folder, text), "app", "--reload") as program, connect(program.wait_for(SOCKET)[1]) as client:
        send(client, "stay")
        client.recv(timeout=PATIENCE)
        program.tell(signal.SIGINT)
        program.wait_for("stopping: ")
        assert program.stop() in (0, 128 + signal.SIGKILL)


def test_a_module_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "nothing_such", "--reload")
    assert done.returncode == 2
    assert done.stderr.startswith("realtime: there is no module 'nothing_such'")
