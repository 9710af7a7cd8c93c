"""Questions to the members of a room as nodes pass them on: asked of each node once, answered in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from realtime.cluster import ClusterNode, RoomAnswers
from realtime.errors import CallFailed, MessageTooBig
from realtime.protocols.mesh_actions import RunCall
from realtime.protocols.mesh_calls import pack_answers, pack_question, unpack_answers
from realtime.protocols.mesh_core import MeshCore

__all__ = ["NodeAnswers", "ask_nodes", "perform_here"]

log = logging.getLogger("realtime.mesh")

CALL_ROOM = "call_room"


class NodeAnswers:
    """Takes what one node says to such a question."""

    def __init__(self, node: str, answers: RoomAnswers) -> None:
        self.node = node
        self._answers = answers

    def part(self, packed: Any) -> None:
        """Some members have answered. Raises BadMessage."""
        self._answers.answered(self.node, unpack_answers(packed))

    def set(self, missing: Any) -> None:
        """That was all."""
        self._answers.ended(self.node, missing if isinstance(missing, list) else None)

    def set_exception(self, error: BaseException) -> None:
        """It says nothing more."""
        log.debug("node %s does not tell what members of a room answer: %s", self.node, error)
        self._answers.ended(self.node, None)


def ask_nodes(
    core: MeshCore,
    room: str,
    message: Mapping[str, Any],
    except_ids: Collection[str],
    timeout: float,
    answers: RoomAnswers,
    *,
    token: Callable[[], int],
    deadline: float,
    now: float,
) -> dict[int, NodeAnswers]:
    """Ask every node that has members to ask; return what takes the answers of each, by the question's token.

    :param timeout: seconds that members have.
    :param deadline: seconds until nothing more is expected of a node.
    :raises BadMessage, MessageTooBig: it cannot go to nodes; then none was asked.
    """
    nodes = core.members_to_ask(room, message["type"], except_ids)
    arguments = {"room": room, "message": message, "except_ids": list(except_ids), "timeout": timeout}
    body = pack_question(CALL_ROOM, arguments) if nodes else b""
    asked: dict[int, NodeAnswers] = {}
    for node, members in nodes.items():
        number = token()
        core.call_node(number, node, body, timeout=deadline, now=now)
        asked[number] = NodeAnswers(node, answers)
        answers.asked(node, members)
    return asked


def perform_here(
    core: MeshCore,
    node: ClusterNode,
    action: RunCall,
    operation: str,
    arguments: Mapping[str, Any],
    act: Callable[[], None],
) -> Any:
    """Do what a node asks of this one, rather than for a client; pass on what there is of it already. Switches.

    :param act: has what the core wants carried out.
    :returns: the rest of the answer.
    :raises BadMessage: an operation of a later version.
    """
    if operation != CALL_ROOM:
        return node.perform("", operation, arguments)
    parts = node.call_room(**arguments)
    try:
        while True:
            for clients, body in pack_answers(next(parts)):
                _pass_on(core, action, clients, body)
            act()
    except StopIteration as stop:
        return stop.value
    finally:
        parts.close()


def _pass_on(core: MeshCore, action: RunCall, clients: list[str], body: bytes) -> None:
    try:
        core.answer(action.origin, action.token, True, body, more=True)
    except MessageTooBig as error:  # a single one: see pack_answers
        failed = [(client, CallFailed(error.message, code=error.code)) for client in clients]
        for _, short in pack_answers(failed):
            core.answer(action.origin, action.token, True, short, more=True)
