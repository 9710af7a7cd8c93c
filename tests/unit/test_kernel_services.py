"""Services: they start before the transports, stop after them, and are counted."""

from __future__ import annotations

from typing import Any

import pytest

from realtime import ConfigurationError, RealtimeKernel, Transport


class Part:
    """A service that notes what is asked of it, and fails where told to."""

    def __init__(self, notes: list[str], name: str, fails: str = "") -> None:
        self.notes, self.name, self.fails = notes, name, fails

    def _do(self, what: str) -> None:
        self.notes.append(f"{self.name} {what}")
        if self.fails == what:
            raise ConfigurationError(f"{self.name} cannot {what}")

    def on_start(self) -> None:
        self._do("start")

    def on_stop(self) -> None:
        self._do("stop")

    def stats(self) -> dict[str, Any]:
        return {"name": self.name}


class Line(Part, Transport):
    def on_drain(self) -> None:
        self._do("drain")

    def stats(self) -> dict[str, Any]:
        return {}


def test_services_live_around_the_transports() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel([Line(notes, "line")])
    for name in ("one", "two"):
        kernel.add_service(Part(notes, name))
    assert kernel.stats()["services"] == [{"name": "one"}, {"name": "two"}]
    for _ in range(2):
        kernel.start()
        kernel.stop()
        assert notes == [
            "one start",
            "two start",
            "line start",
            "line drain",
            "line stop",
            "two stop",
            "one stop",
        ]
        notes.clear()


def test_a_service_added_to_a_running_kernel_starts_at_once() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel()
    kernel.start()
    kernel.add_service(Part(notes, "late"))
    assert notes == ["late start"]
    kernel.stop()
    assert notes == ["late start", "late stop"]


def test_one_that_cannot_start_is_released_and_not_added() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel()
    kernel.start()
    with pytest.raises(ConfigurationError, match="broken cannot start"):
        kernel.add_service(Part(notes, "broken", "start"))
    assert notes == ["broken start", "broken stop"]
    assert kernel.stats()["services"] == []
    kernel.stop()
    assert notes == ["broken start", "broken stop"]


def test_a_service_that_cannot_start_stops_what_was_started() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel([Line(notes, "line")])
    kernel.add_service(Part(notes, "one"))
    kernel.add_service(Part(notes, "broken", "start"))
    with pytest.raises(ConfigurationError, match="broken cannot start"):
        kernel.start()
    assert notes == ["one start", "broken start", "broken stop", "one stop"]
    assert not kernel.running


def test_a_transport_that_cannot_start_stops_the_services() -> None:
    notes: list[str] = []
    kernel = RealtimeKernel([Line(notes, "line", "start")])
    kernel.add_service(Part(notes, "one"))
    with pytest.raises(ConfigurationError, match="line cannot start"):
        kernel.start()
    assert notes == ["one start", "line start", "line stop", "one stop"]


def test_one_that_cannot_stop_is_logged_and_the_rest_stops(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    kernel = RealtimeKernel()
    kernel.add_service(Part(notes, "one"))
    kernel.add_service(Part(notes, "broken", "stop"))
    kernel.start()
    kernel.stop()
    assert notes[-1] == "one stop"
    assert not kernel.running
    assert "Part failed to stop" in caplog.text


@pytest.mark.parametrize("service", [None, "x", Part, object()])
def test_what_is_no_service_is_refused(service: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not a service"):
        RealtimeKernel().add_service(service)


def test_a_service_belongs_to_a_kernel_once() -> None:
    kernel, service = RealtimeKernel(), Part([], "one")
    kernel.add_service(service)
    with pytest.raises(ConfigurationError, match="belongs to this kernel already"):
        kernel.add_service(service)
