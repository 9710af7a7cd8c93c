"""The examples with Flask and gunicorn, started as their docstrings say and used by several people at once."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs import EXAMPLES, PATIENCE, Program, complain_of_faults
from requirements import module
from webrtc_rig import launched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from websockets.sync.client import ClientConnection

AT = r"(http://127\.0\.0\.1:\d+)"
GUNICORN = Path(__file__).with_name("gunicorn_ready.py")
PHONE = {"width": 390, "height": 844}
SMALLEST = {"width": 320, "height": 568}

Visit = Callable[..., "Page"]


def started(file: str, contains: str, *more: str) -> Program:
    """Start an example with the command in its docstring that contains a text, on a free port."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / file).read_text()))
    assert docstring is not None
    command = next(line for line in docstring.splitlines() if line.startswith("    ") and contains in line)
    program, *arguments = shlex.split(re.sub(r"^ *([A-Z_]+=\S+ )*", "", command))
    if program == "python":
        return Program(*arguments, *more)
    module(program)
    return Program("-m", program, *arguments, *more)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as launch:
        yield launch()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Open a page as another person; every script error fails the test."""
    contexts, errors = [], []

    def visit(url: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []


def is_open(page: Page) -> None:
    page.wait_for_selector("#state[data-state=open]")


def fits(page: Page) -> bool:
    width: int = page.evaluate("document.documentElement.scrollWidth")
    assert page.viewport_size is not None
    return width <= page.viewport_size["width"]


def unnamed(page: Page) -> list[str]:
    """Return the controls that a screen reader could not name."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("input, button, progress")].filter(
            (control) => !(control.labels?.length || control.getAttribute("aria-label") || control.textContent.trim())
        ).map((control) => control.outerHTML)"""
    )
    return found


# flask_chat.py -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat() -> Iterator[str]:
    with started("flask_chat.py", "python", "--port", "0") as program:
        yield program.wait_for(AT)[1]
        assert program.stop() == 0
    complain_of_faults(program.text)


def enter(page: Page, name: str, room: str) -> Page:
    page.fill("#name", name)
    page.press("#name", "Enter")
    is_open(page)
    page.fill("nav input", room)
    page.press("nav input", "Enter")
    page.wait_for_selector(f'#main[data-room="chat:{room}"]')
    is_open(page)
    page.wait_for_selector("#people .you", state="attached")
    return page


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(f'.entry.mine .body:text-is("{text}")')


def heard(page: Page, text: str) -> None:
    page.wait_for_selector(f'.entry:not(.mine) .body:text-is("{text}")')


def test_two_people_chat_and_see_each_other(visit: Visit, chat: str) -> None:
    ada, grace = enter(visit(chat), "Ada", "tea & cake"), enter(visit(chat), "Grace", "tea & cake")
    ada.wait_for_selector('#people .label:text-is("Grace")')
    say(ada, "good <b>morning</b>")
    heard(grace, "good <b>morning</b>")
    say(grace, "good evening")
    heard(ada, "good evening")
    assert ada.locator("#people li").count() == 2
    assert grace.inner_text(".entry:not(.mine) .who span") == "Ada"
    grace.close()
    ada.wait_for_function("() => document.querySelectorAll('#people li').length === 1")


def test_the_page_comes_with_what_was_said_before(visit: Visit, chat: str) -> None:
    ada = enter(visit(chat), "Ada", "history")
    for text in ("one", "two <i>"):
        say(ada, text)
    reader = visit(chat, java_script_enabled=False)
    reader.fill("#name", "Reader")
    reader.press("#name", "Enter")
    reader.wait_for_url(f"{chat}/room/lobby")
    reader.goto(f"{chat}/room/history")
    assert reader.locator(".entry .body").all_inner_texts() == ["one", "two <i>"]
    ada.reload()
    is_open(ada)
    assert ada.locator(".entry.mine .body").all_inner_texts() == ["one", "two <i>"]
    say(ada, "three")
    assert ada.locator(".entry.first").count() == 1


def test_rooms_are_apart(visit: Visit, chat: str) -> None:
    ada, grace = enter(visit(chat), "Ada", "here"), enter(visit(chat), "Grace", "there")
    say(ada, "only here")
    say(grace, "only there")
    joan = enter(visit(chat), "Joan", "there")
    assert joan.locator(".entry .body").all_inner_texts() == ["only there"]
    joan.click('nav a:text-is("here")')
    joan.wait_for_selector('#title:text-is("here")')
    heard(joan, "only here")
    grace.wait_for_function("() => document.querySelectorAll('#people li').length === 1")


def test_logging_out_ends_every_page_of_that_person(visit: Visit, chat: str) -> None:
    first = enter(visit(chat), "Ada", "out")
    other = enter(visit(chat), "Ada", "out")  # of the same name, but somebody else
    second = first.context.new_page()
    second.goto(f"{chat}/room/out")
    is_open(second)
    assert other.locator("#people li").count() == 2
    second.click("text=Log out")
    for page in (first, second):
        page.wait_for_selector("#name")
    first.goto(chat)
    first.wait_for_selector("#name")
    other.wait_for_function("() => document.querySelectorAll('#people li').length === 1")


def test_a_client_that_comes_back_gets_what_it_missed(visit: Visit, chat: str) -> None:
    ada = enter(visit(chat), "Ada", "gap")
    say(ada, "before")
    missed = ada.evaluate(
        """async () => {
            const { connect } = await import("/realtime/client.js");
            const client = connect("/realtime");
            const ask = (seen) => client.call("room:enter", seen, { room: "chat:gap", timeout: 20 });
            const all = (await ask(0)).missed;
            const none = (await ask(all.at(-1).number)).missed;
            client.close();
            return [all.map(({ text }) => text), none];
        }"""
    )
    assert missed == [["before"], []]


def test_who_has_not_logged_in_stays_out(visit: Visit, chat: str) -> None:
    page = visit(f"{chat}/room/tea")
    assert page.url == f"{chat}/login"
    page.evaluate("document.querySelector('#name').required = false")
    page.click("button")
    page.wait_for_selector(".alert:not(:empty)")
    with pytest.raises(module("websockets.exceptions").InvalidStatus) as refused:
        module("websockets.sync.client").connect(chat.replace("http", "ws") + "/realtime")
    assert refused.value.response.status_code == 401


def test_the_server_refuses_what_the_page_would_not_send(visit: Visit, chat: str) -> None:
    codes = enter(visit(chat), "Ada", "strict").evaluate(
        """async () => {
            const { connect } = await import("/realtime/client.js");
            const client = connect("/realtime");
            const refused = (type, payload, to) =>
                client.call(type, payload, { ...to, timeout: 20 }).then(() => null, ({ code }) => code);
            const codes = [
                await refused("room:enter", 0),
                await refused("room:enter", 0, { room: "person:1" }),
                await refused("room:enter", 0, { room: `chat:${"x".repeat(41)}` }),
                await refused("chat:message", "hi", { room: "chat:strict" }),
                await refused("room:enter", "zero", { room: "chat:strict" }),
                await refused("chat:message", " ", { room: "chat:strict" }),
                await refused("chat:message", 7, { room: "chat:strict" }),
            ];
            client.close();
            return codes;
        }"""
    )
    assert codes == ["bad_room", "bad_room", "bad_room", "forbidden", None, "bad_text", "bad_text"]


@pytest.mark.parametrize("size", [PHONE, SMALLEST], ids=["phone", "smallest"])
def test_the_chat_fits_and_names_its_controls(visit: Visit, chat: str, size: dict[str, int]) -> None:
    page = visit(chat, viewport=size)
    assert fits(page)
    enter(page, "W" * 40, f"wide {'w' * 35}")
    say(page, "w" * 300)
    assert fits(page)
    box = page.locator("#composer button").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= size["height"]
    assert unnamed(page) == []


# flask_factory/ ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poll() -> Iterator[str]:
    module("flask_login")
    with started("flask_factory/__init__.py", "flask --app", "--port", "0") as program:
        yield program.wait_for(AT)[1]
        program.stop()
    complain_of_faults(program.text)


def log_in(page: Page, name: str, password: str | None = None) -> Page:
    page.fill("#name", name)
    page.fill("#password", password or name)
    page.press("#password", "Enter")
    return page


def votes(page: Page, dish: str, count: int) -> None:
    page.wait_for_selector(f'.dish[data-name="{dish}"] .votes:text-is("{count}")')


def test_a_vote_is_seen_by_everybody(visit: Visit, poll: str) -> None:
    ada, grace = log_in(visit(poll), "ada"), log_in(visit(poll, viewport=PHONE), "grace")
    for page in (ada, grace):
        is_open(page)
        assert fits(page)
        assert unnamed(page) == []
    ada.click('[data-name="Curry"]')
    votes(grace, "Curry", 1)
    grace.click('[data-name="Curry"]')
    votes(ada, "Curry", 2)
    grace.wait_for_selector('[data-name="Curry"][aria-pressed="true"]')
    grace.click('[data-name="Soup"]')
    votes(ada, "Curry", 1)
    ada.wait_for_selector("text=Last: Grace")
    ada.fill("#dish", "Pancakes")
    ada.press("#dish", "Enter")
    votes(grace, "Pancakes", 0)
    ada.fill("#dish", "Pancakes")
    ada.press("#dish", "Enter")
    ada.wait_for_selector('#alert:text-is("That cannot be added.")')
    ada.reload()
    votes(ada, "Soup", 1)
    ada.wait_for_selector('[data-name="Curry"][aria-pressed="true"]')
    second = ada.context.new_page()
    second.goto(poll)
    is_open(second)
    ada.click("text=Log out")
    for page in (ada, second):
        page.wait_for_selector("#password")
    ada.goto(poll)
    ada.wait_for_selector("#password")


def test_a_vote_counts_although_the_list_changes_while_it_is_pressed(visit: Visit, poll: str) -> None:
    ada, joan = log_in(visit(poll), "ada"), log_in(visit(poll), "joan")
    for page in (ada, joan):
        is_open(page)
    joan.hover('[data-name="Dumplings"]')
    joan.mouse.down()
    ada.click('[data-name="Dumplings"]')
    votes(joan, "Dumplings", 1)
    joan.mouse.up()
    votes(ada, "Dumplings", 2)


def what_was_written(page: Page, form: str, field: str, text: str) -> Any:
    """Send a form, and write something else in its field while that is on its way; return what is there then."""
    page.fill(field, text)
    return page.evaluate(
        """async ([form, field]) => {
            let answered;
            const sent = new Promise((resolve) => (answered = resolve));
            const { fetch } = window;
            window.fetch = (...request) => fetch(...request).finally(() => setTimeout(answered));
            document.querySelector(form).requestSubmit();
            document.querySelector(field).value = "another";
            await sent;
            return document.querySelector(field).value;
        }""",
        [form, field],
    )


def test_what_is_written_while_a_dish_is_added_stays(visit: Visit, poll: str) -> None:
    page = log_in(visit(poll), "ada")
    is_open(page)
    assert what_was_written(page, "#add", "#dish", "Pie") == "another"
    votes(page, "Pie", 0)


def test_only_users_with_their_password_get_in(visit: Visit, poll: str) -> None:
    page = log_in(visit(poll), "ada", "wrong")
    page.wait_for_selector(".alert:not(:empty)")
    page.goto(poll)
    page.wait_for_selector("#password")
    log_in(page, "joan")
    is_open(page)
    with pytest.raises(module("websockets.exceptions").InvalidStatus) as refused:
        module("websockets.sync.client").connect(poll.replace("http", "ws") + "/realtime")
    assert refused.value.response.status_code == 401


def test_the_factory_makes_as_many_apps_as_tests_need() -> None:
    module("flask_login")
    code = """
from flask_factory import create_app
for number in range(3):
    client = create_app({"TESTING": True}).test_client()
    assert client.get("/").status_code == 302
    assert client.post("/login", data={"name": "ada", "password": "ada"}).status_code == 302
    assert client.post("/dishes", data={"name": "Pie"}).status_code == 201
    assert b"Pie" in client.get("/").data
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    complain_of_faults(done.stderr)


APPS = {
    "flask_chat": "from flask_chat import app, realtime",
    "flask_factory": """
from flask_factory import create_app
from flask_factory.extensions import realtime
app = create_app()
""",
}
LOG_OUT = """
realtime.rooms.members = lambda room: ("closed meanwhile",)
client = app.test_client()
client.post("/login", data={"name": "ada", "password": "ada"})
answer = client.post("/logout")
print(answer.status_code, answer.location)
"""


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_who_logs_out_while_a_page_closes_is_logged_out(app: str) -> None:
    module("flask_login")
    code = f"{app}\n{LOG_OUT}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (0, "302 /login\n"), done.stderr


# The other commands of the docstrings --------------------------------------------------------------------------


def test_the_chat_runs_with_the_reloader_and_the_debugger(visit: Visit) -> None:
    with started("flask_chat.py", "flask --app", "--port", "0") as program:
        say(enter(visit(program.wait_for(AT)[1]), "Ada", "tea"), "while I write it")
        program.stop()
    complain_of_faults(program.text)


def test_the_factory_is_served_by_gunicorn(visit: Visit) -> None:
    module("flask_login")
    with started("flask_factory/__init__.py", "gunicorn", "-b", "127.0.0.1:0") as program:
        page = log_in(visit(program.wait_for(AT)[1]), "ada")
        is_open(page)
        page.click('[data-name="Curry"]')
        votes(page, "Curry", 1)
        program.stop()
    complain_of_faults(program.text)


# background_jobs.py -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs() -> Iterator[str]:
    with started("background_jobs.py", "python", "--port", "0") as program:
        yield program.wait_for(AT)[1]
        assert program.stop() == 0
    complain_of_faults(program.text)


def start_job(page: Page, below: int) -> None:
    page.fill("#below", str(below))
    page.press("#below", "Enter")


def test_a_job_tells_how_far_it_is_and_can_be_cancelled(visit: Visit, jobs: str) -> None:
    page = visit(jobs)
    is_open(page)
    start_job(page, 1_000_000)
    page.wait_for_selector(".job[data-state=finished] .what:has-text('78,498 found in')")
    start_job(page, 1_000_000_000)
    page.wait_for_selector(".job[data-state=running] .what:has-text('%')")
    page.click(".job[data-state=running] button")
    page.wait_for_selector(".job[data-state=cancelled] .what:text-is('Cancelled')")
    page.wait_for_selector("#cancelled:text-is('1')")  # by the greenlet that tells everybody
    assert unnamed(page) == []
    start_job(page, 1_000_000_000)
    page.wait_for_selector(".job[data-state=running] .what:has-text('%')")
    other = visit(jobs, viewport=PHONE)
    other.wait_for_selector("#running:text-is('1')")
    page.close()
    other.wait_for_selector("#cancelled:text-is('2')")
    other.wait_for_selector("#running:text-is('0')")
    other.wait_for_selector("#pages:text-is('1')")
    assert fits(other)


def test_a_notice_by_whomever_is_seen_by_everybody(visit: Visit, jobs: str) -> None:
    ada, grace = visit(jobs), visit(jobs)
    for page in (ada, grace):
        is_open(page)
    ada.fill("#text", "from a <page>")
    ada.press("#text", "Enter")
    grace.wait_for_selector('#notices span:text-is("from a <page>")')
    assert post(f"{jobs}/notices", text="from a script")[0] == 201
    for page in (ada, grace):
        page.wait_for_selector('#notices span:text-is("from a script")')
    assert post(f"{jobs}/notices", text="x" * 201) == (400, {"pages": 0})


def test_what_is_written_while_a_notice_is_sent_stays(visit: Visit, jobs: str) -> None:
    page = visit(jobs)
    is_open(page)
    assert what_was_written(page, "#notice-form", "#text", "one") == "another"
    page.wait_for_selector('#notices span:text-is("one")')


def post(url: str, **fields: str) -> tuple[int, Any]:
    try:
        answer = urllib.request.urlopen(url, urllib.parse.urlencode(fields).encode(), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, json.loads(answer.read())


# gunicorn_app.py ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["-k gevent", "-k geventwebsocket"])
def processes(request: pytest.FixtureRequest) -> Iterator[str]:
    module("geventwebsocket")
    with started("gunicorn_app.py", request.param, "-b", "127.0.0.1:0", "-c", str(GUNICORN)) as program:
        url = program.wait_for(AT)[1]
        for _ in range(4):  # gunicorn loses a signal for a worker that comes before, and kills it 30 s later
            program.wait_for("ready to serve")
        yield url
        program.stop()
    complain_of_faults(program.text)


@pytest.mark.parametrize("processes", ["-k gevent"], indirect=True)
def test_pages_chat_whichever_process_serves_them(visit: Visit, processes: str) -> None:
    pages = [visit(processes) for _ in range(2)]
    for number, page in enumerate(pages):
        page.wait_for_selector("#people li .you")
        page.fill("#name", f"Person {number}")
        page.click("#name-form button")
    pages[0].wait_for_selector('#people li:has-text("Person 1")')
    pages[0].fill("#text", "hello")
    pages[0].press("#text", "Enter")
    pages[1].wait_for_selector('.entry:not(.mine) .body:text-is("hello")')


def test_many_clients_of_several_processes_share_a_room(processes: str) -> None:
    connect = module("websockets.sync.client").connect
    url = processes.replace("http", "ws") + "/realtime"
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(url, max_queue=None, open_timeout=PATIENCE)) for _ in range(16)]
        for client in clients:
            client.send(json.dumps({"type": "chat:message", "room": "all", "payload": "here", "ack": 1}))
            answer = until(client, lambda message: message["type"] == "system:ack")
            assert answer["payload"]["result"]["process"] != os.getpid()
        deadline = time.monotonic() + PATIENCE
        while members_of_all(clients[0]) < len(clients):  # the process of the first hears of the others' clients
            assert time.monotonic() < deadline
        clients[0].send(json.dumps({"type": "chat:message", "room": "all", "payload": "last"}))
        for client in clients[1:]:
            until(client, lambda message: message["type"] == "chat:message" and message["payload"]["body"] == "last")


def members_of_all(client: ClientConnection) -> int:
    client.send('{"type": "room:list", "ack": "how many"}')
    answer = until(client, lambda message: message["payload"].get("ack") == "how many")
    return next(room["members"] for room in answer["payload"]["result"]["rooms"] if room["name"] == "all")


def until(client: ClientConnection, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = json.loads(client.recv(timeout=PATIENCE))
        if wanted(message):
            return message


def test_every_example_is_in_the_readme() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert Path(EXAMPLES / "templates").is_dir()
    for name in ("flask_chat.py", "flask_factory/", "gunicorn_app.py", "background_jobs.py"):
        assert f"`examples/{name}`" in readme
