"""A Flask app beside its kernel, in every way people serve one: our server, flask run, gunicorn."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs import PATIENCE, Program, complain_of_faults
from requirements import module

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

HERE = Path(__file__).parent
AT = r"(http://127\.0\.0\.1:(\d+))"
SERVERS = {
    "python": ["flask_site.py"],
    "flask run": ["-m", "flask", "--app", "flask_site", "run", "--port", "0"],
    "gunicorn": ["-m", "gunicorn", "-k", "gevent", "-b", "127.0.0.1:0", "--no-control-socket", "flask_site:app"],
}


class Site:
    """A running site, as somebody outside meets it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.url = program.wait_for(AT)[1]
        answered(lambda: self.get("/version"))  # gunicorn tells where it is before it can answer

    def get(self, path: str, cookie: str = "", data: dict[str, str] | None = None) -> tuple[int, Any, str]:
        """Return status, body and the cookie that was set."""
        encoded = None if data is None else urllib.parse.urlencode(data).encode()
        asked = urllib.request.Request(self.url + path, encoded, {"Cookie": cookie})
        try:
            answer = urllib.request.urlopen(asked, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            found = re.match("[^;]*", answer.headers.get("Set-Cookie", ""))
            return answer.status, json.loads(text) if is_json else text, found[0] if found else ""

    def login(self, name: str) -> str:
        """Return the cookie."""
        return self.get(f"/login/{name}")[2]

    def connect(self, cookie: str, query: str = "", **options: Any) -> ClientConnection:
        made: ClientConnection = module("websockets.sync.client").connect(
            self.url.replace("http", "ws") + "/realtime" + query,
            additional_headers={"Cookie": cookie},
            open_timeout=PATIENCE,
            **options,
        )
        return made


@pytest.fixture(scope="module", params=SERVERS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    module("flask_login")
    module("gunicorn" if "gunicorn" in request.param else "flask")
    with Program(*SERVERS[request.param], cwd=HERE) as program:
        yield Site(program)
        program.stop(signal.SIGINT if request.param == "flask run" else signal.SIGTERM)


def ask(client: ClientConnection, type_: str, payload: Any = None) -> dict[str, Any]:
    """Return the payload of the answer, with the items of a stream."""
    client.send(json.dumps({"type": type_, "payload": payload, "ack": 1}))
    items = []
    while True:
        message = json.loads(client.recv(timeout=PATIENCE))
        if message["type"] == "system:stream":
            items.append(message["payload"]["item"])
        elif message["payload"].get("ack") == 1:
            return {**message["payload"], "items": items}


def test_handlers_know_who_logged_in(site: Site) -> None:
    with site.connect(site.login("ada"), "?page=7") as ada, site.connect(site.login("grace")) as grace:
        assert ask(ada, "who")["result"] == ["ada", "ada", "hello ada", "7", False]
        assert ask(grace, "who")["result"] == ["grace", "grace", "hello grace", None, False]
        assert ask(ada, "count", 3)["items"] == [["ada", 1], ["ada", 2], ["ada", 3]]


def test_who_is_not_logged_in_is_refused_before_the_upgrade(site: Site) -> None:
    invalid = module("websockets.exceptions").InvalidStatus
    with pytest.raises(invalid) as refused:
        site.connect("")
    assert refused.value.response.status_code == 401
    assert refused.value.response.body == b"log in first\n"
    with pytest.raises(invalid) as refused:
        site.connect(site.login("ada"), "?banned=yes")
    assert refused.value.response.status_code == 403
    assert refused.value.response.body == b"you are banned\n"


def test_views_reach_clients(site: Site) -> None:
    with site.connect(site.login("ada")) as ada:
        ask(ada, "who")  # its client:connected has been handled
        status, told, _ = site.get("/tell", data={"text": "tea is ready"})
        assert status == 200
        assert told == {"told": 1, "clients": ["ada"], "rooms": ["told"]}
        message = json.loads(ada.recv(timeout=PATIENCE))
        assert (message["type"], message["payload"]) == ("told", "tea is ready")


def test_tasks_run_in_the_app(site: Site) -> None:
    with site.connect(site.login("ada")) as ada:
        ada.send(json.dumps({"type": "work"}))
        message = json.loads(ada.recv(timeout=PATIENCE))
        assert (message["type"], message["payload"]) == ("worked", "flask_site")


def test_teardown_functions_run_for_every_handler(site: Site) -> None:
    with site.connect(site.login("ada")) as ada:
        ask(ada, "who")
        before = site.get("/ended")[1]["handlers"]
        ask(ada, "who")
        assert ask(ada, "fail")["code"] == "internal_error"
        ask(ada, "count", 2)
        assert site.get("/ended")[1]["handlers"] == before + 3
    site.program.wait_for("KeyError: 'a broken handler'")


def test_everything_else_is_the_apps(site: Site) -> None:
    assert site.get("/nothing")[0] == 404
    assert site.get("/broken")[0] == 500
    assert site.get("/version")[1] == {"version": 1}
    status, text, _ = site.get("/realtime/client.js")
    assert status == 200
    assert "export function connect" in text
    assert site.get("/realtime")[0] == 426


def test_the_debugger_and_the_reloader_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # taken for current if the size and the second are the same
    copy = Path(shutil.copy(HERE / "flask_site.py", tmp_path))
    module("flask_login")
    command = ["-m", "flask", "--app", "flask_site", "run", "--debug", "--port", "0"]
    with Program(*command, cwd=tmp_path) as program:
        site = Site(program)
        status, text, _ = site.get("/broken")
        assert status == 500
        assert "Werkzeug Debugger" in text
        cookie = site.login("ada")
        with site.connect(cookie) as ada:
            assert ask(ada, "who")["result"][0] == "ada"
            changed = tmp_path / "changed"
            changed.write_text(copy.read_text().replace("VERSION = 1", "VERSION = 2"))
            changed.replace(copy)  # in one step: the reloader must not find it empty
            with pytest.raises(module("websockets.exceptions").ConnectionClosed):
                ada.recv(timeout=PATIENCE)
        program.wait_for("Detected change in")
        program.wait_for("Restarting with")  # so the old process has ended: nobody asks it while it does
        answered(lambda: site.get("/version")[1], lambda answer: answer == {"version": 2})
        with site.connect(cookie) as ada:
            assert ask(ada, "who")["result"][0] == "ada"
        program.stop()
    complain_of_faults(program.text.replace("Traceback", "That of /broken", 1), "Traceback")


def test_messagepack_is_agreed_on_where_gevent_websocket_answers_the_handshake() -> None:
    msgpack = module("msgpack")
    worker = f"{module('geventwebsocket').__name__}.gunicorn.workers.GeventWebSocketWorker"
    command = ["-m", "gunicorn", "-k", worker, "-b", "127.0.0.1:0", "--no-control-socket", "flask_site:app"]
    with Program(*command, cwd=HERE) as program:
        site = Site(program)
        with site.connect(site.login("ada"), subprotocols=["realtime.msgpack.v1"]) as ada:
            assert ada.subprotocol == "realtime.msgpack.v1"
            ada.send(msgpack.packb({"type": "who", "ack": 1}))
            answer = msgpack.unpackb(ada.recv(timeout=PATIENCE))
            assert answer["payload"]["result"] == ["ada", "ada", "hello ada", None, False]
        program.stop(signal.SIGTERM)


def answered(action: Callable[[], Any], wanted: Callable[[Any], bool] = lambda answer: True) -> None:
    """Return once the server is there, and answers as wanted."""
    deadline = time.monotonic() + 2 * PATIENCE
    while True:
        try:
            if wanted(action()):
                return
        except (OSError, http.client.HTTPException):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
