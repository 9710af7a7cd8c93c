"""Pages in real browsers that call each other through the server, whatever happens on the way."""

from __future__ import annotations

import base64
import hmac
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ports import free_ports
from programs import complain_of_faults
from webrtc_rig import HEARTBEAT, Meeting, Proxy, everybody_met, launched, start_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MESSAGES = 1000
ALL_HEARD = f"call.peers.size && [...call.peers.values()].every(({{ heard }}) => heard.length >= {MESSAGES})"


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[[], Browser]]:
    with launched() as launch:
        yield launch


@pytest.fixture(scope="module")
def browser(launch: Callable[[], Browser]) -> Browser:
    return launch()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that many tests use, each with a room of its own."""
    program, port = start_server(tmp_path_factory.mktemp("calls"))
    with program:
        yield port
        program.stop()
    complain_of_faults(program.text)


@pytest.fixture
def meeting(browser: Browser, port: int) -> Iterator[Meeting]:
    meeting = Meeting(browser, port)
    yield meeting
    meeting.close()


@pytest.fixture
def room(request: pytest.FixtureRequest) -> str:
    name: str = request.node.name
    return name


@pytest.fixture
def brisk(tmp_path: Path) -> Iterator[int]:
    """The port of a server that pings often."""
    program, port = start_server(tmp_path, heartbeat=HEARTBEAT)
    with program:
        yield port
        program.stop()


def hears_everything(page: Page) -> bool:
    """Whether each peer's messages came all, and in order."""
    page.wait_for_function(ALL_HEARD)
    heard: list[list[str]] = page.evaluate("[...call.peers.values()].map(({ heard }) => heard)")
    return all(one == [f"{number}" for number in range(MESSAGES)] for one in heard)


def chats(one: Page, other: Page, text: str) -> None:
    """See a text arrive, and its answer."""
    for speaker, listener in ((one, other), (other, one)):
        speaker.evaluate("(text) => peer().channel('chat').then((channel) => channel.send(text))", text)
        listener.wait_for_function("(text) => peer()?.heard.includes(text)", arg=text)


def keep(page: Page) -> None:
    """Remember the peer, its connection and its channel, to see later whether they are still the same."""
    page.evaluate("peer().channel('chat').then((channel) => (window.kept = [peer(), peer().connection, channel]))")


def still_same(page: Page) -> bool:
    same: bool = page.evaluate(
        """async () => {
            const now = [peer(), peer().connection, await peer().channel("chat")];
            return now.every((one, n) => one === kept[n]);
        }"""
    )
    return same


def reconnected(page: Page, before: str = "") -> None:
    """Let a page connect to the server anew, and be back in the call: its peers look connected all the while."""
    back = "new Promise((resolve) => client.on('webrtc:peers', resolve))"
    page.evaluate(f"async () => {{ {before}; const back = {back}; client.reconnect(); await back; }}")


# Meeting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("people", [2, 4])
def test_pages_exchange_a_thousand_ordered_messages_each(meeting: Meeting, room: str, people: int) -> None:
    pages = meeting.enter(people, room=room)
    parts = "[...call.peers.values()].map(({ id, polite }) => [client.id, id, polite])"
    pairs = {(own, other): polite for page in pages for own, other, polite in page.evaluate(parts)}
    assert all(flag != pairs[other, own] for (own, other), flag in pairs.items())
    for page in pages:
        page.evaluate("(count) => say('chat', count)", MESSAGES)
    for page in pages:
        assert hears_everything(page)


def test_a_call_can_be_iterated_and_ends_the_iteration_when_left(meeting: Meeting, room: str) -> None:
    page = meeting.page()
    page.evaluate(
        """(room) => {
            window.names = [];
            window.call = client.webrtc(room, {metadata: {name: "first"}});
            window.ended = (async () => {
                for await (const peer of call) names.push(peer.metadata.name);
                return "ended";
            })();
        }""",
        room,
    )
    page.wait_for_function("call.peers")
    page.evaluate("call.join()")
    for count, name in enumerate(("Ada", "Grace"), 1):
        meeting.page().evaluate("([room, name]) => enter(room, {metadata: {name}})", [room, name])
        page.wait_for_function("(count) => names.length === count", arg=count)
    assert page.evaluate("names") == ["Ada", "Grace"]
    page.evaluate("void call.leave()")
    assert page.evaluate("ended") == "ended"
    assert page.evaluate("call.peers.size") == 0


def test_nobody_enters_who_may_not(meeting: Meeting) -> None:
    page = meeting.page()
    refused = "enter('closed room').catch(({ code }) => code)"
    assert page.evaluate(refused) == "forbidden"
    iterated = "(async () => { for await (const peer of client.webrtc('closed room')) peer; })()"
    assert page.evaluate(f"{iterated}.catch(({{ code }}) => code)") == "forbidden"
    assert page.evaluate("seen.closed.map(({ code }) => code)") == ["forbidden"]


def test_who_leaves_or_closes_the_page_is_gone_for_the_others_at_once(meeting: Meeting, room: str) -> None:
    ada, grace, joan = meeting.enter(3, room=room)
    grace.evaluate("call.leave()")
    ada.wait_for_function("seen.left.length === 1 && seen.left[0].state === 'closed'")
    assert grace.evaluate("client.state") == "open"
    joan.goto("about:blank")
    ada.wait_for_function("seen.left.length === 2 && call.peers.size === 0")


def test_a_wrong_option_is_named(meeting: Meeting) -> None:
    page = meeting.page()
    for arguments, said in {
        "''": "webrtc(room)",
        "'r', {chanels: []}": 'there is no "chanels"',
        "'r', {channels: 'chat'}": "webrtc(room, {channels})",
        "'r', {channels: ['chat', 'chat']}": "webrtc(room, {channels})",
        "'r', {namespace: 7}": "webrtc(room, {namespace})",
    }.items():
        thrown = page.evaluate(f"Promise.resolve().then(() => client.webrtc({arguments})).catch(String)")
        assert thrown.startswith("TypeError")
        assert said in thrown


# Negotiating -------------------------------------------------------------------------------------------------


def test_both_offering_at_the_same_moment_ends_connected_every_time(meeting: Meeting, room: str) -> None:
    with Proxy(meeting.port) as ada_proxy, Proxy(meeting.port) as grace_proxy:
        ada, grace = meeting.page(port=ada_proxy.port), meeting.page(port=grace_proxy.port)
        for page in (ada, grace):
            page.evaluate("(room) => enter(room)", room)
        for page in (ada, grace):
            page.wait_for_function("call.peers.size === 1")
        for count in range(1, 11):  # the first time, nothing was ever negotiated before
            for proxy in (ada_proxy, grace_proxy):
                proxy.hold()  # neither hears of the other's offer before its own is made
            for page in (ada, grace):
                page.evaluate("call.addStream(picture())")
            for page in (ada, grace):
                page.wait_for_function("peer().connection.signalingState === 'have-local-offer'")
            for proxy in (ada_proxy, grace_proxy):
                proxy.flow()
            for page in (ada, grace):
                page.wait_for_function("(count) => peer().tracks.length === count && settled(peer())", arg=count)
        for page in (ada, grace):
            assert page.evaluate("seesAll()") == [True]
            assert page.evaluate("seen.errors") == []
        polite = ada if ada.evaluate("peer().polite") else grace
        assert polite.evaluate("peer().signaling.filter((state) => state === 'have-remote-offer').length") >= 10
        ada.goto("about:blank")
        grace.goto("about:blank")


def test_pages_that_all_send_pictures_from_the_start_see_each_other(meeting: Meeting, room: str) -> None:
    pages = [meeting.page() for _ in range(4)]
    for page in pages:
        page.evaluate("(room) => void enter(room, {channels: ['chat'], stream: picture()})", room)
    for page in pages:
        page.wait_for_function("call?.peers.size === 3 && [...call.peers.values()].every(settled)")
        assert page.evaluate("seesAll()") == [True] * 3
        assert page.evaluate("seen.errors") == []


def test_tracks_are_replaced_without_negotiation_and_removed_with_one(meeting: Meeting, room: str) -> None:
    ada, grace = meeting.enter(2, room=room)
    ada.evaluate("call.addStream(window.first = picture())")
    grace.wait_for_function("peer().tracks.length === 1 && settled(peer())")
    changes = grace.evaluate("peer().signaling.length")
    ada.evaluate("call.replaceTrack(first.getTracks()[0], (window.second = picture()).getTracks()[0])")
    joan = meeting.page()  # who comes later gets the new one
    joan.evaluate("(room) => enter(room)", room)
    joan.wait_for_function("[...call.peers.values()].some(({ tracks }) => tracks.length === 1)")
    assert grace.evaluate("peer().signaling.length") == changes
    ada.evaluate("call.removeTrack(second.getTracks()[0])")
    grace.wait_for_function("peer().tracks[0].muted && settled(peer())")
    refused = ada.evaluate("call.replaceTrack(first.getTracks()[0], second.getTracks()[0]).catch(String)")
    assert refused.startswith("TypeError")


def test_a_network_without_room_delays_joining_and_offers_but_loses_neither(meeting: Meeting, room: str) -> None:
    with Proxy(meeting.port) as proxy:
        ada, grace = meeting.page(port=proxy.port, session=False), meeting.page()
        ada.evaluate(
            """() => {
                window.refused = [];
                window.flood = () => {
                    try {
                        for (let count = 0; ; count++) client.send("noise", "x".repeat(100_000));
                    } catch ({ code }) {
                        refused.push(code);
                    }
                };
                client.on("client:state", ({ name }) => name === "open" && flood()); // before the call hears of it
            }"""
        )
        for page in (ada, grace):
            page.evaluate("(room) => enter(room, {channels: ['chat']})", room)
        everybody_met([ada, grace])
        before = ada.evaluate("client.id")
        reconnected(ada, "window.refused = []")
        grace.wait_for_function("(before) => !call.peers.has(before)", arg=before)
        everybody_met([ada, grace])
        assert ada.evaluate("refused") == ["queue_full"]
        proxy.hold()
        ada.evaluate("window.flooding = setInterval(flood, 20), window.waiting = [-1, -2]")
        # until the buffers on the way are full, too
        ada.wait_for_function(
            """() => {
                waiting.push(client.socket.bufferedAmount);
                return new Set(waiting.slice(-20)).size === 1;
            }"""
        )
        ada.evaluate("clearInterval(flooding), call.addStream(picture())")
        ada.wait_for_function("peer().connection.signalingState === 'have-local-offer'")
        proxy.flow()
        grace.wait_for_function("peer().tracks.length === 1 && settled(peer())")
        ada.wait_for_function("settled(peer())")
        assert ada.evaluate("[seen.errors, seen.closed]") == [[], []]
        ada.goto("about:blank")


def test_one_side_cannot_open_data_channels_without_end(meeting: Meeting, room: str) -> None:
    ada, grace = meeting.enter(2, room=room)
    ada.evaluate("window.told = []; void peer().on('channel', (channel) => told.push(channel))")  # "chat" at once
    grace.evaluate("window.many = Array.from({length: 300}, () => peer().connection.createDataChannel('same'))")
    count = "(state) => many.filter(({ readyState }) => readyState === state).length"
    ada.wait_for_function("seen.errors.length === 237 && told.length === 64")
    grace.wait_for_function(f"({count})('open') === 63 && ({count})('closed') === 237")
    grace.evaluate("many.find(({ readyState }) => readyState === 'open').close()")
    grace.wait_for_function(f"({count})('closed') === 238")
    ada.wait_for_function("told.some(({ readyState }) => readyState === 'closed')")
    grace.evaluate("many.push(peer().connection.createDataChannel('same'))")
    ada.wait_for_function("told.length === 65")
    chats(ada, grace, "one of the others is still there")


SPOILER = """async ([room, spoiled]) => {
    window.offers = 0;
    client.on("webrtc:offer", async ({ from: target, negotiation, description }) => {
        if (++offers <= spoiled) {
            description = { type: "answer", sdp: "v=0\\r\\nnonsense" };
            return client.send("webrtc:answer", { room, target, negotiation, description });
        }
        const connection = new RTCPeerConnection();
        connection.onicecandidate = ({ candidate }) =>
            candidate && client.send("webrtc:candidate", { room, target, negotiation, candidate });
        await connection.setRemoteDescription(description);
        await connection.setLocalDescription();
        client.send("webrtc:answer", { room, target, negotiation, description: connection.localDescription });
    });
    await client.call("webrtc:join", { room });
}"""


@pytest.mark.parametrize(("spoiled", "state"), [(2, "connected"), (9, "failed")])
def test_an_answer_of_no_use_is_asked_for_again_a_few_times(
    meeting: Meeting, room: str, spoiled: int, state: str
) -> None:
    ada, spoiler = meeting.page(), meeting.page()
    ada.evaluate("(room) => enter(room, {stream: picture()})", room)
    spoiler.evaluate(SPOILER, [room, spoiled])
    ada.wait_for_function("(state) => peer()?.state === state", arg=state)
    if state == "connected":
        assert ada.evaluate("peer().connection.signalingState") == "stable"
    # each answer of no use is told, and answered by another offer, until there were three in a row
    history = ada.evaluate("[seen.errors, seen.states, peer().states, peer().signaling]")
    assert len(history[0]) == min(spoiled, 3), history
    assert spoiler.evaluate("offers") >= 3, history


def test_an_ice_restart_keeps_the_channel(meeting: Meeting, room: str) -> None:
    ada, grace = meeting.enter(2, room=room)
    for page in (ada, grace):
        keep(page)
    for page in (ada, grace):
        before = ada.evaluate("ufrag(peer())"), grace.evaluate("ufrag(peer())")
        page.evaluate("peer().connection.restartIce()")
        for one, old in zip((ada, grace), before, strict=True):
            one.wait_for_function("(old) => ufrag(peer()) !== old && settled(peer())", arg=old)
        chats(ada, grace, f"after {before}")
    assert still_same(ada)
    assert still_same(grace)


def test_a_failed_connection_restarts_with_fresh_credentials_and_is_given_up_after_a_while(
    meeting: Meeting, room: str
) -> None:
    ada, grace = meeting.page(), meeting.page()
    ada.clock.install()
    ada.reload()
    for page in (ada, grace):
        page.evaluate("(room) => enter(room, {channels: ['chat']})", room)
    everybody_met([ada, grace])
    ada.clock.pause_at(ada.evaluate("Date.now()") / 1000 + 1)  # from here on it goes as the test says
    ada.evaluate(
        """() => {
            window.lists = 0;
            client.on("webrtc:peers", () => lists++);
            Object.defineProperty(peer().connection, "connectionState", { value: "failed", configurable: true });
        }"""
    )
    failed = "peer().connection.dispatchEvent(new Event('connectionstatechange'))"
    before = ada.evaluate("ufrag(peer())")
    ada.evaluate(failed)
    for count in range(1, 6):
        ada.wait_for_function("(before) => ufrag(peer()) !== before && peer().state === 'reconnecting'", arg=before)
        assert ada.evaluate("lists") == count
        before = ada.evaluate("ufrag(peer())")
        ada.evaluate(failed)  # says so again, and is not tried again before its time
        grace.wait_for_function("settled(peer())")
        ada.wait_for_function("peer().connection.signalingState === 'stable'")
        ada.clock.fast_forward(21_000)
    ada.wait_for_function("peer().state === 'failed'")
    assert ada.evaluate("[lists, ufrag(peer())]") == [5, before]
    ada.evaluate("delete peer().connection.connectionState")
    ada.evaluate(failed)  # as it is now: connected
    chats(ada, grace, "it was only pretended")
    assert ada.evaluate("peer().state") == "connected"


def test_connections_get_the_credentials_of_the_server_and_fresh_ones_to_restart(
    tmp_path: Path, browser: Browser
) -> None:
    secret, lifetime = "shared with the TURN server", 600
    turn = {"ice_servers": [{"urls": "turn:127.0.0.1:9"}], "turn_secret": secret, "turn_ttl": lifetime}
    program, port = start_server(tmp_path, **turn)
    meeting = Meeting(browser, port)
    with program:
        ada, grace = meeting.enter(2)
        expiries = [_turn_expiry(page, secret) for page in (ada, grace)]
        ada.wait_for_function("(expiry) => Date.now() / 1000 >= expiry", arg=expiries[0] - lifetime + 1)
        ada.evaluate(
            """() => {
                const { connection } = peer();
                Object.defineProperty(connection, "connectionState", { value: "failed", configurable: true });
                window.before = ufrag(peer());
                connection.dispatchEvent(new Event("connectionstatechange"));
                delete connection.connectionState;
            }"""
        )
        ada.wait_for_function("ufrag(peer()) !== before && settled(peer())")
        assert _turn_expiry(ada, secret) > expiries[0]
        assert _turn_expiry(grace, secret) == expiries[1]
        meeting.close()
        program.stop()


def _turn_expiry(page: Page, secret: str) -> int:
    """Check what a connection has for its TURN server, as coturn does; return when it expires."""
    server, *others = page.evaluate("peer().connection.getConfiguration().iceServers")
    assert [server["urls"], others] == [["turn:127.0.0.1:9"], []]
    digest = hmac.digest(secret.encode(), server["username"].encode(), "sha1")
    assert server["credential"] == base64.b64encode(digest).decode()
    return int(server["username"].partition(":")[0])


def test_a_connection_that_really_failed_is_restarted_and_keeps_its_channel(
    launch: Callable[[], Browser], meeting: Meeting, room: str
) -> None:
    frozen = launch()
    ada, grace = meeting.page(), meeting.page(browser=frozen)
    for page in (ada, grace):
        page.evaluate("(room) => enter(room, {channels: ['chat']})", room)
    everybody_met([ada, grace])
    for page in (ada, grace):
        keep(page)
        page.evaluate(
            """() => {
                const { connection } = peer();
                window.before = ufrag(peer());
                window.went = [];
                connection.addEventListener("connectionstatechange", () => went.push(connection.connectionState));
            }"""
        )
    network = _process(frozen, "network.mojom.NetworkService")
    os.kill(network, signal.SIGSTOP)  # nothing leaves this browser and nothing reaches it
    try:
        ada.wait_for_function("went.includes('failed')", timeout=60_000)
        assert ada.evaluate("peer().state") == "reconnecting"
    finally:
        os.kill(network, signal.SIGCONT)
    for page in (ada, grace):
        page.wait_for_function("ufrag(peer()) !== before && settled(peer())", timeout=60_000)
    chats(ada, grace, "as before")
    assert still_same(ada)
    assert still_same(grace)


RAW_CALLER = """async (room) => {
    const { peers: [{ id }] } = await client.call("webrtc:join", { room });
    window.begin = async () => {
        window.connection?.close();
        window.connection = new RTCPeerConnection();
        window.channel = connection.createDataChannel("raw");
        connection.onicecandidate = ({ candidate }) => client.send("webrtc:candidate", { target: id, candidate });
        await connection.setLocalDescription();
        client.send("webrtc:offer", { target: id, description: connection.localDescription });
    };
    client.on("webrtc:answer", ({ description }) => connection.setRemoteDescription(description));
    client.on("webrtc:candidate", ({ candidate }) => connection.addIceCandidate(candidate).catch(() => {}));
    await begin();
}"""


def test_who_begins_anew_without_leaving_and_numbers_nothing_is_met_as_a_new_peer(meeting: Meeting, room: str) -> None:
    ada, raw = meeting.page(), meeting.page()
    ada.evaluate("(room) => enter(room)", room)
    raw.evaluate(RAW_CALLER, room)
    for count in range(3):
        raw.wait_for_function("channel.readyState === 'open'")
        raw.evaluate("channel.send('hello')")
        ada.wait_for_function("peer()?.heard.includes('hello')")
        assert ada.evaluate("[seen.left.length, call.peers.size, seen.errors]") == [count, 1, []]
        raw.evaluate("begin()")
        ada.wait_for_function("(count) => seen.left.length > count", arg=count)


# Losing each other -------------------------------------------------------------------------------------------


def test_a_page_that_reloads_is_back_in_the_call(meeting: Meeting, room: str) -> None:
    ada, grace, joan = meeting.enter(3, room=room)
    grace.reload()
    for page in (ada, joan):
        page.wait_for_function("seen.left.length === 1 && call.peers.size === 1")
    grace.evaluate("(room) => enter(room, {channels: ['chat']})", room)
    everybody_met([ada, grace, joan])
    for page in (ada, grace, joan):
        page.evaluate("(count) => say('chat', count)", MESSAGES)
    assert hears_everything(grace)


def test_the_server_tells_of_a_killed_browser_when_its_connection_ends(
    launch: Callable[[], Browser], meeting: Meeting, room: str
) -> None:
    ada, joan = meeting.enter(2, room=room)
    doomed = launch()
    grace = meeting.page(browser=doomed)
    grace.evaluate("(room) => enter(room, {channels: ['chat']})", room)
    everybody_met([ada, joan, grace])
    name = grace.evaluate("client.id")
    for page in (ada, joan):
        page.evaluate("window.missed = []; void client.on('webrtc:bye', ({ from }) => missed.push(from))")
    os.kill(_process(doomed, "browser"), signal.SIGKILL)
    for page in (ada, joan):  # long before the server's first ping
        page.wait_for_function("(name) => missed.includes(name)", arg=name)
        assert page.evaluate("(name) => call.peers.get(name)?.state !== 'connected'", name)


def _process(browser: Browser, kind: str) -> int:
    """Return the id of one of a browser's processes."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    (pid,) = (int(process["id"]) for process in processes if process["type"] == kind)
    return pid


def test_the_others_learn_within_the_pong_deadline_that_somebody_is_frozen_and_take_her_back(
    meeting: Meeting, brisk: int
) -> None:
    meeting.port = brisk
    with Proxy(brisk) as proxy:
        ada, grace = meeting.page(), meeting.page(port=proxy.port)
        for page in (ada, grace):
            page.evaluate("enter('room', {channels: ['chat']})")
        everybody_met([ada, grace])
        for page in (ada, grace):
            keep(page)
        proxy.hold()
        ada.wait_for_function("peer().state === 'reconnecting'", timeout=30_000)  # by itself, 35 s
        chats(ada, grace, "the browsers still reach each other")
        proxy.reset()
        everybody_met([ada, grace])
        chats(ada, grace, "as before")
        assert still_same(ada)
        assert still_same(grace)
        grace.goto("about:blank")


@pytest.mark.parametrize("session", [True, False], ids=["resumed", "anew"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_the_call_goes_on_when_the_connection_to_the_server_is_cut(
    meeting: Meeting, room: str, both: bool, session: bool
) -> None:
    with Proxy(meeting.port) as proxy:
        ada = meeting.page(port=proxy.port if both else None, session=session)
        grace = meeting.page(port=proxy.port, session=session)
        for page in (ada, grace):
            page.evaluate("(room) => enter(room, {channels: ['chat']})", room)
        everybody_met([ada, grace])
        for page in (ada, grace):
            keep(page)
        for count in (1, 2, 3):
            name = grace.evaluate("client.id")
            grace.evaluate("seen.resumed = 0")
            proxy.reset()
            chats(ada, grace, f"round {count}")
            if session:
                grace.wait_for_function("client.state === 'open' && seen.resumed > 0")
                assert grace.evaluate("client.id") == name
            else:
                grace.wait_for_function("(name) => client.state === 'open' && client.id !== name", arg=name)
            everybody_met([ada, grace])
            for page in (ada, grace):
                page.evaluate("call.addStream(picture())")
            for page in (ada, grace):
                page.wait_for_function("(count) => peer().tracks.length === count && settled(peer())", arg=count)
            assert ada.evaluate("peer().polite") != grace.evaluate("peer().polite")
        assert still_same(ada)
        assert still_same(grace)
        assert ada.evaluate("seen.left.length") == grace.evaluate("seen.left.length") == 0
        ada.goto("about:blank")
        grace.goto("about:blank")


def test_who_came_back_more_than_once_is_known_to_whoever_was_away_meanwhile(meeting: Meeting, room: str) -> None:
    with Proxy(meeting.port) as proxy:
        ada, grace = meeting.page(session=False), meeting.page(port=proxy.port, session=False)
        for page in (ada, grace):
            page.evaluate("(room) => enter(room, {channels: ['chat']})", room)
        everybody_met([ada, grace])
        for page in (ada, grace):
            keep(page)
        proxy.hold()
        proxy.reset(flow=False)  # and no attempt to come back succeeds
        grace.wait_for_function("client.state !== 'open'")
        for _ in range(3):
            reconnected(ada)
        assert grace.evaluate("client.state") != "open"
        proxy.flow()
        name = ada.evaluate("client.id")
        grace.wait_for_function("(name) => call.peers.has(name)", arg=name)
        everybody_met([ada, grace])
        chats(ada, grace, "as before")
        assert still_same(ada)
        assert still_same(grace)
        grace.goto("about:blank")


def test_offers_made_without_a_connection_to_the_server_are_made_up_for(meeting: Meeting, room: str) -> None:
    with Proxy(meeting.port) as proxy:
        ada, grace = meeting.page(), meeting.page(port=proxy.port)
        for page in (ada, grace):
            page.evaluate("(room) => enter(room, {channels: ['chat']})", room)
        everybody_met([ada, grace])
        for page in (ada, grace):
            keep(page)
        proxy.hold()
        grace.evaluate("call.addStream(picture())")  # its offer is lost
        grace.wait_for_function("peer().connection.signalingState === 'have-local-offer'")
        grace.evaluate("seen.states.length = 0")
        proxy.reset()
        grace.wait_for_function("seen.states.includes('waiting')")
        ada.evaluate("call.addStream(picture())")  # perhaps to nobody
        for page in (ada, grace):
            page.wait_for_function("peer().tracks.length === 1 && settled(peer())")
        assert still_same(ada)
        assert still_same(grace)
        grace.goto("about:blank")


def test_everybody_meets_again_after_the_server_was_restarted(tmp_path: Path, browser: Browser) -> None:
    (port,) = free_ports(1)
    meeting = Meeting(browser, port)
    with start_server(tmp_path, port)[0] as program:
        pages = meeting.enter(3)
        names = [page.evaluate("client.id") for page in pages]
        program.stop()
    with start_server(tmp_path, port)[0] as again:
        for page in pages:
            page.wait_for_function("(names) => client.state === 'open' && !names.includes(client.id)", arg=names)
        for page in pages:
            page.wait_for_function("(names) => [...call.peers.keys()].every((id) => !names.includes(id))", arg=names)
        everybody_met(pages)
        for page in pages:
            page.evaluate("(count) => say('chat', count)", MESSAGES)
        for page in pages:
            assert hears_everything(page)
        meeting.close()
        again.stop()


def test_a_call_ends_when_the_server_closes_for_good(meeting: Meeting, room: str) -> None:
    ada, grace = meeting.enter(2, room=room)
    grace.evaluate("client.send('close:me', {code: 4503, reason: 'not today'})")
    grace.wait_for_function("seen.closed.length === 1 && call.peers.size === 0")
    assert grace.evaluate("seen.closed[0].code") == "closed"
    ada.wait_for_function("call.peers.size === 0")
