"""Who is named when the event loop stands still. With a whole kernel: test_kernel_lifecycle.py."""

from __future__ import annotations

import threading

import pytest

from realtime import watchdog
from realtime.watchdog import Watchdog


def test_a_handler_that_holds_the_loop_in_a_turn_in_which_the_machine_has_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dog = Watchdog(0.1)
    dog._waiting = False  # a turn that does not end
    culprits = iter([None, None, "handler slow (shop.py:7 in slow)"])
    looks = 0

    def look_again(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks > 100:
            dog.stop()

    monkeypatch.setattr(watchdog, "_culprit", lambda frame: next(culprits))
    monkeypatch.setattr(watchdog, "_sleep", look_again)
    dog._watch(threading.get_ident(), dog._generation)
    named = [record.getMessage() for record in caplog.records if "is held" in record.getMessage()]
    assert named == ["the event loop is held for more than 100 ms by handler slow (shop.py:7 in slow)"]
    assert dog.count == 1
