"""Which files a reload watches, and what counts as a change."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from realtime.cli.reload import Files, module_files
from realtime.cli.watching import VARIABLE, ImportReporter

LONG_AGO = 1_000_000_000_000_000_000  # nanoseconds since the epoch


def written(path: Path, text: str, at: int = LONG_AGO) -> str:
    path.write_text(text)
    os.utime(path, ns=(at, at))
    return str(path)


def test_a_file_that_is_saved_has_changed_once(tmp_path: Path) -> None:
    files = Files()
    files.begin()
    files.add(written(tmp_path / "a.py", "1"))
    assert files.changed() == []
    path = written(tmp_path / "a.py", "1", LONG_AGO + 1)
    assert files.changed() == [path]
    assert files.changed() == []


def test_a_file_that_is_away_while_it_is_saved_changes_when_it_is_back(tmp_path: Path) -> None:
    files = Files()
    files.begin()
    path = written(tmp_path / "a.py", "1")
    files.add(path)
    os.unlink(path)
    assert files.changed() == []
    written(tmp_path / "a.py", "22")
    assert files.changed() == [path]


def test_a_file_saved_between_the_start_and_the_first_look_has_changed(tmp_path: Path) -> None:
    files = Files()
    files.begin()
    path = written(tmp_path / "a.py", "1", time.time_ns())
    files.add(path)
    assert files.changed() == [path]


def test_what_was_saved_before_a_start_is_no_change_for_it(tmp_path: Path) -> None:
    files = Files()
    files.begin()
    path = written(tmp_path / "a.py", "1")
    files.add(path)
    written(tmp_path / "a.py", "22")
    files.begin()
    assert files.changed() == []


def test_a_file_from_the_future_does_not_start_it_again_and_again(tmp_path: Path) -> None:
    files = Files()
    files.begin()
    files.add(written(tmp_path / "a.py", "1", time.time_ns() + 10**15))
    assert files.changed() == []


def test_there_is_nothing_to_watch_at_first(tmp_path: Path) -> None:
    files = Files()
    assert not files
    files.add(written(tmp_path / "a.py", "1"))
    assert files


def test_the_files_of_a_module_are_those_its_import_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "shop" / "live"
    package.mkdir(parents=True)
    for path in (tmp_path / "shop" / "__init__.py", package / "__init__.py", package / "sockets.py"):
        path.touch()
    read = [tmp_path / "shop" / "__init__.py", package / "__init__.py", package / "sockets.py"]
    assert sorted(module_files("shop.live.sockets")) == sorted(map(str, [*read, package / "sockets" / "__init__.py"]))
    assert str(package / "missing.py") in module_files("shop.live.missing")
    assert module_files("nothing_such") == []


def test_only_files_of_the_application_are_told_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "application_module.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("application_module")
    reading, writing = os.pipe()
    try:
        monkeypatch.setenv(VARIABLE, str(writing))
        reporter = ImportReporter.from_environment()
        assert reporter is not None
        assert VARIABLE not in os.environ
        reporter.report()
        reporter.report()
        told = os.read(reading, 1 << 20).decode().splitlines()
    finally:
        os.close(reading)
        os.close(writing)
        del sys.modules["application_module"]
    assert told.count(f'"{tmp_path / "application_module.py"}"') == 1
    assert not [path for path in told if "site-packages" in path or path.endswith('realtime/kernel.py"')]


def told_of(name: str, error: type[Exception]) -> list[str]:
    """Return what is told of a module that cannot be imported."""
    reading, writing = os.pipe()
    try:
        reporter = ImportReporter(writing)
        try:
            __import__(name)
        except error:
            reporter.report()
        return [json.loads(line) for line in os.read(reading, 1 << 20).splitlines()]
    finally:
        os.close(reading)
        os.close(writing)


def test_the_file_with_a_syntax_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("(")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(tmp_path / "broken_module.py") in told_of("broken_module", SyntaxError)


@pytest.mark.parametrize(
    ("statement", "missing"),
    [("import shelf.of_books", "shelf"), ("from shop import shelf", "shop/shelf"), ("import shop.shelf", "shop/shelf")],
)
def test_where_a_missing_module_may_appear_is_told_for_each_folder_of_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, missing: str
) -> None:
    folders = [tmp_path / "here", tmp_path / "libraries"]
    for folder in folders:
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
    package = folders[1] / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (folders[0] / "early_module.py").write_text(statement)
    told = told_of("early_module", ImportError)
    sys.modules.pop("shop", None)
    for folder in folders:
        assert {str(folder / f"{missing}.py"), str(folder / missing / "__init__.py")} <= set(told)
    assert not [path for path in told if "site-packages" in path]
