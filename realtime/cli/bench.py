"""``realtime bench``: how many round trips a server answers, how fast, and what goes wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from realtime.cli.common import FAILED, INTERRUPTED, OK, Complaint, add_command, positive_number
from realtime.cli.connecting import add_client_options, made_client, payload, plain_failures, seconds
from realtime.cli.terminal import as_json, console, require_rich

if TYPE_CHECKING:
    from realtime.cli.common import Commands
    from realtime.cli.load import Load

__all__ = ["add"]

CLIENTS, SECONDS = 50, 5.0
MOST_CLIENTS, MOST_SECONDS = 10_000, 3600.0
BUSY = 0.9  # of a core: more than that and the clients are the limit
OWN_DESCRIPTORS = 64  # what the process has open beside its clients

_DESCRIPTION = f"""\
Connects many clients to a server. Each asks, waits for the answer and asks again; then it is told how many round trips
there were, how long they took, and what went wrong. At most {MOST_CLIENTS} clients and {MOST_SECONDS:g} seconds.
"""
_EXAMPLES = """\
examples:
  realtime bench ws://localhost:8080/realtime
  realtime bench ws://localhost:8080/realtime --clients 500 --seconds 30
  realtime bench ws://localhost:8080/realtime --type add --payload '[1, 2]'
  realtime bench ws://localhost:8080/realtime --json > result.json

Without --type the clients send what no handler takes, and count its refusal as an answer: that works with any server of
this library, and costs what the library costs. The clients share one core, and it is said when that was the limit.
Connections that are lost come back, and how they ended is counted.

exit codes: 0 no errors, 1 errors or no connection, 130 Ctrl-C, with what there was until then
"""


def add(commands: Commands) -> None:
    """Put the command on the command line."""
    parser = add_command(
        commands, "bench", _bench, summary="put load on a server", description=_DESCRIPTION, examples=_EXAMPLES
    )
    add_client_options(parser)
    parser.add_argument("--clients", metavar="N", type=_clients, default=CLIENTS, help=f"how many: {CLIENTS}")
    parser.add_argument("--seconds", metavar="S", type=_seconds, default=SECONDS, help=f"how long: {SECONDS:g}")
    parser.add_argument("--type", help="of the messages; their handler's acknowledgement is the answer")
    parser.add_argument("--payload", type=payload, help="of the messages: JSON or text")
    parser.add_argument("--room", help="of the messages")
    parser.add_argument("--json", action="store_true", help="print the summary as a line of JSON")


def _clients(text: str) -> int:
    count = positive_number(text)
    if count > MOST_CLIENTS:
        raise argparse.ArgumentTypeError(f"{text!r}: at most {MOST_CLIENTS}")
    return count


def _seconds(text: str) -> float:
    value = seconds(text)
    if value > MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r}: at most {MOST_SECONDS:g}")
    return value


def _bench(arguments: argparse.Namespace) -> int:
    """Put on the load and print the summary; return the exit code. Raises Complaint."""
    require_rich("bench")
    _allow_descriptors(arguments.clients + OWN_DESCRIPTORS)
    from gevent import monkey

    monkey.patch_all()  # greenlets in the clients instead of two threads each

    from realtime.cli.load import Load, Question

    question = Question(arguments.type, arguments.payload, arguments.room)
    load = Load(lambda: made_client(arguments, reconnect=True), question, arguments.clients)
    interrupted = False
    try:
        with plain_failures(), _ctrl_c():
            _run(load, arguments)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        load.close()
    if load.connected:
        (_print_json if arguments.json else _print_table)(load)
    if interrupted:
        return INTERRUPTED
    return FAILED if load.tally.errors else OK


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt here, rather than in whichever client's greenlet runs at that moment."""
    import signal

    import gevent

    watcher = gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    try:
        yield
    finally:
        watcher.cancel()


def _allow_descriptors(count: int) -> None:
    """Have room for a connection each. Raises a Complaint if this process may not."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise Complaint(f"{count - OWN_DESCRIPTORS} clients need {count} open files, and {hard} are allowed: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _run(load: Load, arguments: argparse.Namespace) -> None:
    with _progress() as told:
        load.connect(lambda count: told("connecting", count, arguments.clients, ""))

        def asking(passed: float) -> None:
            told("asking", passed, arguments.seconds, f"{load.tally.durations.count / max(passed, 0.001):,.0f}/s")

        load.run(arguments.seconds, asking)


Told = Callable[[str, float, float, str], None]


@contextmanager
def _progress() -> Iterator[Told]:
    """Show a bar if stderr is a terminal. Yields what is told the step, how much is done, of what, and a word."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.fields[word]}"))
    target = console(sys.stderr)
    with Progress(*columns, console=target, auto_refresh=False, disable=not target.is_terminal) as bar:
        task = bar.add_task("connecting", word="")

        def told(step: str, done: float, total: float, word: str) -> None:
            bar.update(task, description=step, completed=done, total=total, word=word)
            bar.refresh()

        yield told


def _summary(load: Load) -> dict[str, Any]:
    durations = load.tally.durations
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "clients": load.connected,
        "seconds": round(load.seconds, 3),
        "round_trips": durations.count,
        "rate": round(durations.count / load.seconds, 1) if load.seconds else 0.0,
        "milliseconds": {name: round(durations.quantile(share) * 1000, 3) for name, share in quantiles.items()},
        "own_cpu": round(load.own_cpu, 2),
        "errors": dict(load.tally.errors.most_common()),
        "closes": dict(load.tally.closes.most_common()),
    }


def _print_json(load: Load) -> None:
    print(as_json(_summary(load)), flush=True)


def _print_table(load: Load) -> None:
    from rich.table import Table
    from rich.text import Text

    found = _summary(load)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("clients", f"{found['clients']:,}")
    table.add_row("seconds", f"{found['seconds']:,.1f}")
    table.add_row("round trips", f"{found['round_trips']:,}")
    table.add_row("round trips/s", f"{found['rate']:,.0f}")
    for name, value in found["milliseconds"].items():
        table.add_row(f"{name}, ms", f"{value:,.2f}")
    for title, style in (("errors", "red"), ("closes", "yellow")):
        for what, count in found[title].items() or [("none", 0)]:
            table.add_row(title, Text(f"{count:,}", style if count else "green"), Text(what if count else ""))
    output = console(sys.stdout)
    output.print(table)
    if load.own_cpu > BUSY:
        busy = f"The clients took {load.own_cpu:.0%} of a core: the server may be faster than they are."
        output.print(busy, style="yellow")
