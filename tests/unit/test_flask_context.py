"""Handlers of a Flask app: which contexts they run in, when these end, and what becomes of errors."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import gevent
import pytest
from flask import Flask, g, request, session

from realtime import Admission, ConfigurationError, Context, Message, RealtimeKernel, Reject, Toolkit
from realtime.integrations.flask import Realtime
from realtime.integrations.flask_context import Handshake
from realtime.testing import KernelTest
from realtime.testing.peers import wait_until
from realtime.transports.memory import MemoryClient

Connect = Callable[..., MemoryClient]
PATIENCE = 60.0


@pytest.fixture
def app() -> Flask:
    made = Flask("the_app")
    made.config.update(SECRET_KEY="a key for tests", GREETING="hello")
    return made


@pytest.fixture
def realtime(app: Flask) -> Realtime:
    return Realtime(app)


@pytest.fixture
def running(realtime: Realtime) -> Iterator[KernelTest]:
    with KernelTest(realtime.kernel) as kernel_test:
        yield kernel_test


@pytest.fixture
def connect(running: KernelTest, app: Flask) -> Connect:
    """Connect a client that came by a handshake with ``app``; keywords are in its session."""

    def connect(app: Flask = app, /, **values: Any) -> MemoryClient:
        return running.connect(identity=Admission(values.get("name"), handshake(app, **values)))

    return connect


def handshake(app: Flask, **values: Any) -> Handshake:
    serializer = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
    cookie = f"session={serializer.dumps(values)}"
    context = app.test_request_context("/realtime?page=7", headers={"Cookie": cookie})
    return Handshake.of(app, context.request.environ)


def ask(client: MemoryClient, type_: str, **fields: Any) -> dict[str, Any]:
    """Return the answer to a message; items of a stream before it under ``items``."""
    client.send({"type": type_, "ack": type_, **fields})
    items = []
    while True:
        message = client.receive(timeout=PATIENCE)
        if message["type"] == "system:stream":
            items.append(message["payload"]["item"])
        elif message["payload"].get("ack") == type_:
            return {**message["payload"], "items": items}


def test_a_handler_sees_the_request_and_the_session_of_the_handshake(realtime: Realtime, connect: Connect) -> None:
    @realtime.on("who")
    def who(message: Message, context: Context, toolkit: Toolkit) -> list[Any]:
        return [request.path, request.args["page"], session["name"], flask.current_app.config["GREETING"]]

    assert ask(connect(name="Ada"), "who")["result"] == ["/realtime", "7", "Ada", "hello"]
    assert ask(connect(name="Grace"), "who")["result"][2] == "Grace"


def test_lifecycle_handlers_see_it_too(realtime: Realtime, running: KernelTest, connect: Connect) -> None:
    seen = []

    @realtime.on("client:connected")
    @realtime.on("client:disconnected")
    def tell(message: Message, context: Context, toolkit: Toolkit) -> None:
        seen.append((message.type, session["name"]))

    client = connect(name="Ada")
    client.close()
    running.settle()
    assert seen == [("client:connected", "Ada"), ("client:disconnected", "Ada")]


def test_each_handler_has_contexts_of_its_own_and_leaves_none(realtime: Realtime, connect: Connect) -> None:
    seen: list[Any] = []

    @realtime.on("count")
    @realtime.on("*")
    def count(message: Message, context: Context, toolkit: Toolkit) -> None:
        seen.append(g.get("count", 0))
        g.count = 1

    @realtime.kernel.on("bare")
    def bare(message: Message, context: Context, toolkit: Toolkit) -> bool:
        return flask.has_app_context()

    client = connect()
    ask(client, "count")
    ask(client, "count")
    assert seen == [0, 0, 0, 0]
    assert ask(client, "bare")["result"] is False


def test_middleware_shares_its_contexts_with_the_handlers(realtime: Realtime, app: Flask, connect: Connect) -> None:
    ended = []
    app.teardown_appcontext(lambda error: ended.append(g.pop("user", None)))

    @realtime.middleware
    def load(message: Message, context: Context, toolkit: Toolkit, call_next: Callable[[], Any]) -> Any:
        g.user = session["name"]
        return call_next()

    @realtime.on("who")
    def who(message: Message, context: Context, toolkit: Toolkit) -> str:
        return str(g.user)

    @realtime.on("stream")
    def stream(message: Message, context: Context, toolkit: Toolkit) -> Iterator[str]:
        for _ in range(2):
            assert not ended
            yield str(g.user)

    client = connect(name="Ada")
    ended.clear()  # of the context that the handshake's session was opened in
    assert ask(client, "stream")["items"] == ["Ada", "Ada"]
    assert ended == ["Ada"]
    assert ask(client, "who")["result"] == "Ada"
    assert ended == ["Ada", "Ada"]


def test_a_message_that_is_waited_for_has_contexts_of_its_own(realtime: Realtime, connect: Connect) -> None:
    seen = []

    @realtime.middleware
    def note(message: Message, context: Context, toolkit: Toolkit, call_next: Callable[[], Any]) -> Any:
        seen.append((message.type, g.get("noted"), session["name"]))
        g.noted = message.type
        return call_next()

    @realtime.on("ask")
    def question(message: Message, context: Context, toolkit: Toolkit) -> list[str]:
        toolkit.reply("and?")
        return [toolkit.wait_for("answer", timeout=PATIENCE).payload, g.noted]

    client = connect(name="Ada")
    client.send({"type": "ask", "ack": 1})
    client.receive(timeout=PATIENCE)
    client.send({"type": "answer", "payload": "yes"})
    assert client.receive(timeout=PATIENCE)["payload"]["result"] == ["yes", "ask"]
    assert seen == [("ask", None, "Ada"), ("answer", None, "Ada")]


@pytest.mark.parametrize("threadpool", [False, True], ids=["greenlet", "native thread"])
def test_a_stream_keeps_its_contexts_to_the_end(
    realtime: Realtime, app: Flask, connect: Connect, threadpool: bool
) -> None:
    ended = []
    app.teardown_request(lambda error: ended.append(error))

    @realtime.on("stream", threadpool=threadpool)
    def stream(message: Message, context: Context, toolkit: Toolkit) -> Iterator[Any]:
        g.count = 0
        for _ in range(3):
            g.count += 1
            yield [session["name"], g.count, len(ended)]
        return request.args["page"]

    ada, grace = connect(name="Ada"), connect(name="Grace")
    for client in (ada, grace):
        client.send({"type": "stream", "ack": 1})
    for client, name in ((ada, "Ada"), (grace, "Grace")):
        items = [client.receive(timeout=PATIENCE)["payload"]["item"] for _ in range(3)]
        assert [item[:2] for item in items] == [[name, 1], [name, 2], [name, 3]]
        assert client.receive(timeout=PATIENCE)["payload"] == {"ack": 1, "result": "7"}
    assert ended == [None, None]


@pytest.mark.parametrize("threadpool", [False, True], ids=["greenlet", "native thread"])
def test_teardown_functions_run_however_a_stream_ends(
    realtime: Realtime, app: Flask, running: KernelTest, connect: Connect, threadpool: bool
) -> None:
    ended: list[str] = []
    app.teardown_request(lambda error: ended.append(type(error).__name__))

    @realtime.on("endless", threadpool=threadpool)
    def endless(message: Message, context: Context, toolkit: Toolkit) -> Iterator[Any]:
        try:
            while True:
                yield session["name"]
                time.sleep(0.001)
        finally:
            ended.append(f"closed for {session['name']}")

    @realtime.on("breaking", threadpool=threadpool)
    def breaking(message: Message, context: Context, toolkit: Toolkit) -> Iterator[Any]:
        yield 1
        raise KeyError("broken")

    client = connect(name="Ada")
    client.send({"type": "endless", "ack": 1})
    assert client.receive(timeout=PATIENCE)["payload"]["item"] == "Ada"
    client.send({"type": "system:cancel", "payload": {"ack": 1}})
    while client.receive(timeout=PATIENCE)["type"] != "system:error":
        pass
    running.settle()
    assert ended[0] == "closed for Ada"
    assert len(ended) == 2
    assert ask(client, "breaking")["code"] == "internal_error"
    assert ended[2:] == ["KeyError"]
    client.send({"type": "endless"})  # without an ack it never begins
    assert client.receive(timeout=PATIENCE)["payload"]["code"] == "bad_message"
    running.settle()
    assert ended[3:] == ["NoneType"]


def test_teardown_functions_are_told_the_error(realtime: Realtime, app: Flask, connect: Connect) -> None:
    ended: list[str] = []
    app.teardown_request(lambda error: ended.append(repr(error)))

    @realtime.on("fail")
    def fail(message: Message, context: Context, toolkit: Toolkit) -> None:
        raise KeyError(message.payload)

    assert ask(connect(), "fail", payload="x")["code"] == "internal_error"
    assert ended == ["KeyError('x')"]


def test_a_middleware_may_drop_a_stream(realtime: Realtime, app: Flask, connect: Connect) -> None:
    ended: list[Any] = []
    app.teardown_request(lambda error: ended.append(error))

    @realtime.kernel.middleware
    def drop(message: Message, context: Context, toolkit: Toolkit, call_next: Callable[[], Any]) -> str:
        call_next()
        return "something else"

    @realtime.on("stream")
    def stream(message: Message, context: Context, toolkit: Toolkit) -> Iterator[int]:
        yield 1

    assert ask(connect(), "stream")["result"] == "something else"
    gc.collect()
    assert ended == [None]


def test_handlers_of_one_client_at_the_same_time_do_not_meet(realtime: Realtime, connect: Connect) -> None:
    @realtime.on("slow", concurrent=True)
    def slow(message: Message, context: Context, toolkit: Toolkit) -> Any:
        g.mine = message.payload
        gevent.sleep(0.01)
        return g.mine

    client = connect()
    for number in range(5):
        client.send({"type": "slow", "payload": number, "ack": number})
    answers = [client.receive(timeout=PATIENCE)["payload"] for _ in range(5)]
    assert all(answer["ack"] == answer["result"] for answer in answers)


def test_aborting_is_a_rejection(realtime: Realtime, connect: Connect) -> None:
    @realtime.on("one")
    def one(message: Message, context: Context, toolkit: Toolkit) -> None:
        flask.abort(404, "no such thing")

    @realtime.on("many")
    def many(message: Message, context: Context, toolkit: Toolkit) -> Iterator[int]:
        yield 1
        flask.abort(403)

    client = connect()
    answer = ask(client, "one")
    assert (answer["code"], answer["message"]) == ("not_found", "no such thing")
    answer = ask(client, "many")
    assert (answer["code"], answer["items"]) == ("forbidden", [1])


def test_a_rejection_and_what_is_no_error_stay_what_they_are(realtime: Realtime, connect: Connect) -> None:
    @realtime.on("no")
    def no(message: Message, context: Context, toolkit: Toolkit) -> None:
        raise Reject("not you", code="mine")

    @realtime.on("elsewhere")
    def elsewhere(message: Message, context: Context, toolkit: Toolkit) -> None:
        flask.abort(flask.redirect("/"))

    client = connect()
    assert ask(client, "no")["code"] == "mine"
    assert ask(client, "elsewhere")["code"] == "internal_error"


def test_a_changed_session_is_not_saved_and_that_is_said_once(
    realtime: Realtime, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    @realtime.on("rename")
    def rename(message: Message, context: Context, toolkit: Toolkit) -> str:
        before = str(session["name"])
        session["name"] = message.payload
        session["_fresh"] = False  # as Flask-Login may
        return before

    client = connect(name="Ada")
    with caplog.at_level(logging.WARNING, logger="realtime.flask"):
        assert ask(client, "rename", payload="Grace")["result"] == "Ada"
        assert ask(client, "rename", payload="Joan")["result"] == "Ada"
    said = [record.message for record in caplog.records if "flask.session" in record.message]
    assert len(said) == 1
    assert f"{rename.__qualname__} changed flask.session['name']: that is not saved" in said[0]


def test_the_session_stays_that_of_the_handshake_when_the_cookie_expires(
    realtime: Realtime, app: Flask, connect: Connect
) -> None:
    seen: list[Any] = []

    @realtime.on("who")
    def who(message: Message, context: Context, toolkit: Toolkit) -> None:
        seen.append((session.get("name"), list(session["basket"])))
        session["basket"].append("of one message")

    ada = connect(name="ada", basket=["tea"])
    app.permanent_session_lifetime = timedelta(seconds=-1)  # as if it had passed
    for _ in range(2):
        ada.call("who")
    assert seen == [("ada", ["tea"])] * 2


def test_a_session_that_cannot_be_written_is_none_to_handlers_either(realtime: Realtime) -> None:
    keyless = Flask("keyless")
    made = Handshake.of(keyless, keyless.test_request_context("/realtime").request.environ)
    with made.request_context():
        assert session.get("name") is None
        with pytest.raises(RuntimeError, match="secret"):
            session["name"] = "ada"


def test_a_client_without_a_handshake_gets_an_app_context_alone(realtime: Realtime, running: KernelTest) -> None:
    @realtime.on("who")
    def who(message: Message, context: Context, toolkit: Toolkit) -> list[Any]:
        return [flask.current_app.name, flask.has_request_context()]

    assert ask(running.connect(), "who")["result"] == ["the_app", False]


def test_without_an_app_the_handler_fails_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    realtime = Realtime()

    @realtime.on("who")
    def who(message: Message, context: Context, toolkit: Toolkit) -> None: ...

    with KernelTest(realtime.kernel) as running, caplog.at_level(logging.ERROR):
        assert ask(running.connect(), "who")["code"] == "internal_error"
    assert "this Realtime has no app: pass it one, or call init_app(app)" in caplog.text


def test_several_apps_share_the_kernel_and_each_handler_runs_in_its_clients(
    realtime: Realtime, connect: Connect
) -> None:
    other = Flask("the_other")
    other.config["SECRET_KEY"] = "another key"
    realtime.init_app(other)

    @realtime.on("who")
    def who(message: Message, context: Context, toolkit: Toolkit) -> list[str]:
        return [flask.current_app.name, session["name"]]

    assert ask(connect(name="Ada"), "who")["result"] == ["the_app", "Ada"]
    assert ask(connect(other, name="Grace"), "who")["result"] == ["the_other", "Grace"]
    assert realtime.app is other


def test_what_cannot_work_is_refused(realtime: Realtime, app: Flask) -> None:
    with pytest.raises(ConfigurationError, match="has this Realtime already"):
        realtime.init_app(app)
    with pytest.raises(ConfigurationError, match="has another Realtime already"):
        Realtime(app)
    with pytest.raises(ConfigurationError, match="must be a Flask app"):
        realtime.init_app("the_app")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"kernel=.* must be a realtime\.RealtimeKernel"):
        Realtime(kernel=app)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"must take \(request\)"):
        Realtime(authenticate=lambda: None)  # type: ignore[arg-type,misc]
    with pytest.raises(ConfigurationError, match="path='realtime'"):
        Realtime(Flask("a"), path="realtime")
    with pytest.raises(ConfigurationError, match="has no app"):
        Realtime().run()
    with pytest.raises(ConfigurationError, match="call init_app with it first"):
        realtime.run(Flask("a"))
    with pytest.raises(ConfigurationError, match="comes with debug=True"):
        realtime.run(use_reloader=True)
    with pytest.raises(ConfigurationError, match="is not callable"):
        realtime.spawn("work")  # type: ignore[arg-type]

    async def handler(message: Message, context: Context, toolkit: Toolkit) -> None: ...

    with pytest.raises(ConfigurationError, match="is async"):
        realtime.on("x", handler)
    with pytest.raises(ConfigurationError, match=r"must take \(message, context, toolkit\)"):
        realtime.on("x")(lambda message: None)
    with pytest.raises(ConfigurationError, match="call_next"):
        realtime.middleware(lambda message, context, toolkit: None)
    with pytest.raises(ConfigurationError, match="under 'client:'"):
        realtime.on("client:gone", lambda message, context, toolkit: None)


def test_the_kernel_may_be_ones_own() -> None:
    kernel = RealtimeKernel()
    realtime = Realtime(Flask("a"), kernel, "/live")
    assert realtime.kernel is kernel
    assert realtime.rooms is kernel.rooms
    assert realtime.presence is kernel.presence


def test_handlers_can_be_taken_off(realtime: Realtime, connect: Connect) -> None:
    def one(message: Message, context: Context, toolkit: Toolkit) -> int:
        return 1

    def two(message: Message, context: Context, toolkit: Toolkit) -> int:
        return 2

    realtime.on("number", one)
    assert realtime.on("number", two) is two
    client = connect()
    assert ask(client, "number")["result"] == 2
    assert realtime.off("number", two) == 1
    assert ask(client, "number")["result"] == 1
    assert realtime.off("number", two) == 0
    realtime.on("number", two)
    assert realtime.off("number") == 2
    assert ask(client, "number")["code"] == "unknown_type"


def test_reaching_clients_needs_no_context(realtime: Realtime, running: KernelTest, connect: Connect) -> None:
    @realtime.on("join")
    def join(message: Message, context: Context, toolkit: Toolkit) -> str:
        toolkit.rooms.join("tea")
        return context.id

    client = connect()
    client_id = ask(client, "join")["result"]
    assert realtime.broadcast({"type": "a"}) == 1
    assert realtime.broadcast({"type": "b"}, "tea", except_ids=[client_id]) == 0
    assert realtime.broadcast({"type": "c"}, "tea") == 1
    realtime.send(client_id, {"type": "d"})
    assert [client.receive(timeout=PATIENCE)["type"] for _ in range(3)] == ["a", "c", "d"]
    asking = gevent.spawn(realtime.call, client_id, {"type": "sure?"}, timeout=PATIENCE)
    question = client.receive(timeout=PATIENCE)
    client.send({"type": "system:ack", "payload": {"ack": question["ack"], "result": "yes"}})
    assert asking.get(timeout=PATIENCE) == "yes"
    realtime.disconnect(client_id, reason="enough")
    assert client.wait_closed(timeout=PATIENCE) == 4500


def test_what_belongs_to_the_connection_is_not_kept(app: Flask) -> None:
    environ = {"PATH_INFO": "/", "wsgi.input": object(), "gunicorn.socket": object(), "realtime.take_over": object()}
    assert Handshake.of(app, environ).environ == {"PATH_INFO": "/"}


@pytest.mark.parametrize(
    ("missing", "code", "remedy"),
    [
        ("flask", "import realtime.integrations.flask", "pip install 'realtime-toolkit[flask]'"),
        ("flask_login", "from realtime.integrations.flask import *; login_required(None)", "pip install flask-login"),
    ],
)
def test_what_is_not_installed_is_named(missing: str, code: str, remedy: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ImportError: " in done.stderr
    assert remedy in done.stderr


def test_the_example_of_the_readme_works() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    found = re.search(r"\n## Flask\n+```python\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"__name__": "readme", "Flask": Flask, "Realtime": Realtime}
    names |= {"session": session, "request": request}
    exec(compile(found[1], "README.md", "exec"), names)  # noqa: S102
    app, realtime = names["app"], names["realtime"]
    app.config["SECRET_KEY"] = "a key for tests"
    with KernelTest(realtime.kernel) as running:
        client = running.connect(identity=Admission(None, handshake(app, name="Ada")))
        client.send({"type": "chat:message", "payload": "hi"})
        assert client.receive(timeout=PATIENCE)["payload"] == {"from": "Ada", "body": "hi"}
        assert app.test_client().post("/announce", data={"text": "tea"}).status_code == 204
        assert client.receive(timeout=PATIENCE)["payload"] == "tea"


# Tasks -----------------------------------------------------------------------------------------------------


def test_a_task_runs_in_the_app_from_the_start_of_the_kernel_to_its_end(realtime: Realtime) -> None:
    seen: list[str] = []

    def work(name: str, *, times: int) -> None:
        seen.append(f"{name} {times} {flask.current_app.name}")
        try:
            gevent.sleep(60)
        finally:
            seen.append("ended")

    realtime.spawn(work, "early", times=1)
    assert seen == []
    with KernelTest(realtime.kernel):
        gevent.sleep(0)
        assert seen == ["early 1 the_app"]
        realtime.spawn(work, "late", times=2)
        gevent.sleep(0)
        assert seen[1:] == ["late 2 the_app"]
        assert realtime.kernel.stats()["services"] == [{"name": "flask tasks", "running": 2, "failed": 0}]
    assert seen[2:] == ["ended", "ended"]


def test_a_task_may_be_given_from_a_native_thread(realtime: Realtime, running: KernelTest, in_thread: Any) -> None:
    idents = []

    def work() -> None:
        idents.append(realtime.kernel.home.is_here())

    in_thread(realtime.spawn, work)
    wait_until(lambda: idents)
    assert idents == [True]


def test_a_task_that_fails_is_logged_and_counted(
    realtime: Realtime, running: KernelTest, caplog: pytest.LogCaptureFixture
) -> None:
    realtime.spawn(lambda: 1 / 0)
    gevent.sleep(0)
    assert "a function given to spawn failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert realtime.kernel.stats()["services"][0]["failed"] == 1
