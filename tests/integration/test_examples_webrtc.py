"""The video call of the examples, used by several people at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from programs import EXAMPLES, PATIENCE, Program, complain_of_faults
from webrtc_rig import launched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCRIPT = EXAMPLES / "webrtc_call.py"
LISTENING = r"at (http://127\.0\.0\.1:\d+/)"
PHONE = {"width": 390, "height": 844}
SCREENS = [{"width": 1280, "height": 800}, PHONE, {"width": 320, "height": 568}, {"width": 844, "height": 390}]

Enter = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as launch:
        yield launch()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Program(SCRIPT, "--port", "0") as program:
        yield program.wait_for(LISTENING)[1]
        assert program.stop() == 0
    complain_of_faults(program.text)


@pytest.fixture
def enter(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Enter]:
    """Enter the call as another person, in a room of this test's own; every script error fails the test."""
    contexts, errors = [], []

    def enter(name: str, *, camera: bool = True, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}?room={request.node.originalname}")
        page.fill("#name", name)
        page.set_checked("#use-camera", camera)
        page.press("#name", "Enter")
        page.wait_for_selector("#tiles .own")
        return page

    yield enter
    for context in contexts:
        context.close()
    assert errors == []


def tile(name: str) -> str:
    return f'.tile[data-state="connected"]:has(.label:text-is("{name}"))'


def sees(page: Page, name: str) -> None:
    """Wait until somebody's picture is shown, and goes on."""
    page.wait_for_selector(tile(name))
    shown = page.locator(f"{tile(name)} video").element_handle()
    page.wait_for_function("(video) => video.videoWidth > 0", arg=shown)
    before = page.evaluate("(video) => video.getVideoPlaybackQuality().totalVideoFrames", shown)
    page.wait_for_function(
        "([video, before]) => video.getVideoPlaybackQuality().totalVideoFrames > before + 3", arg=[shown, before]
    )


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def heard(page: Page, text: str) -> None:
    page.wait_for_selector(f'.entry:not(.mine) .body:text-is("{text}")')


def test_the_docstring_says_how_to_run_it() -> None:
    text = SCRIPT.read_text()
    assert "python examples/webrtc_call.py\n" in text
    assert "http://127.0.0.1:8768/" in text
    assert "default=8768" in text


def test_two_people_see_each_other_and_chat_with_a_camera_and_without(enter: Enter) -> None:
    ada, grace = enter("Ada", camera=True), enter("Grace", camera=False)
    sees(ada, "Grace")
    sees(grace, "Ada")
    for page in (ada, grace):
        sees(page, f"{'Ada' if page is ada else 'Grace'} (you)")
    say(ada, "good morning")
    heard(grace, "good morning")
    assert grace.inner_text(".entry:not(.mine) .who span") == "Ada"
    say(grace, "<b>good</b> morning")
    heard(ada, "<b>good</b> morning")
    assert "room=" in ada.url


STRANGER = """async (room) => {
    const { connect } = await import("/realtime/client.js");
    const canvas = document.createElement("canvas");
    canvas.getContext("2d").fillRect(0, 0, 9, 9);
    for (let attempt = 1; ; attempt++) {
        const name = `Stranger ${attempt}`;
        window.client = connect("/realtime");
        window.call = client.webrtc(room, { stream: canvas.captureStream(5), metadata: { name } });
        const met = new Promise((resolve) => call.on("peer", resolve));
        await call.join();
        if (!(await met).polite) return name; // then it is this side that makes the channels: none
        await call.leave();
        client.close();
    }
}"""


def test_somebody_without_a_chat_hinders_nobodys_and_missed_texts_say_so(
    enter: Enter, request: pytest.FixtureRequest
) -> None:
    ada, stranger = enter("Ada", camera=False), enter("Stranger", camera=False)
    stranger.click("#leave")
    ada.wait_for_selector('.notice:text-is("Stranger left")')
    name = stranger.evaluate(STRANGER, request.node.originalname)
    ada.wait_for_selector(tile(name))
    grace = enter("Grace", camera=False)
    sees(ada, "Grace")
    say(ada, "good morning")
    heard(grace, "good morning")
    stranger.evaluate("call.leave()")
    ada.wait_for_selector(f'.entry.mine .fate:text-is("Not delivered to {name}")')


def test_a_text_for_somebody_who_is_still_connecting_arrives(enter: Enter) -> None:
    ada = enter("Ada", camera=False)
    ada.evaluate(
        """() => {
            new MutationObserver((changes, observer) => {
                observer.disconnect();
                document.querySelector("#text").value = "welcome";
                document.querySelector("#composer").requestSubmit();
            }).observe(document.querySelector("#tiles"), { childList: true });
        }"""
    )
    grace = enter("Grace", camera=False)
    heard(grace, "welcome")
    assert ada.locator(".fate").count() == 0


def test_two_people_of_one_name_have_headings_of_their_own(enter: Enter) -> None:
    first, second, grace = (enter(name, camera=False) for name in ("Ann", "Ann", "Grace"))
    for page in (first, second, grace):
        page.wait_for_function("() => document.querySelectorAll('.tile[data-state=connected]').length === 3")
    for page, text in ((first, "one"), (first, "two"), (second, "three"), (second, "four")):
        say(page, text)
        heard(grace, text)
    starts = "[...document.querySelectorAll('.entry.first .body')].map(({ textContent }) => textContent)"
    assert grace.evaluate(starts) == ["one", "three"]
    first.wait_for_function(f"() => {starts}.length === 2")


def test_camera_and_microphone_can_be_switched_in_the_call(enter: Enter) -> None:
    ada, grace = enter("Ada", camera=False), enter("Grace", camera=False)
    sees(grace, "Ada")
    grace.wait_for_selector(f"{tile('Ada')}.is-muted")
    # a picture is sent smaller where the machine is too slow for it, but in the same shape: drawn 16:9, a camera's 4:3
    of_video = "(({ videoWidth, videoHeight }) => videoWidth / videoHeight)"
    shape = f"{of_video}(document.querySelector('.tile:not(.own) video'))"
    assert grace.evaluate(f"{shape} > 1.5")
    ada.click("#camera")
    ada.wait_for_selector("#camera[aria-pressed=true]")
    grace.wait_for_function(f"() => {shape} < 1.5")
    ada.click("#microphone")
    grace.wait_for_selector(f"{tile('Ada')}:not(.is-muted)")
    sounds = "document.querySelector('.tile:not(.own) video').srcObject.getAudioTracks().length"
    grace.wait_for_function(f"() => {sounds} === 1")
    ada.click("#microphone")
    grace.wait_for_selector(f"{tile('Ada')}.is-muted")
    ada.click("#camera")
    grace.wait_for_function(f"() => {shape} > 1.5")
    sees(grace, "Ada")


def test_who_leaves_goes_from_the_screen_and_may_come_again(enter: Enter) -> None:
    ada, grace, joan = (enter(name, camera=False) for name in ("Ada", "Grace", "Joan"))
    for name in ("Grace", "Joan"):
        ada.wait_for_selector(tile(name))
    grace.click("#leave")
    grace.wait_for_selector("#entrance:not([hidden])")
    ada.wait_for_selector('.notice:text-is("Grace left")')
    assert ada.locator(".tile").count() == 2
    joan.reload()
    ada.wait_for_selector('.notice:text-is("Joan left")')
    assert grace.input_value("#name") == "Grace"
    grace.click("#enter")
    sees(ada, "Grace")
    joan.click("#enter")
    sees(ada, "Joan")


def test_everything_fits_on_every_screen(enter: Enter) -> None:
    pages = [enter("W" * 40, camera=False, viewport=size) for size in SCREENS]
    for page in pages:
        page.wait_for_function("() => document.querySelectorAll('.tile[data-state=connected]').length === 4")
        size = page.viewport_size
        assert size is not None
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.evaluate("document.documentElement.scrollHeight") <= size["height"]
        for selector in ("#leave", "#microphone", "#camera", ".tile.own", "#title"):
            box = page.locator(selector).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= size["width"]
            assert box["y"] + box["height"] <= size["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_light_or_dark_as_the_system(enter: Enter, scheme: str) -> None:
    page = enter("Ada", camera=False, color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) is (scheme == "dark")


def test_on_a_phone_the_chat_lies_over_the_pictures_and_counts_what_is_unread(enter: Enter) -> None:
    ada, grace = enter("Ada", camera=False), enter("Grace", camera=False, viewport=PHONE)
    grace.wait_for_selector(tile("Ada"))
    ada.wait_for_selector(tile("Grace"))
    assert not grace.is_visible("#text")
    say(ada, "one")
    say(ada, "two")
    grace.wait_for_selector('#unread:text-is("2")')
    grace.click("#chat-open")
    assert grace.is_visible("#text")
    assert not grace.is_visible("#unread")
    heard(grace, "two")
    grace.press("#text", "Escape")
    assert not grace.is_visible("#text")


def test_the_page_works_by_keyboard_and_names_its_controls(enter: Enter) -> None:
    page = enter("Ada", camera=False)  # entered with the Enter key
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, button, video")].filter(
            (control) => !(control.labels?.length || control.getAttribute("aria-label") || control.textContent.trim())
        ).map((control) => control.outerHTML)"""
    )
    assert unnamed == []
    for role in ("banner", "main", "log", "status", "alert"):
        assert page.get_by_role(role, include_hidden=True).count() >= 1, role
    assert page.evaluate("document.activeElement.id") == "text"
    page.focus("#camera")
    page.keyboard.press("Space")
    page.wait_for_selector("#camera[aria-pressed=true]")
    page.focus("#leave")
    page.keyboard.press("Enter")
    page.wait_for_selector("#entrance:not([hidden])")


def test_the_picture_that_is_drawn_moves_unless_less_motion_is_wanted(enter: Enter) -> None:
    for motion, moves in (("no-preference", True), ("reduce", False)):
        page = enter(motion, camera=False, reduced_motion=motion)
        sees(page, f"{motion} (you)")
        moved = page.evaluate(
            """async () => {
                const video = document.querySelector(".own video");
                const canvas = new OffscreenCanvas(64, 36);
                const pen = canvas.getContext("2d", { willReadFrequently: true });
                const look = () => {
                    pen.drawImage(video, 0, 0, 64, 36);
                    return pen.getImageData(0, 0, 64, 36).data.join();
                };
                const frames = new Set();
                for (let n = 0; n < 12; n++) {
                    await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
                    frames.add(look());
                }
                return frames.size;
            }"""
        )
        assert (moved > 3) is moves
