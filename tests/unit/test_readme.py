"""What the README says of names, numbers and code is what the code says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from realtime import CloseCode, ErrorCode, Heartbeat, KiB, Limits, MiB

README = (Path(__file__).parents[2] / "README.md").read_text()
LONGEST_LINE = 120


def section(title: str) -> str:
    """Return the text below a heading, up to the next one of its kind."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def test_lines_outside_tables_keep_within_the_width() -> None:
    assert [line for line in README.splitlines() if len(line) > LONGEST_LINE and not line.startswith("|")] == []


def test_every_code_of_an_error_is_named_and_no_other() -> None:
    found = re.search(r"Codes: (.*?), and your own", section("The wire"), re.DOTALL)
    assert found is not None
    named = re.findall(r"`([a-z_]+)`", found[1])
    assert sorted(named) == sorted(value for name, value in vars(ErrorCode).items() if name.isupper())


def test_every_close_code_of_ours_is_in_the_table_and_no_other() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", section("The wire"), re.MULTILINE)
    named = {int(code) for row in rows for code in row.split(", ")}
    assert {code for code in named if code >= 4000} == {int(code) for code in CloseCode if code >= 4000}
    assert named <= {int(code) for code in CloseCode}


def test_the_table_of_defaults_is_that_of_the_code() -> None:
    told = {}
    for line in section("Defaults").splitlines():
        if line.startswith("|") and "---" not in line:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            told |= {cells[0]: cells[1], cells[2]: cells[3]}
    told.pop("")  # the heading, and a place that is empty
    assert told == defaults(Limits(), Heartbeat())


def defaults(limits: Limits, heartbeat: Heartbeat) -> dict[str, str]:
    quiet = f"{limits.presence_quiet * 1000:g} ms"
    return {
        "ping / pong deadline": f"{heartbeat.interval:g} s / {heartbeat.timeout:g} s",
        "call timeout": f"{limits.ack_timeout:g} s",
        "handshake deadline": f"{limits.handshake:g} s",
        "close handshake": f"{limits.close_handshake:g} s",
        "message size": f"{limits.message_size:,} B",
        "request head": f"{limits.before_authentication // KiB} KiB",
        "outbox": f"{limits.outbox // MiB} MiB, senders park at {limits.park_above:.0%}".replace("%", " %"),
        "inbox": f"{limits.inbox} messages, then TCP backpressure",
        "rooms per client / name": f"{limits.rooms_per_client} / {limits.room_name} characters",
        "presence list": f"{limits.presence_listed}, `.total` counts all",
        "presence diffs": f"{quiet} after the first change, {limits.presence_busy:g} s apart",
    }


def test_the_test_of_ones_own_passes_with_the_code_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    own = re.search(r"```python\n(.*?)```", section("Tests of your own"), re.DOTALL)
    assert top is not None
    assert own is not None
    # any port: another test may have those of the example
    code = top[1].replace("port=8080", "port=0").replace("port=9090", "port=0")
    (tmp_path / "chat.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "chat", ModuleType("chat"))  # so that the real one is taken out again
    del sys.modules["chat"]
    names: dict[str, Any] = {}
    exec(compile(own[1], "README.md", "exec"), names)  # noqa: S102
    names["test_chat"]()


def test_every_file_and_heading_that_it_links_to_is_there() -> None:
    root = Path(__file__).parents[2]
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif "://" not in target:
            assert (root / target).exists(), target
