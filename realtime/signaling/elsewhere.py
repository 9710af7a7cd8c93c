"""What the bridges of several nodes tell each other, beside the signals themselves.

Only the node of a participant has what it gave when it joined: it is asked. And only the node of an offerer sees its
offers: it tells that of the answerer, which judges what comes back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import AsyncResult

from realtime.errors import RealtimeError
from realtime.kernel import RealtimeKernel
from realtime.signaling.negotiations import Negotiations
from realtime.signaling.participants import Participant, Participants

__all__ = ["Elsewhere"]

log = logging.getLogger("realtime.signaling")

ASK_TIMEOUT = 1.0  # seconds; of who has not answered by then, the kernel's presence is shown

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
        self._ask_name = f"{prefix}participants"
        self._give_name = f"{prefix}moved"
        self._offered_name = f"{prefix}offered"
        operations = kernel.hub.node_operations
        operations[self._ask_name] = self._tell
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
        return self._gather(nodes, {"call": call})

    def unmet(self, call: str, joiner: str) -> dict[str, Shown]:
        """Return what is to be shown of those on other nodes that joined a call before their node knew of a joiner.

        What they did before arrives here before the answer. Switches, for ``ASK_TIMEOUT`` at most.
        """
        return self._gather(self._kernel.hub.cluster.node_ids(), {"call": call, "joiner": joiner})

    def _gather(self, nodes: Collection[str], question: dict[str, str]) -> dict[str, Shown]:
        answers = [answer for node in nodes if (answer := self._ask(node, question)) is not None]
        if not answers:
            return {}
        with self._kernel.hub.workers.parked():
            gevent.wait(answers, timeout=ASK_TIMEOUT)
        found: dict[str, Shown] = {}
        for answer in answers:
            if answer.ready() and answer.value is not None:
                found.update(answer.value)
        return found

    def _ask(self, node: str, question: dict[str, str]) -> AsyncResult[Any] | None:
        answer: AsyncResult[Any] = AsyncResult()

        def then(result: Any, error: Exception | None) -> None:
            if error is not None:
                log.debug("node %s does not say who is in %r: %s", node, question["call"], error)
            answer.set(result)

        try:
            self._kernel.hub.cluster.ask_node(node, self._ask_name, question, ASK_TIMEOUT, then)
        except RealtimeError as error:  # it has just gone
            log.debug("node %s cannot be asked who is in %r: %s", node, question["call"], error)
            return None
        return answer

    def _tell(self, arguments: Mapping[str, Any]) -> dict[str, Shown]:
        """Another node wants to know what to show of this node's participants of a call, or of those that joined it
        without knowing of a joiner."""
        call, joiner = arguments["call"], arguments.get("joiner")
        found = ((one, self._participants.get(one, call)) for one in self._kernel.hub.rooms.each_member(call))
        return {one: record.shown() for one, record in found if record is not None and joiner not in record.met}

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


def _ignore(result: Any, error: Exception | None) -> None:
    """Nobody waits for it."""
