"""``realtime doctor``: what this machine and environment offer, and what each finding means for a server."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from realtime.cli.common import DISTRIBUTION, OK, add_command, installed_version
from realtime.cli.loading import load_kernel
from realtime.cli.terminal import Printer

if TYPE_CHECKING:
    from realtime.cli.common import Commands
    from realtime.kernel import RealtimeKernel

__all__ = ["add"]

WIDTH = 94  # columns of the sentences
NAMES = 16  # columns of what is found
OWN_DESCRIPTORS = 64  # a generous guess at what a process has open beside its clients: log files, pools, loop

_DESCRIPTION = """\
Tells what this machine and environment offer, and what each finding means for a server: versions, what is not
monkey-patched without `realtime serve`, how many clients fit, and which optional parts there are.
"""
_EXAMPLES = """\
examples:
  realtime doctor                                this machine and environment
  realtime doctor chat:kernel                    and what importing chat.py, without `realtime serve`, patches
"""

_NOT_PATCHED, _NOT_INSTALLED = "not patched", "not installed"
_UNPATCHED = {
    "socket": "A handler that uses the network (requests, a database driver) holds up every client.",
    "time": "A handler that calls time.sleep holds up every client; gevent.sleep does not.",
    "ssl": "A handler that opens an encrypted connection (https, a database) holds up every client.",
    "threading": "A handler that waits for a lock, a queue or a thread holds up every client.",
    "subprocess": "A handler that waits for another program holds up every client.",
    "select": "A library that waits with select or poll in a handler holds up every client.",
}


_CHOOSE = " GEVENT_RESOLVER=thread in the environment chooses."
_RESOLVERS = {
    "thread": "Names of hosts are looked up as everywhere on this machine, in native threads.",
    "ares": "Names of hosts are looked up by c-ares, which does not know all of /etc/nsswitch.conf." + _CHOOSE,
    "dnspython": "Names of hosts are looked up by dnspython, which does not know /etc/nsswitch.conf." + _CHOOSE,
    "blocking": "A handler that looks up the name of a host holds up every client." + _CHOOSE,
}


class _Finding(NamedTuple):
    name: str
    value: str
    meaning: str


def add(commands: Commands) -> None:
    """Put the command on the command line."""
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        summary="tell what is patched, installed and limited here, and what it means",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("target", metavar="MODULE[:KERNEL]", nargs="?", help="an application to look at, too")


def _doctor(arguments: argparse.Namespace) -> int:
    """Print every finding. Patches nothing."""
    kernel = load_kernel(arguments.target) if arguments.target is not None else None
    sections = [
        ("Versions", _versions()),
        ("gevent", _gevent()),
        (_patching_title(arguments.target), _patching()),
        ("Limits of this machine", chain(_descriptors(), _backlog(), _processors(), _memory())),
        ("Optional parts", _optional_parts()),
    ]
    if kernel is not None:
        sections.append((f"The kernel {arguments.target}", _transports(kernel)))
    printer = Printer(sys.stdout)
    for number, (title, findings) in enumerate(sections):
        if number:
            printer.line([])
        _print_section(printer, title, findings)
    return OK


def _print_section(printer: Printer, title: str, findings: Iterable[_Finding]) -> None:
    printer.line([(title, "bold")])
    for finding in findings:
        style = "yellow" if finding.value in (_NOT_PATCHED, _NOT_INSTALLED) else ""
        name = f"{finding.name:<{NAMES}} " if finding.value else finding.name
        printer.line([(f"  {name}", "cyan"), (finding.value, style)])
        if finding.meaning:
            lines = textwrap.fill(finding.meaning, WIDTH, break_on_hyphens=False)  # nor commands to copy, within words
            printer.line([(textwrap.indent(lines, " " * 6), "")])


def _versions() -> Iterator[_Finding]:
    import platform

    import msgpack

    version = installed_version(DISTRIBUTION)
    meaning = "" if version else "It runs from its source directory."
    yield _Finding("realtime", version or _NOT_INSTALLED, meaning)
    yield _Finding("python", f"{platform.python_version()} ({platform.python_implementation()})", "")
    for name in ("gevent", "greenlet", "msgspec", "simple-websocket"):
        yield _Finding(name, installed_version(name) or "unknown", "")
    slow = msgpack.Unpacker.__module__ == "msgpack.fallback"
    yield _Finding(
        "msgpack",
        installed_version("msgpack") or "unknown",
        "It lacks its C extension: the mesh and MessagePack clients are slower. Install a wheel, or a compiler first."
        if slow
        else "",
    )


def _gevent() -> Iterator[_Finding]:
    import gevent

    hub = gevent.get_hub()
    library = "libuv" if "libuv" in type(hub.loop).__module__ else "libev"
    yield _Finding(
        "event loop",
        f"{library}, {hub.loop.backend}",
        "This is gevent's usual event loop, which realtime is tested with."
        if library == "libev"
        else "It works, but a handler that holds the loop is not named in the log: libev can, libuv cannot. "
        "GEVENT_LOOP=libev in the environment chooses.",
    )
    resolver = hub.resolver_class.__module__.rpartition(".")[2]
    yield _Finding("resolver", resolver, _RESOLVERS.get(resolver, "Not one of gevent's own."))


def _patching_title(target: str | None) -> str:
    if target is None:
        return "Monkey-patching in a process that is started without `realtime serve`"
    return f"Monkey-patching once {target.partition(':')[0]} is imported without `realtime serve`"


def _patching() -> Iterator[_Finding]:
    from realtime.startup import unpatched_modules

    names = unpatched_modules()
    for name in names:
        yield _Finding(name, _NOT_PATCHED, _UNPATCHED[name])
    if names:
        yield _Finding(
            "what to do",
            "",
            "Start with `realtime serve module:kernel`, which patches all of these first; or make `from "
            "gevent import monkey; monkey.patch_all()` the first line of your program; or give handlers that "
            "block threadpool=True.",
        )
    else:
        yield _Finding("everything", "patched", "A handler that waits holds up nobody but its own client.")


def _descriptors() -> Iterator[_Finding]:
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield _Finding("open files", "not limited", "Memory alone bounds the number of clients.")
        return
    clients = max(0, soft - OWN_DESCRIPTORS)
    meaning = (
        f"Every client takes one, so about {clients} clients fit into a process, fewer if handlers open "
        "files or connections; those beyond wait until others leave."
    )
    if hard == soft:
        value = f"{soft}, the most allowed here"
        meaning += " More needs an administrator: LimitNOFILE= in systemd, or /etc/security/limits.conf."
    else:
        most = "as many as you like" if hard == resource.RLIM_INFINITY else f"up to {hard}"
        value = f"{soft}, may be raised: {most}"
        meaning += " `ulimit -n NUMBER` in the shell that starts it raises the limit."
    yield _Finding("open files", value, meaning)


def _backlog() -> Iterator[_Finding]:
    import inspect
    from pathlib import Path

    from realtime.transports.listener import Listener

    try:
        allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return  # Linux alone tells it there
    wanted: int = inspect.signature(Listener).parameters["backlog"].default
    if allowed >= wanted:
        meaning = f"Enough: up to {wanted} clients that arrive at the same moment wait for their turn."
    else:
        meaning = (
            f"When more than {allowed} clients arrive at the same moment, as after a restart, the others "
            f"must try again, which takes them seconds; `sysctl -w net.core.somaxconn={wanted}` makes room."
        )
    yield _Finding("somaxconn", str(allowed), meaning)


def _processors() -> Iterator[_Finding]:
    from realtime.worker_pool import usable_cpus

    count = usable_cpus()
    meaning = (
        f"One process uses one; `realtime serve --workers {count}` uses them all."
        if count > 1
        else "Workers would share it: one process does as well."
    )
    yield _Finding("processors", str(count), meaning)


def _memory() -> Iterator[_Finding]:
    try:
        import resource
    except ImportError:
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        meaning = "A process that asks for more gets a MemoryError; `ulimit -v unlimited` in the shell lifts it."
        yield _Finding("address space", f"{soft // 2**20} MiB", meaning)


def _optional_parts() -> Iterator[_Finding]:
    for name, extra, use in (
        ("rich", "cli", "Colours of `realtime listen`, and all of `realtime bench`."),
        ("flask", "flask", "realtime.integrations.flask: handlers beside the views of an app."),
        ("gunicorn", "gunicorn", "`gunicorn -k gevent` runs a WSGI application in several processes."),
        ("gevent-websocket", "gunicorn", "Its handler and its gunicorn worker accept WebSockets."),
    ):
        version = installed_version(name)
        meaning = use if version else f"{use} To have it: pip install '{DISTRIBUTION}[{extra}]'"
        yield _Finding(name, version or _NOT_INSTALLED, meaning)


def _transports(kernel: RealtimeKernel) -> Iterator[_Finding]:
    if not kernel.transports:
        yield _Finding("no transport", "", "Nobody can connect: give it transports=[WebSocketTransport()].")
    for transport in kernel.transports:
        port = getattr(transport, "port", None)
        where = "" if port is None else "a port the system picks" if port == 0 else f"port {port}"
        yield _Finding(type(transport).__name__, where, "")
