"""``realtime serve`` told on the command line where to listen and whom to join."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from cli_rig import KERNEL, SOCKET, app, ask, connect, run, serving
from programs import complain_of_faults

ANYWHERE = r"(ws://(\S+):(\d+)(/\S*))"
WITHOUT_TRANSPORT = """
from realtime import RealtimeKernel

kernel = RealtimeKernel()

@kernel.on("mesh:joined")
def joined(message, context, toolkit):
    print("another node joined", flush=True)

@kernel.on("join")
def join(message, context, toolkit):
    toolkit.rooms.join("tea")

@kernel.on("members")
def members(message, context, toolkit):
    return len(kernel.rooms.members("tea"))
"""
JOINED = "another node joined"
SECRET = "REALTIME_MESH_SECRET"


@pytest.mark.parametrize("text", [KERNEL, WITHOUT_TRANSPORT], ids=["moved", "added"])
def test_the_command_line_says_where_to_listen(tmp_path: Path, text: str) -> None:
    options = ("--host", "127.0.0.2", "--port", "0", "--path", "/elsewhere")
    with serving(app(tmp_path, text), "app", *options) as program:
        found = program.wait_for(ANYWHERE)
        assert found[2] == "127.0.0.2"
        assert found[4] == "/elsewhere"
        with connect(found[1]):
            pass
        assert program.stop() == 0


def test_all_workers_listen_there(tmp_path: Path) -> None:
    with serving(app(tmp_path, WITHOUT_TRANSPORT), "app", "--port", "0", "--path", "/x", "--workers", "2") as program:
        first, second = program.wait_for(ANYWHERE), program.wait_for(ANYWHERE)
        assert first[1] == second[1]
        program.wait_for("2 workers serve")
        with connect(first[1]):
            pass
        assert program.stop() == 0


def test_processes_of_one_module_and_directory_meet_on_this_machine(tmp_path: Path) -> None:
    options = ("--port", "0", "--mesh")
    app(tmp_path, WITHOUT_TRANSPORT)
    with serving(tmp_path, "app", *options) as one, serving(tmp_path, "app:kernel", *options) as other:
        urls = [program.wait_for(SOCKET)[1] for program in (one, other)]
        with connect(urls[0]) as here, connect(urls[1]) as there:
            ask(here, "join")
            ask(there, "join")
            for client in (here, there):
                while ask(client, "members") != 2:
                    pass
        assert [one.stop(), other.stop()] == [0, 0]


def test_nodes_with_ports_join_through_one_that_is_named(tmp_path: Path) -> None:
    app(tmp_path, WITHOUT_TRANSPORT)
    with serving(tmp_path, "app", "--port", "0", "--mesh", "0") as one:
        port = one.wait_for(r"mesh node .* listens at 127\.0\.0\.1:(\d+)")[1]
        with serving(
            tmp_path, "app", "--port", "0", "--mesh", "127.0.0.1:0", "--peer", f"127.0.0.1:{port}", "--workers", "2"
        ) as pool:
            one.wait_for(JOINED)
            one.wait_for(JOINED)
            assert [pool.stop(), one.stop()] == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "65536"), "argument --port: '65536': must be a port, 0 to 65535"),
        (("--mesh", "nowhere"), "argument --mesh: 'nowhere': must be PORT, HOST:PORT or nothing; MODULE goes before"),
        (("--peer", "127.0.0.1:9090"), "--peer needs --mesh PORT"),
        (("--mesh", "--peer", "127.0.0.1:9090"), "--peer needs --mesh PORT"),
        (("--mesh", "0", "--peer", "nonsense"), "peers"),
        (("--mesh", "0.0.0.0:0"), f"set the environment variable {SECRET} to a secret that all nodes know"),
        (("--path", "nowhere"), "path='nowhere': must start with /"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != SECRET}
    done = run(app(tmp_path, WITHOUT_TRANSPORT), "serve", "app", "--port", "0", *options, env=environment)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    complain_of_faults(done.stderr, "Traceback")


def test_a_kernel_with_a_mesh_or_several_transports_keeps_what_its_code_says(tmp_path: Path) -> None:
    text = f"""{KERNEL}
from realtime import PeerMeshTransport
kernel.use_transport(WebSocketTransport(port=0))
kernel.use_transport(PeerMeshTransport(port=0))
"""
    app(tmp_path, text)
    meshed = run(tmp_path, "serve", "app", "--mesh")
    assert (meshed.returncode, meshed.stderr.count("\n")) == (2, 1)
    assert "--mesh: app has a PeerMeshTransport in its code" in meshed.stderr
    moved = run(tmp_path, "serve", "app", "--host", "127.0.0.1", "--port", "0")
    assert (moved.returncode, moved.stderr.count("\n")) == (2, 1)
    assert "--host, --port: the kernel has 2 WebSocketTransports" in moved.stderr


def test_a_port_in_use_is_told_with_the_port_of_the_command_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(app(tmp_path, KERNEL), "serve", "app", "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"realtime: 127.0.0.1:{port} is in use")
