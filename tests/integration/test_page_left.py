"""Pages that are left, in every way Chromium has: gone at once for others; and those that are gone back to."""

from __future__ import annotations

import json
import os
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from programs import PATIENCE, Program
from requirements import chromium, module
from webrtc_rig import ARGUMENTS, LISTENING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

TIMES = int(os.environ.get("REALTIME_PAGES_LEFT", "2"))  # pages for each way to leave one
MANY = "one of many"

SERVER = '''
import json
import gevent
from realtime import Limits, RealtimeKernel, WebSocketTransport

PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>ours</title>
<script type="module">
import { connect } from "/realtime/client.js";
const client = (window.client = connect("/realtime", { backoff: { min: 0.05, max: 0.2 } }));
const say = (value) => client.send("say", value);
const numbers = [];
client.on("n", (n) => { numbers.push(n); if (n < 0) say(numbers); });
client.on("client:state", ({ name, resumed }) => name === "open" && say(["open", resumed]));
client.on("client:recovered", ({ recovered, replayed }) => say(["recovered", recovered, replayed]));
addEventListener("pageshow", ({ persisted }) => persisted && say(["shown", client.state]));
await client.join("chat:tea");
if (location.search !== "?calm") await client.join("chat:busy");
say("joined");
</script>"""
AWAY = "<!doctype html><link rel='icon' href='data:,'><title>another</title>"
count = 0

def page(environ, start_response):
    global count
    path = environ["PATH_INFO"]
    if path == "/tell":
        for _ in range(5):
            kernel.broadcast({"type": "n", "payload": count}, "chat:tea")
            count += 1
    elif path == "/end":
        kernel.broadcast({"type": "n", "payload": -1}, "chat:tea")
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [(PAGE if path == "/" else AWAY).encode()]

transport = WebSocketTransport(0, "/realtime", app=page, allowed_origins="*")
kernel = RealtimeKernel([transport], limits=Limits(session_grace=600.0))
kernel.rooms.configure("chat:tea", join=True, history=100, recover=True)
kernel.rooms.configure("chat:busy", join=True)

@kernel.on("say")
def say(message, context, toolkit):
    print("said", json.dumps(message.payload), flush=True)

@kernel.on("client:disconnected")
def left(message, context, toolkit):
    print("left", message.payload["code"], kernel.stats()["sessions"]["away"], flush=True)

def babble():
    while True:  # a page always has something that it has not read
        kernel.broadcast({"type": "babble", "payload": "x" * 500}, "chat:busy", volatile=True)  # nobody is too slow
        gevent.sleep(0.001)

kernel.start()
gevent.spawn(babble).join()
'''


class Site:
    """The server, as the test sees it."""

    def __init__(self, program: Program, home: str) -> None:
        self.program = program
        self.home = home
        self._told: dict[str, deque[str]] = {"said": deque(), "left": deque()}  # not asked for yet

    def _next(self, wanted: str) -> str:
        """Return the next line of a kind: a page's last may come after the first of the page that follows it."""
        while not self._told[wanted]:
            kind, rest = self.program.wait_for(r"^(said|left) (.*)").groups()
            self._told[kind].append(rest)
        return self._told[wanted].popleft()

    def said(self) -> Any:
        """What a page says next, apart from what it says many times."""
        while (said := json.loads(self._next("said"))) == MANY:
            pass
        return said

    def left(self) -> tuple[int, int]:
        """The code with which somebody leaves, and how many the server waits for."""
        code, away = map(int, self._next("left").split())
        return code, away

    def open(self, path: str) -> None:
        with urllib.request.urlopen(self.home + path, timeout=PATIENCE) as answer:
            answer.read()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    script = tmp_path_factory.mktemp("site") / "server.py"
    script.write_text(SERVER)
    with Program(script) as program:
        yield Site(program, program.wait_for(LISTENING)[0].removeprefix("at "))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """As people have it: it keeps pages for who goes back to them."""
    path = chromium()
    with module("playwright.sync_api").sync_playwright() as playwright:
        kept = ["--disable-back-forward-cache"]
        launched = playwright.chromium.launch(
            executable_path=path, args=ARGUMENTS, ignore_default_args=kept, timeout=PATIENCE * 1000
        )
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context()
    made.set_default_timeout(PATIENCE * 1000)
    yield made
    made.close()


def opened(site: Site, context: BrowserContext, search: str = "") -> Page:
    page = context.new_page()
    page.goto(site.home + search)
    assert [site.said(), site.said()] == [["open", False], "joined"]
    return page


def close_target(page: Page) -> None:
    """Close a tab as a person does."""
    session = page.context.new_cdp_session(page)
    target = session.send("Target.getTargetInfo")["targetInfo"]["targetId"]
    browser = page.context.browser
    assert browser is not None
    browser.new_browser_cdp_session().send("Target.closeTarget", {"targetId": target})


def other_origin(page: Page) -> None:
    page.goto(page.url.replace("127.0.0.1", "localhost") + "another")


WAYS: dict[str, Callable[[Page], object]] = {
    "reloaded": lambda page: page.reload(wait_until="commit"),
    "another page": lambda page: page.goto(page.url + "another"),
    "another origin": other_origin,
    "about:blank": lambda page: page.goto("about:blank"),
    "closed": lambda page: page.close(),
    "closed, with its handlers": lambda page: page.close(run_before_unload=True),
    "tab closed": close_target,
    "window closed": lambda page: page.context.close(),
}


@pytest.mark.parametrize("way", WAYS)
def test_others_see_at_once_that_a_page_was_left(site: Site, browser: Browser, way: str) -> None:
    for turn in range(TIMES):
        context = browser.new_context()
        try:
            page = opened(site, context)
            if turn % 2:
                page.evaluate("(text) => { for (let n = 0; n < 50; n++) client.send('say', text); }", MANY)
            WAYS[way](page)
            code, away = site.left()
            assert (code in (1000, 1001), away) == (True, 0), code
            if way == "reloaded":
                assert [site.said(), site.said()] == [["open", False], "joined"]
        finally:
            context.close()
        if way == "reloaded":
            assert site.left()[1] == 0


def test_a_page_that_is_gone_back_to_goes_on_with_its_rooms(site: Site, context: BrowserContext) -> None:
    page = opened(site, context, "?calm")
    for turn in range(3):
        site.open("tell")
        page.goto(site.home + "another")
        assert site.left() == (1000, 0)
        site.open("tell")
        page.evaluate("setTimeout(() => history.back())")
        assert [site.said(), site.said()] == [["shown", "connecting"], ["open", False]], turn
        event, recovered, replayed = site.said()
        assert (event, recovered, replayed in range(5, 11)) == ("recovered", True, True), turn  # 5 it may have had
        page = context.pages[0]
    site.open("end")
    assert site.said() == [*range(30), -1]
