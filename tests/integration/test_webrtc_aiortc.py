"""An independent implementation, aiortc, in a call with a browser: in both parts of the negotiation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program
from requirements import module
from webrtc_rig import Meeting, launched, start_server

MESSAGES = 1000

# The ids decide who is polite, and they are random: with one in the middle nobody has to try long for either part.
TAKE_A_MIDDLE_ID = """async () => {
    await client.ready;
    while (client.id < "6" || client.id > "a") {
        const open = new Promise((resolve) => client.on("client:state", ({ name }) => name === "open" && resolve()));
        client.reconnect();
        await open;
    }
}"""


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    program, port = start_server(tmp_path)
    with program, launched() as launch:
        meeting = Meeting(launch(), port)
        yield meeting
        meeting.close()
        program.stop()


@pytest.mark.parametrize("part", ["polite", "impolite"])
def test_aiortc_talks_with_a_browser(meeting: Meeting, part: str) -> None:
    module("aiortc")
    page = meeting.page(session=False)  # that each connection has an id of its own
    page.evaluate(TAKE_A_MIDDLE_ID)
    page.evaluate("enter('room', {channels: ['chat'], metadata: {name: 'browser'}})")
    url = f"ws://127.0.0.1:{meeting.port}/realtime"
    with Program(Path(__file__).parent / "aiortc_peer.py", url, "room", part) as aiortc:
        aiortc.wait_for(f"^joined {part}$")
        page.wait_for_function("[...call.peers.values()].some(settled)")
        page.evaluate("window.other = [...call.peers.values()].find(settled)")
        assert page.evaluate("[other.polite, other.metadata]") == [part == "impolite", {"name": "aiortc"}]
        page.evaluate(
            """async (count) => {
                const channel = await other.channel("chat");
                for (let n = 0; n < count; n++) channel.send(`${n}`);
            }""",
            MESSAGES,
        )
        page.wait_for_function("(count) => other.heard.length >= count", arg=MESSAGES)
        assert page.evaluate("other.heard") == [f"echo {number}" for number in range(MESSAGES)]
        page.evaluate("call.addStream(picture())")  # the browser offers, whatever its part
        aiortc.wait_for("^frame ")
        assert page.evaluate("[other.state, other.connection.signalingState]") == ["connected", "stable"]
        page.evaluate("void call.leave()")
        aiortc.wait_for("^left$")
        assert page.evaluate("seen.errors") == []
        assert not [line for line in aiortc.output if line.startswith("error")]
