"""What the bridges of several nodes tell each other, beside the signals themselves.

Only the node of a participant has what it gave when it joined: it is asked. And only the node of an offerer sees its
offers: it tells that of the answerer, which judges what comes back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import AsyncResult

from realtime.errors import RealtimeError
from realtime.kernel import RealtimeKernel
from realtime.signaling.negotiations import Negotiations
from realtime.signaling.participants import Participant, Participants

__all__ = ["Asked", "Elsewhere", "Shown"]

log = logging.getLogger("realtime.signaling")

ASK_TIMEOUT = 1.0  # seconds; of who has not answered by then, the kernel's presence is shown

Asked = list["AsyncResult[Any]"]
"""Answers of nodes to come."""

Shown = dict[str, Any]
"""What others are told of a participant beside its id: see ``Participant.shown``."""


class Elsewhere:
    """The same bridge on the other nodes, as one on this kernel sees it.

    :param prefix: of this bridge's names among what nodes ask each other.
    """

    def __init__(
        self,
        kernel: RealtimeKernel,
        participants: Participants,
        negotiations: Negotiations,
        prefix: str,
        counters: Counter[str],
    ) -> None:
        self._kernel = kernel
        self._participants = participants
        self._negotiations = negotiations
        self._counters = counters
        self.heard_of: Callable[[str, dict[str, Any], Collection[str]], None] = lambda call, payload, told: None
        """Told of each client of another node that has joined a call, or is back: call, payload, and who was told."""
        self._ask_name = f"{prefix}participants"
        self._announce_name = f"{prefix}joined"
        self._give_name = f"{prefix}moved"
        self._offered_name = f"{prefix}offered"
        operations = kernel.hub.node_operations
        operations[self._ask_name] = self._tell
        operations[self._announce_name] = self._note_joined
        operations[self._give_name] = self._take
        operations[self._offered_name] = self._note_offer

    # Participants there ----------------------------------------------------------------------------------

    def shown(self, call: str, clients: Iterable[str] | None = None) -> dict[str, Shown]:
        """Return what is to be shown of the participants of a call on other nodes.

        Switches if there are any, for ``ASK_TIMEOUT`` at most; those whose node does not answer are left out.

        :param clients: only of these, and of those that share their nodes.
        """
        cluster = self._kernel.hub.cluster
        wanted = cluster.members(call) if clients is None else clients
        nodes = {node for client_id in wanted if (node := cluster.home(client_id)) is not None}
        return self._collect(self._ask(nodes, self._ask_name, {"call": call}))

    def announce(self, call: str, payload: dict[str, Any], told: Collection[str]) -> Asked:
        """Have the other nodes tell their clients in a call of one that has joined it, but for those that were told.

        Never waits. Nodes are asked that have none as well, as far as is known here. Each answers which of those that
        were told are its own, and in the call.
        """
        said = {"call": call, "payload": payload, "told": list(told)}
        return self._ask(self._kernel.hub.cluster.node_ids(), self._announce_name, said)

    def wait(self, asked: Asked) -> None:
        """Wait for answers, ``ASK_TIMEOUT`` at most. What those nodes did before arrives here before."""
        with self._kernel.hub.workers.parked():
            gevent.wait(asked, timeout=ASK_TIMEOUT)

    def _note_joined(self, arguments: Mapping[str, Any]) -> list[str]:
        """A client of another node has joined a call, or is back: say who of this node's that were told is in it."""
        call, told = arguments["call"], arguments["told"]
        here = [one for one in told if self._kernel.rooms.contains_here(call, one)]
        self.heard_of(call, arguments["payload"], told)
        return here

    def _collect(self, answers: Asked) -> dict[str, Shown]:
        if not answers:
            return {}
        self.wait(answers)
        found: dict[str, Shown] = {}
        for answer in answers:
            if answer.ready() and answer.value is not None:
                found.update(answer.value)
        return found

    def _ask(self, nodes: Collection[str], operation: str, question: dict[str, Any]) -> Asked:
        """Ask some nodes; return their answers to come, which are None where a node cannot or does not answer."""
        answers: Asked = []
        for node in nodes:
            answer: AsyncResult[Any] = AsyncResult()
            try:
                then = partial(_answered, answer, node, operation)
                self._kernel.hub.cluster.ask_node(node, operation, question, ASK_TIMEOUT, then)
            except RealtimeError as error:  # it has just gone
                log.debug("node %s cannot be asked %r: %s", node, operation, error)
            else:
                answers.append(answer)
        return answers

    def _tell(self, arguments: Mapping[str, Any]) -> dict[str, Shown]:
        """Another node wants to know what to show of this node's participants of a call."""
        call = arguments["call"]
        found = ((one, self._participants.get(one, call)) for one in self._kernel.hub.rooms.each_member(call))
        return {one: record.shown() for one, record in found if record is not None}

    # Offers ----------------------------------------------------------------------------------------------

    def offered(self, sender: str, target: str, where: str | None, negotiation: str | None) -> None:
        """An offer went to a client, perhaps one of another node: let that know of it. Never waits."""
        cluster = self._kernel.hub.cluster
        node = cluster.home(target)
        if node is None:
            return
        said = {"sender": sender, "target": target, "where": where, "negotiation": negotiation}
        try:
            cluster.ask_node(node, self._offered_name, said, ASK_TIMEOUT, _ignore)
        except RealtimeError as error:  # it has just gone
            log.debug("node %s cannot be told of an offer: %s", node, error)

    def _note_offer(self, arguments: Mapping[str, Any]) -> bool:
        """A client of another node made an offer to one of this node."""
        target = arguments["target"]
        if not self._kernel.presence.has(target) or self._kernel.hub.cluster.home(target) is not None:
            return False  # gone, or moved on
        self._counters["offered_elsewhere"] += 1
        self._negotiations.offered_elsewhere(
            arguments["sender"], target, arguments["where"], arguments["negotiation"], monotonic()
        )
        return True

    # Clients that move -----------------------------------------------------------------------------------

    def give(self, client_id: str) -> None:
        """A client is one of another node now: let that have the records of it. Never waits."""
        cluster = self._kernel.hub.cluster
        node = cluster.home(client_id)
        records = self._participants.of(client_id)
        if node is None or not records:
            return
        said = {"client": client_id, "records": [record.packed() for record in records]}
        try:
            cluster.ask_node(node, self._give_name, said, ASK_TIMEOUT, partial(self._given, client_id))
        except RealtimeError as error:
            self._given(client_id, None, error)

    def _given(self, client_id: str, result: Any, error: Exception | None) -> None:
        if error is not None:
            log.info("what client %s gave when it joined its calls stayed at its old node: %s", client_id, error)

    def _take(self, arguments: Mapping[str, Any]) -> bool:
        """A client has come here from another node, with these records."""
        client_id, rooms = arguments["client"], self._kernel.rooms
        for packed in arguments["records"]:
            record = Participant.unpacked(client_id, packed)
            if rooms.contains_here(record.call, client_id) and self._participants.get(client_id, record.call) is None:
                self._participants.add(record)
        return True


def _answered(answer: AsyncResult[Any], node: str, operation: str, result: Any, error: Exception | None) -> None:
    if error is not None:
        log.debug("node %s does not answer %r: %s", node, operation, error)
    answer.set(result)


def _ignore(result: Any, error: Exception | None) -> None:
    """Nobody waits for it."""
