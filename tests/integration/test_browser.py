"""The page of the basic example in a real browser, used by two people at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ports import free_ports
from programs import EXAMPLES, PATIENCE, Program, basic_copy
from requirements import chromium, module

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LISTENING = r"at (http://127\.0\.0\.1:\d+/)"

Visit = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with module("playwright.sync_api").sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=PATIENCE * 1000)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a running copy of basic.py."""
    with Program(basic_copy(tmp_path_factory.mktemp("basic"))) as program:
        yield program.wait_for(LISTENING)[1]
        program.stop()


@pytest.fixture
def url(basic: str) -> str:
    """The same page, once whoever an earlier test let visit it has left."""
    address = f"{basic.replace('http', 'ws')}realtime"
    with module("websockets.sync.client").connect(address, open_timeout=PATIENCE) as client:
        client.send('{"type": "room:list", "ack": 1}')
        while True:  # everybody is told when a room has lost somebody
            message = json.loads(client.recv(timeout=PATIENCE))
            told = message["payload"]["result"] if message["type"] == "system:ack" else message["payload"]
            if not told["total"]:
                return basic


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Open the page as another person; every script error fails the test."""
    contexts, errors = [], []

    def open_page(url: str, name: str | None = None, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
        page.goto(url)
        page.wait_for_selector("#people li .you")
        if name is not None:
            page.fill("#name", name)
            page.click("#name-form button")
            page.wait_for_selector(f'#people li:has(.you):has-text("{name}")')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def say(page: Page, text: str) -> None:
    """Write a message and see it acknowledged."""
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(f'.entry.mine:not(.pending) .body:text-is("{text}")')


def heard(page: Page, text: str) -> None:
    page.wait_for_selector(f'.entry:not(.mine) .body:text-is("{text}")')


def join(page: Page, room: str) -> None:
    page.fill("#join-name", room)
    page.click("#join-form button")
    page.wait_for_selector(f'#joined .room[aria-current] .label:text-is("{room}")')


def people(page: Page) -> list[str]:
    return page.locator("#people .label").all_inner_texts()


def send_raw(page: Page, text: str) -> None:
    if page.get_attribute("#raw", "open") is None:
        page.click("#raw summary")
    page.fill("#raw-text", text)
    page.click("#raw-send")


def frames(page: Page, way: str, type_: str) -> list[Any]:
    """Return the frames of a type in the raw panel, parsed from what is shown."""
    shown = page.locator(f'.frame:has(.way:text-is("{way}")):has(.type:text-is("{type_}")) pre').all_inner_texts()
    return [json.loads(text) for text in shown]


def test_two_people_chat_and_see_each_others_names(url: str, visit: Visit) -> None:
    ada, grace = visit(url, "Ada"), visit(url, "Grace")
    ada.wait_for_selector('#people li:has-text("Grace")')
    assert people(ada) == people(grace) == ["Ada", "Grace"]
    assert ada.inner_text("#people-count") == "2"
    say(ada, "good morning")
    heard(grace, "good morning")
    assert grace.inner_text(".entry:not(.mine) .who span") == "Ada"
    for number in range(20):
        say(grace, f"number {number}")
    heard(ada, "number 19")
    assert ada.locator(".entry:not(.mine) .body").all_inner_texts() == [f"number {number}" for number in range(20)]
    assert ada.locator(".entry.mine .body").count() == 1  # nobody hears herself


def test_presence_follows_names_departures_and_closed_windows(url: str, visit: Visit) -> None:
    ada, grace = visit(url, "Ada"), visit(url, "Grace")
    for page in (ada, grace):
        join(page, "presence")
    ada.wait_for_selector('#people li:has-text("Grace")')
    grace.fill("#name", "Admiral Hopper")
    grace.press("#name", "Enter")
    ada.wait_for_selector('.notice:text-is("Grace is now Admiral Hopper")')
    assert people(ada) == ["Ada", "Admiral Hopper"]
    grace.click("#leave")
    ada.wait_for_selector('.notice:text-is("Admiral Hopper left")')
    assert people(ada) == ["Ada"]
    join(grace, "presence")
    ada.wait_for_selector("#people li >> nth=1")
    grace.close()
    ada.wait_for_selector('.notice:text-is("Admiral Hopper disconnected")')
    assert people(ada) == ["Ada"]


def test_rooms_are_apart_and_one_in_the_background_counts_what_is_unread(url: str, visit: Visit) -> None:
    ada, grace = visit(url, "Ada"), visit(url, "Grace")
    join(ada, "tea")
    grace.click('#others .room:has-text("tea")')  # an open room is one click away
    grace.wait_for_selector('.room[aria-current]:has-text("tea")')
    join(ada, "coffee")
    say(grace, "in tea")
    unread = ada.wait_for_selector('#joined .room:has-text("tea") .unread')
    assert unread is not None
    assert unread.inner_text() == "1"
    assert ada.locator(".log .body").count() == 0
    ada.click('#joined .room:has-text("tea")')
    heard(ada, "in tea")
    assert ada.locator(".unread").count() == 0
    say(ada, "back in tea")
    heard(grace, "back in tea")


def test_a_room_is_entered_although_the_list_changes_while_it_is_pressed(url: str, visit: Visit) -> None:
    ada, grace = visit(url, "Ada"), visit(url, "Grace")
    join(ada, "tea")
    grace.hover('#others .room:has-text("tea")')
    grace.mouse.down()
    join(ada, "coffee")
    grace.wait_for_selector('#others .room:has-text("coffee")')
    grace.mouse.up()
    grace.wait_for_selector('.room[aria-current]:has-text("tea")')
    assert grace.locator("#others .label").all_inner_texts() == ["coffee"]


MARKUP = '<img src=x onerror="alert(1)"><script>alert(2)</script><b id="injected">bold</b>'


def test_markup_in_messages_names_and_rooms_is_text(url: str, visit: Visit) -> None:
    ada, grace = visit(url), visit(url)
    grace.fill("#name", MARKUP[:28])
    grace.press("#name", "Enter")
    for page in (ada, grace):
        page.fill("#join-name", MARKUP)
        page.click("#join-form button")
        page.wait_for_function("text => document.getElementById('room-title').textContent === text", arg=MARKUP)
    grace.fill("#text", MARKUP)
    grace.press("#text", "Enter")
    ada.wait_for_selector(".entry:not(.mine)")
    assert ada.inner_text(".entry:not(.mine) .body") == MARKUP
    assert ada.inner_text(".entry:not(.mine) .who span") == MARKUP[:28]
    assert MARKUP[:28] in people(ada)
    send_raw(grace, json.dumps({"type": "chat:message", "room": MARKUP, "payload": {"<i>": [MARKUP]}}))
    ada.wait_for_selector(".entry:not(.mine) >> nth=1")
    assert json.loads(ada.locator(".entry:not(.mine) .body").nth(1).inner_text()) == {"<i>": [MARKUP]}
    for page in (ada, grace):
        assert page.locator("#injected, body img, body script, .log b, .log i, .frame b, .frame img").count() == 0


def test_the_raw_panel_shows_every_frame_in_and_out(url: str, visit: Visit) -> None:
    ada, grace = visit(url, "Ada"), visit(url, "Grace")
    for page in (ada, grace):
        join(page, "raw")
    assert not ada.is_visible("#frames")
    ada.click("#raw summary")
    hello = {"type": "system:hello", "payload": {"session": True}}
    assert frames(ada, "↑ sent", "system:hello") == [hello]
    say(grace, "watch this")
    heard(ada, "watch this")
    (received,) = frames(ada, "↓ received", "chat:message")
    assert (received["payload"]["body"], received["room"]) == ("watch this", "raw")
    assert isinstance(received["timestamp"], int)
    meta = ada.locator('.frame:has(.type:text-is("chat:message")) .meta').inner_text()
    assert re.search(r"\d\d:\d\d:\d\d.\d{3}", meta)
    assert re.search(r"\d+ B", meta)
    counted, shown = ada.evaluate(  # at one moment: more frames may come
        "[document.getElementById('frame-count').textContent, document.querySelectorAll('.frame').length]"
    )
    assert int(counted) == shown


def test_raw_messages_go_out_as_they_are_and_errors_come_back_in_words(url: str, visit: Visit) -> None:
    page = visit(url)
    send_raw(page, '{"type": "room:list", "ack": 4711}')
    page.wait_for_selector('.frame:has(pre:has-text(\'"ack": 4711\')):has(.type:text-is("system:ack"))')
    assert frames(page, "↓ received", "system:ack")[-1]["payload"]["ack"] == 4711
    send_raw(page, "this is no JSON")
    page.wait_for_selector('#alert:has-text("bad_message")')
    send_raw(page, '{"type": "nobody:knows"}')
    page.wait_for_selector('#alert:has-text("unknown_type")')
    page.fill("#text", "x" * 4001)
    assert len(page.input_value("#text")) <= 4001
    say(page, "and the connection lives on")


def test_a_stopped_server_is_shown_and_the_page_comes_back_with_it(tmp_path: Path, visit: Visit) -> None:
    script = basic_copy(tmp_path, *free_ports(1))
    with Program(script) as program:
        url = program.wait_for(LISTENING)[1]
        ada, grace = visit(url, "Ada"), visit(url, "Grace")
        for page in (ada, grace):
            join(page, "resilient")
        say(ada, "before")
        heard(grace, "before")
        assert program.stop() == 0
    ada.wait_for_selector("#state[data-state=waiting]")
    ada.wait_for_selector('.notice:has-text("The server is restarting")')
    assert ada.is_disabled("#send")
    assert people(ada) == []
    ada.fill("#text", "written meanwhile")
    with Program(script) as program:
        program.wait_for(LISTENING)
        for page in (ada, grace):
            page.wait_for_selector("#state[data-state=open]")
            page.wait_for_selector('#people:has-text("Ada"):has-text("Grace")')
        assert ada.inner_text("#state-text") == "Connected"
        assert ada.inner_text("#room-title") == "resilient"
        assert ada.input_value("#text") == "written meanwhile"
        ada.click("#send")
        heard(grace, "written meanwhile")
        assert grace.locator('.body:text-is("before")').count() == 1  # what was said is still there
        program.stop()


SERVER = """
import sys
from realtime import RealtimeKernel, WebSocketTransport
sys.path.insert(0, {examples!r})
from console import open_console

kernel = RealtimeKernel(transports=[WebSocketTransport(port=0, path="/elsewhere")])

@kernel.on("close:me")
def close(message, context, toolkit):
    kernel.disconnect(context.id, **message.payload)

open_console(kernel)
kernel.run()
"""


@pytest.fixture
def closing_url(tmp_path: Path) -> Iterator[str]:
    """The page of a server that closes with the code a client asks for."""
    script = tmp_path / "server.py"
    script.write_text(SERVER.format(examples=str(EXAMPLES)))
    with Program(script) as program:
        yield program.wait_for(LISTENING)[1]
        program.stop()


def test_close_codes_decide_whether_the_page_comes_back(closing_url: str, visit: Visit) -> None:
    page = visit(closing_url)
    opened = []
    page.on("websocket", lambda websocket: opened.append(websocket.url))
    send_raw(page, '{"type": "close:me", "payload": {"code": 4008, "reason": "too slow"}}')
    page.wait_for_selector('.notice:has-text("Cut off for reading too slowly, reconnecting")')
    page.wait_for_selector("#people li .you")
    assert len(opened) == 1
    send_raw(page, '{"type": "close:me", "payload": {"code": 4013, "reason": "retry_after=600"}}')
    page.wait_for_selector("#state[data-state=waiting]")
    assert int(page.inner_text("#countdown").split()[1]) > 10  # the hint counts; backoff alone would be a second
    page.click("#reconnect")
    page.wait_for_selector("#people li .you")
    send_raw(page, '{"type": "close:me", "payload": {"code": 4503, "reason": "not today"}}')
    page.wait_for_selector("#state[data-state=closed]")
    assert page.inner_text("#state-text") == "Not allowed"
    assert page.inner_text("#countdown") == ""
    page.evaluate("dispatchEvent(new Event('online'))")
    assert page.get_attribute("#state", "data-state") == "closed"
    assert len(opened) == 2
    page.click("#reconnect")  # a person may try again
    page.wait_for_selector("#people li .you")


def test_a_reload_keeps_name_and_rooms(url: str, visit: Visit) -> None:
    page = visit(url, "Ada")
    join(page, "kept")
    page.reload()
    page.wait_for_selector('#people li:has-text("Ada"):has(.you)')
    page.wait_for_selector('#room-title:text-is("kept")')
    assert page.locator("#joined .label").all_inner_texts() == ["lobby", "kept"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844), (320, 568)], ids=["desktop", "phone", "small phone"])
def test_everything_fits_on_the_screen(url: str, visit: Visit, scheme: str, size: tuple[int, int]) -> None:
    page = visit(url, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    join(page, "w" * 255)
    page.fill("#text", "w" * 2000)
    page.press("#text", "Enter")
    page.wait_for_selector(".entry.mine:not(.pending)")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate("document.documentElement.scrollHeight") <= size[1]
    assert page.evaluate("document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth")
    for selector in ("#text", "#send", "#leave", "#name", ".entry .body >> nth=-1"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        assert box["y"] + box["height"] <= size[1]
    page.click("#leave")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) is (scheme == "dark")


def test_the_page_works_by_keyboard_alone_and_names_its_controls(url: str, visit: Visit) -> None:
    page = visit(url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'text'")
    page.keyboard.type("no mouse")
    page.keyboard.press("Enter")
    page.wait_for_selector('.entry.mine:not(.pending) .body:text-is("no mouse")')
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button")].filter(
            (control) => !(control.labels?.length || control.getAttribute("aria-label") || control.textContent.trim())
        ).map((control) => control.outerHTML)"""
    )
    assert unnamed == []
    for role in ("banner", "navigation", "main", "complementary", "log", "status", "alert"):
        assert page.get_by_role(role, include_hidden=True).count() >= 1, role


def test_the_conversation_can_be_held_under_raw_messages(visit: Visit) -> None:
    with Program(EXAMPLES / "conversation.py", "--port", "0") as program:
        page = visit(program.wait_for(LISTENING)[1])
        send_raw(page, '{"type": "pizza:order", "ack": 1}')
        page.click('.frame:has(.type:text-is("pizza:which")) button:text-is("Answer")')
        answer = json.loads(page.input_value("#raw-text"))
        answer["payload"]["result"] = "Diavola"
        send_raw(page, json.dumps(answer))
        page.wait_for_selector('.frame:has(.type:text-is("pizza:price"))')
        send_raw(page, '{"type": "pizza:confirm", "payload": "yes"}')
        page.wait_for_selector('.frame:has(.type:text-is("system:ack")):has-text("price")')
        results = [frame["payload"].get("result") for frame in frames(page, "↓ received", "system:ack")]
        assert {"pizza": "Diavola", "price": 11.0} in results
        program.stop()


def test_a_stream_can_be_watched_under_raw_messages(visit: Visit) -> None:
    with Program(EXAMPLES / "streaming.py", "--port", "0") as program:
        page = visit(program.wait_for(LISTENING)[1])
        send_raw(page, '{"type": "build:run", "payload": {"steps": 5}, "ack": 1}')
        page.wait_for_selector('.frame:has(.type:text-is("system:ack")):has-text("steps")')
        items = [frame["payload"]["item"]["progress"] for frame in frames(page, "↓ received", "system:stream")]
        assert items == [0.2, 0.4, 0.6, 0.8, 1.0]
        program.stop()
