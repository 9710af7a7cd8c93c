"""TURN credentials: as openssl computes them, and as coturn takes them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports
from requirements import missing, turnserver
from signaling_peers import PATIENCE, Connect, InThread, connecting, serve
from stun import allocate

from realtime import WebRTCSignalingBridge

SECRET = "shared with coturn"
REALM = "example.org"


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


def bridge(url: str = "turn:turn.example.org:3478", **options: Any) -> WebRTCSignalingBridge:
    return WebRTCSignalingBridge(ice_servers=[{"urls": url}], **{"turn_secret": SECRET, **options})


def by_openssl(secret: str, username: str) -> str:
    """The credential of the REST convention, as its documents compute it on a command line."""
    if shutil.which("openssl") is None:
        missing("openssl", "apt-get install openssl")
    data = username.encode()
    for arguments in (["dgst", "-sha1", "-hmac", secret, "-binary"], ["base64"]):
        command = ["openssl", *arguments]
        data = subprocess.run(command, input=data, capture_output=True, check=True, timeout=PATIENCE).stdout
    return data.decode().strip()


def test_joining_brings_credentials_that_openssl_computes_too(connect: Connect, in_thread: InThread) -> None:
    kernel = serve(bridge(turn_ttl=600))
    alice, bob = connect(kernel), connect(kernel)
    usernames = []
    for peer in (alice, bob):
        before = time.time()
        (server,) = peer.join_call("lobby")["ice_servers"]
        expiry, _, user = server["username"].partition(":")
        assert before + 599 <= int(expiry) <= time.time() + 600
        assert user == peer.id
        assert server["credential"] == in_thread(by_openssl, SECRET, server["username"])
        assert server["urls"] == "turn:turn.example.org:3478"
        usernames.append(server["username"])
    assert usernames[0] != usernames[1]


def test_credentials_are_made_anew_for_an_ice_restart(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = serve(bridge())
    alice = connect(kernel)
    (first,) = alice.join_call("lobby")["ice_servers"]
    later = time.time() + 3000
    monkeypatch.setattr("realtime.signaling.calls.time.time", lambda: later)
    alice.send("webrtc:peers", {"room": "lobby"})
    (second,) = alice.receive("webrtc:peers")["payload"]["ice_servers"]
    assert int(second["username"].partition(":")[0]) == int(later + 3600)
    assert second["credential"] == by_openssl(SECRET, second["username"]) != first["credential"]


def test_who_is_not_in_the_call_gets_no_credentials(connect: Connect) -> None:
    kernel = serve(bridge(authorize=lambda context, where: False))
    alice = connect(kernel)
    assert alice.refused("webrtc:join", {"room": "lobby"})["reason"] == "FORBIDDEN"
    assert alice.refused("webrtc:peers", {"room": "lobby"})["reason"] == "NOT_IN_ROOM"


@contextmanager
def coturn(directory: Path, in_thread: InThread) -> Iterator[tuple[str, int]]:
    """A real TURN server on loopback that shares our secret."""
    [port] = free_ports(1, socket.SOCK_DGRAM)
    command = [
        *(turnserver(), "-n", "--listening-ip=127.0.0.1", f"--listening-port={port}", "--relay-ip=127.0.0.1"),
        *("--use-auth-secret", f"--static-auth-secret={SECRET}", f"--realm={REALM}", "--allow-loopback-peers"),
        *("--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout", f"--pidfile={directory / 'pid'}"),
        f"--userdb={directory / 'db'}",
    ]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory)
        try:
            in_thread(wait_for_stun, ("127.0.0.1", port), lambda: process.poll() is None and log.read_text())
            yield "127.0.0.1", port
        finally:
            process.kill()
            process.wait()


def wait_for_stun(address: tuple[str, int], alive: Callable[[], Any]) -> None:
    """Ask who we are until there is an answer: STUN itself tells that the server is up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        client.connect(address)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert alive() is not False, "coturn ended"
            try:
                client.send(bytes.fromhex("000100002112a442") + bytes(12))
                client.recv(2048)
                return
            except (ConnectionRefusedError, TimeoutError):
                time.sleep(0.01)
    raise AssertionError(f"coturn did not answer: {alive()}")


def test_coturn_takes_our_credentials_and_no_others(
    connect: Connect, in_thread: InThread, tmp_path: Path
) -> None:
    with coturn(tmp_path, in_thread) as address:
        url = f"turn:127.0.0.1:{address[1]}?transport=udp"
        right = connect(serve(bridge(url))).join_call("lobby")["ice_servers"][0]
        wrong = connect(serve(bridge(url, turn_secret="another"))).join_call("lobby")["ice_servers"][0]

        def ask(username: str, credential: str) -> int | None:
            return in_thread(allocate, address, username, credential, PATIENCE)

        assert ask(right["username"], right["credential"]) is None
        assert ask(wrong["username"], wrong["credential"]) == 401
        user = right["username"].partition(":")[2]
        assert ask(f"{int(time.time()) + 7200}:{user}", right["credential"]) == 401  # its end is part of what is signed
        past = f"{int(time.time()) - 10}:{user}"
        assert ask(past, by_openssl(SECRET, past)) == 401
