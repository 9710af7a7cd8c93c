"""The Python client's example does what its docstring says."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_ports
from programs import EXAMPLES, PATIENCE, Program, complain_of_faults

SCRIPT = EXAMPLES / "python_client.py"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Program(EXAMPLES / "conversation.py", "--port", "0") as program:
        yield program.wait_for(r"ws://127\.0\.0\.1:\d+/realtime")[0]
        assert program.stop() == 0


def run(*arguments: str, typed: str = "") -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_it_orders_what_was_typed(url: str) -> None:
    code, text = run("--url", url, typed="Hawaii\nFunghi\n")
    assert code == 0
    asked = "Which one: Margherita, Funghi, Diavola? "
    assert text == f"{asked}We have no Hawaii.\n{asked}It costs 10.00: fine\nOrdered: Funghi\n"


def test_it_says_no_to_a_price_above_the_budget(url: str) -> None:
    assert run("--url", url, "--pizza", "Diavola", "--budget", "9") == (
        1,
        "It costs 11.00: too much\nNothing was ordered.\n",
    )


def test_it_waits_for_a_server_that_is_not_there_yet() -> None:
    port = str(*free_ports(1))
    with Program(SCRIPT, "--url", f"ws://127.0.0.1:{port}/realtime", "--pizza", "Funghi") as client:
        client.wait_for("No connection: next attempt in")
        with Program(EXAMPLES / "conversation.py", "--port", port):
            client.wait_for("Ordered: Funghi")


FORGETFUL = """
import sys
from realtime import RealtimeKernel, WebSocketTransport

kernel = RealtimeKernel([WebSocketTransport(port=int(sys.argv[1]), path="/realtime")])


@kernel.on("pizza:order")
def order(message, context, toolkit):
    print("an order", flush=True)
    if sys.argv[2] == "waits":
        toolkit.wait_for("nothing")
    return {"pizza": "Funghi"}


kernel.run()
"""


def test_it_orders_again_from_a_server_that_was_killed_in_between(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text(FORGETFUL)
    port = str(*free_ports(1))
    with Program(server, port, "waits") as first:
        first.wait_for("ws://127")
        with Program(SCRIPT, "--url", f"ws://127.0.0.1:{port}/realtime") as client:
            first.wait_for("an order")
            first.stop(signal.SIGKILL)
            client.wait_for("No connection: next attempt in")
            with Program(server, port, "answers"):
                client.wait_for("The server has forgotten the order")
                client.wait_for("Ordered: Funghi")
    complain_of_faults(client.text, "Traceback")


def test_ctrl_c_ends_it_while_it_waits_for_a_server() -> None:
    with Program(SCRIPT, "--url", "ws://127.0.0.1:1/realtime") as client:
        client.wait_for("No connection: next attempt in")
        assert client.stop() == 130
    complain_of_faults(client.text, "Traceback")


def test_the_docstring_names_the_port_of_the_other_example() -> None:
    ports = {re.search(r"8766", (EXAMPLES / name).read_text()) is not None for name in (SCRIPT.name, "conversation.py")}
    assert ports == {True}
