"""Servers that encrypt, and host the kernel."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import pytest
import websockets.exceptions
from hosting_rig import GEVENT_WEBSOCKET, Host, ask, gunicorn, start, stop
from programs import PATIENCE
from requirements import module

from realtime import Client

LARGE = 4_000_000  # many records, and more than the system takes at once
SERVERS = {
    "gunicorn-gevent": (gunicorn("gevent"), "--certfile", "--keyfile"),
    "gunicorn-gevent-websocket": (gunicorn(GEVENT_WEBSOCKET), "--certfile", "--keyfile"),
    "gunicorn-threads": (gunicorn("gthread", "--threads", "8"), "--certfile", "--keyfile"),
    "flask": (["flask", "--app", "hosted_app", "run", "--port", "0"], "--cert", "--key"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate of an authority, and a server's with its key."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = module("trustme").CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    return folder


@pytest.mark.parametrize("server", SERVERS)
def test_encrypted_connections_are_taken_over_in_the_middle_of_their_encryption(server: str, files: Path) -> None:
    command, certificate, key = SERVERS[server]
    command = [*command, certificate, str(files / "cert.pem"), key, str(files / "key.pem")]
    with start(command) as program:
        host = Host(server, program, ssl.create_default_context(cafile=files / "ca.pem"))
        text = "x" * LARGE
        with (
            host.connect_encrypted("?name=ada") as ada,
            Client(f"wss://{host.address}/realtime", tls=files / "ca.pem") as client,
        ):
            assert ask(ada, "echo", text) == text
            assert ask(ada, "where")["who"] == "ada"
            assert client.call("echo", "by the side of it", timeout=PATIENCE) == "by the side of it"
            assert host.get("/pid").isdigit()
            ask(ada, "join", room="both")
            client.call("join", room="both", timeout=PATIENCE)
            client.send("say", "hello", room="both")
            assert "hello" in ada.recv(timeout=PATIENCE)
            client.close()
            if server != "flask":  # which leaves SIGTERM to the system
                program.tell(signal.SIGTERM)
                with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                    ada.recv(timeout=PATIENCE)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4013
        stop(program)
