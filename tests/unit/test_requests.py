"""What clients may ask of rooms and presence by themselves: nothing, until the application allows it."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from realtime import ConfigurationError, Limits, RealtimeKernel
from realtime.testing import KernelTest


def ask(client: Any, event: str, **fields: Any) -> Any:
    """Send a request; return the ack's result, or the code of the refusal."""
    client.send({"type": event, "ack": 1, **fields})
    answer = client.receive(timeout=20)
    assert answer["payload"]["ack"] == 1
    return answer["payload"]["result"] if answer["type"] == "system:ack" else answer["payload"]["code"]


def test_nothing_is_allowed_until_the_application_says_so(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    assert ask(client, "system:join", room="tea") == "forbidden"
    assert ask(client, "system:presence", payload={"metadata": {"role": "admin"}}) == "forbidden"
    assert ask(client, "system:presence", room="tea") == "forbidden"
    assert kernel_test.kernel.rooms.list() == {}
    assert kernel_test.kernel.presence.get(client.id)["metadata"] == {}  # type: ignore[index]


def test_a_client_joins_rooms_that_match_and_learns_who_is_there(kernel_test: KernelTest) -> None:
    kernel_test.kernel.rooms.configure("chat:*", join=True)
    ada, ben = kernel_test.connect(metadata={"name": "Ada"}), kernel_test.connect()
    shown = {"id": ada.id, "metadata": {"name": "Ada"}}
    assert ask(ada, "system:join", room="chat:tea") == {
        "room": "chat:tea", "id": ada.id, "members": [shown], "total": 1,
    }  # fmt: skip
    joined = ask(ben, "system:join", room="chat:tea")
    assert joined["members"] == [shown, {"id": ben.id, "metadata": {}}]
    assert joined["total"] == 2
    assert ask(ben, "system:join", room="chat:tea") == joined  # again: no harm
    assert ask(ben, "system:join", room="admins") == "forbidden"
    assert kernel_test.kernel.rooms.list() == {"chat:tea": 2}


def test_a_join_is_in_line_with_the_messages_around_it(kernel_test: KernelTest) -> None:
    kernel_test.kernel.rooms.configure("tea", join=True)
    seen: list[Any] = []

    @kernel_test.kernel.on("look")
    def look(message: Any, context: Any, toolkit: Any) -> None:
        gevent.sleep(0)
        seen.append(context.rooms)

    client = kernel_test.connect()
    for event, fields in (
        ("look", {}), ("system:join", {"room": "tea"}), ("look", {}), ("system:leave", {"room": "tea"}), ("look", {}),
    ):  # fmt: skip
        client.send({"type": event, **fields})
    kernel_test.settle()
    assert seen == [[], ["tea"], []]


def test_leaving_needs_no_permission_whoever_put_the_client_there(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    kernel_test.kernel.rooms.join("vip", client.id)
    assert ask(client, "system:leave", room="vip") == {"room": "vip", "left": True}
    assert ask(client, "system:leave", room="vip") == {"room": "vip", "left": False}


def test_a_rule_may_keep_clients_from_leaving_by_themselves(kernel_test: KernelTest) -> None:
    kernel_test.kernel.rooms.configure("call:*", leave=False)
    client = kernel_test.connect()
    kernel_test.kernel.rooms.join("call:1", client.id)
    assert ask(client, "system:leave", room="call:1") == "forbidden"
    assert kernel_test.kernel.rooms.members("call:1") == [client.id]
    with pytest.raises(ConfigurationError, match="True or False"):
        kernel_test.kernel.rooms.configure("x", leave="no")  # type: ignore[arg-type]


def test_a_function_decides_and_may_wait_and_reject(kernel_test: KernelTest) -> None:
    from realtime import Reject

    def may_join(context: Any, room: str) -> bool:
        gevent.sleep(0)
        if room == "room:closed":
            raise Reject("closed today", code="closed")
        return room == f"room:{context.identity}"

    kernel_test.kernel.rooms.configure("room:*", join=may_join)
    client = kernel_test.connect(identity="ada")
    assert ask(client, "system:join", room="room:ada")["total"] == 1
    assert ask(client, "system:join", room="room:ben") == "forbidden"
    assert ask(client, "system:join", room="room:closed") == "closed"


def test_the_first_pattern_that_matches_counts_and_the_same_one_is_replaced(kernel_test: KernelTest) -> None:
    rooms = kernel_test.kernel.rooms
    rooms.configure("chat:staff")
    rooms.configure("chat:*", join=True)
    client = kernel_test.connect()
    assert ask(client, "system:join", room="chat:staff") == "forbidden"
    assert ask(client, "system:join", room="chat:tea")["total"] == 1
    rooms.configure("chat:staff", join=True)
    assert ask(client, "system:join", room="chat:staff")["total"] == 1
    assert ask(client, "system:join", room="CHAT:tea") == "forbidden"


@pytest.mark.parametrize("event", ["system:join", "system:leave", "system:presence"])
def test_a_request_without_a_room_is_told_what_it_lacks(kernel_test: KernelTest, event: str) -> None:
    assert ask(kernel_test.connect(), event) == "bad_room"


def test_room_limits_hold_here_too() -> None:
    kernel = RealtimeKernel(log_level="warning", limits=Limits(rooms_per_client=2, room_name=10))
    kernel.rooms.configure("*", join=True)
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        assert ask(client, "system:join", room="x" * 11) == "bad_room"
        assert ask(client, "system:join", room="") == "bad_room"
        assert [ask(client, "system:join", room=name)["total"] for name in "ab"] == [1, 1]
        assert ask(client, "system:join", room="c") == "too_many_rooms"


def test_presence_lists_a_room_to_its_members_without_what_is_not_their_business(kernel_test: KernelTest) -> None:
    ada, ben = kernel_test.connect(metadata={"name": "Ada"}), kernel_test.connect()
    for client in (ada, ben):
        kernel_test.kernel.rooms.join("tea", client.id)
    kernel_test.kernel.rooms.join("secret", ada.id)
    listed = ask(ben, "system:presence", room="tea")
    assert listed == {
        "members": [{"id": ada.id, "metadata": {"name": "Ada"}}, {"id": ben.id, "metadata": {}}], "total": 2,
    }  # fmt: skip
    assert ask(ben, "system:presence", room="secret") == "forbidden"


def test_presence_is_changed_where_allowed_and_stays_bounded(kernel_test: KernelTest) -> None:
    kernel_test.kernel.presence.configure(update=True)
    client = kernel_test.connect(metadata={"name": "Ada"})
    assert ask(client, "system:presence", payload={"metadata": {"mood": "fine"}}) == {
        "id": client.id, "metadata": {"name": "Ada", "mood": "fine"},
    }  # fmt: skip
    assert ask(client, "system:presence", payload={"metadata": ["no object"]}) == "bad_message"
    for number in range(8):  # each fits, but not all of them
        ask(client, "system:presence", payload={"metadata": {f"key{number}": "x" * 1000}})
    metadata = kernel_test.kernel.presence.get(client.id)["metadata"]  # type: ignore[index]
    assert sum(len(value) for value in metadata.values()) < kernel_test.kernel.limits.presence_metadata
    assert ask(client, "system:presence", payload={"metadata": {"key9": "x" * 1000}}) == "bad_message"


def test_a_function_decides_on_a_change_of_presence(kernel_test: KernelTest) -> None:
    kernel_test.kernel.presence.configure(update=lambda context, metadata: metadata.keys() == {"name"})
    client = kernel_test.connect()
    assert ask(client, "system:presence", payload={"metadata": {"name": "Ada"}})["metadata"] == {"name": "Ada"}
    assert ask(client, "system:presence", payload={"metadata": {"role": "admin"}}) == "forbidden"


def test_middleware_wraps_requests_and_any_handlers_see_them(kernel_test: KernelTest) -> None:
    from realtime import Reject

    kernel = kernel_test.kernel
    kernel.rooms.configure("*", join=True)
    seen: list[str] = []
    kernel.on("*", lambda message, context, toolkit: seen.append(message.type))

    @kernel.middleware
    def guard(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        if message.room == "closed":
            raise Reject("not now", code="not_now")
        return call_next()

    client = kernel_test.connect()
    assert ask(client, "system:join", room="closed") == "not_now"
    assert ask(client, "system:join", room="open")["total"] == 1
    assert seen == ["system:join"]


def test_what_no_rule_can_be_is_refused_where_it_is_written(kernel_test: KernelTest) -> None:
    rooms, presence = kernel_test.kernel.rooms, kernel_test.kernel.presence
    with pytest.raises(ConfigurationError, match="pattern such as"):
        rooms.configure("")
    with pytest.raises(ConfigurationError, match=r"\(context, room\)"):
        rooms.configure("x", join=lambda context: True)  # type: ignore[arg-type, misc]
    with pytest.raises(ConfigurationError):
        rooms.configure("x", join="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"\(context, metadata\)"):
        presence.configure(update=lambda: True)  # type: ignore[arg-type, misc]


def test_a_rule_that_answers_nothing_yet_lets_nobody_pass(kernel_test: KernelTest) -> None:
    """A coroutine is true, whatever it would come to."""
    given: list[Any] = []

    async def later() -> bool:
        return False

    def rule(context: Any, asked: Any) -> Any:
        given.append(later())
        return given[-1]

    kernel_test.kernel.rooms.configure("chat:*", join=rule)
    kernel_test.kernel.presence.configure(update=rule)
    client = kernel_test.connect()
    assert ask(client, "system:join", room="chat:tea") == "internal_error"
    assert ask(client, "system:presence", payload={"metadata": {"role": "admin"}}) == "internal_error"
    assert kernel_test.kernel.rooms.list() == {}
    assert kernel_test.kernel.presence.get(client.id)["metadata"] == {}  # type: ignore[index]
    for one in given:
        one.close()
