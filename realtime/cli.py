"""The command line: ``realtime serve`` and ``realtime doctor``, also as ``python -m realtime``.

``serve`` monkey-patches before it imports the application, so that code which blocks in the ordinary way
waits in its own greenlet. Importing the library patches nothing, and neither does ``doctor``, which tells
what that means. Nothing that waits is imported here at the top: it would keep the unpatched functions.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from types import ModuleType

    from realtime.kernel import RealtimeKernel

__all__ = ["main"]

OK, FAILED, MISUSED = 0, 1, 2  # exit codes; argparse uses the same 2

DISTRIBUTION = "realtime-toolkit"
WIDTH = 94  # columns of doctor's sentences
OWN_DESCRIPTORS = 64  # a generous guess at what a process has open beside its clients: log files, pools, loop

_SERVE = """\
Monkey-patches the standard library with gevent, imports the module and runs its kernel until SIGINT or
SIGTERM. The current directory is searched for the module first.
"""
_SERVE_EXAMPLES = """\
examples:
  realtime serve chat:kernel                     the object `kernel` in chat.py
  realtime serve chat                            the same: `kernel` is the name it looks for
  realtime serve shop.sockets:live.kernel --log-level debug
  realtime serve chat:kernel --workers 4         four processes that share the port
  realtime serve chat:kernel --workers auto      one for each processor

With --workers every process imports the module for itself; one that dies is started again. SIGHUP to the first
process replaces the others one by one, with what the files hold then, and refuses no connection meanwhile.

exit codes: 0 stopped by a signal, 1 it could not start (the port is in use, ...), 2 no such module or kernel
"""
_DOCTOR = """\
Tells what this machine and environment offer, and what each finding means for a server: versions, what is not
monkey-patched without `realtime serve`, how many clients fit, and which optional parts there are.
"""
_DOCTOR_EXAMPLES = """\
examples:
  realtime doctor                                this machine and environment
  realtime doctor chat:kernel                    and what importing chat.py, without `realtime serve`, patches
"""

_UNPATCHED = {
    "socket": "A handler that uses the network (requests, a database driver) holds up every client.",
    "time": "A handler that calls time.sleep holds up every client; gevent.sleep does not.",
    "ssl": "A handler that opens an encrypted connection (https, a database) holds up every client.",
    "threading": "A handler that waits for a lock, a queue or a thread holds up every client.",
    "subprocess": "A handler that waits for another program holds up every client.",
    "select": "A library that waits with select or poll in a handler holds up every client.",
}


class _Complaint(Exception):
    """What the user can put right: shown as one line."""


class _Finding(NamedTuple):
    name: str
    value: str
    meaning: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Leaves by SystemExit for ``--help`` and wrong usage.

    :param argv: the arguments; those of the process if None.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="realtime",
        description="Real-time back ends in plain, blocking Python.",
        epilog="examples:\n  realtime serve chat:kernel\n  realtime doctor\n\n"
        "`realtime COMMAND --help` tells more. `python -m realtime` is the same.",
        formatter_class=raw,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve", help="run a kernel", description=_SERVE, epilog=_SERVE_EXAMPLES, formatter_class=raw
    )
    serve.add_argument("target", metavar="MODULE[:KERNEL]", help="where the RealtimeKernel is")
    serve.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error", "critical"),
        help="instead of the kernel's own log_level",
    )
    serve.add_argument(
        "--workers", metavar="N", type=_workers, help="run N processes behind one port; auto: one for each processor"
    )
    serve.set_defaults(command=_serve)
    doctor = commands.add_parser(
        "doctor",
        help="tell what is patched, installed and limited here, and what it means",
        description=_DOCTOR,
        epilog=_DOCTOR_EXAMPLES,
        formatter_class=raw,
    )
    doctor.add_argument("target", metavar="MODULE[:KERNEL]", nargs="?", help="an application to look at, too")
    doctor.set_defaults(command=_doctor)
    return parser


def _workers(text: str) -> int:
    """Read the value of ``--workers``."""
    from realtime.worker_pool import usable_cpus

    if text == "auto":
        return usable_cpus()
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1, or auto")
    return int(text)


def _complain(text: object) -> None:
    print(f"realtime: {text}", file=sys.stderr)


# serve ----------------------------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    """Patch, import, run. Returns the exit code; blocks until the kernel has stopped."""
    if arguments.workers is not None:
        return _serve_with_workers(arguments)
    from gevent import monkey

    monkey.patch_all()

    import signal

    from realtime.errors import ConfigurationError
    from realtime.startup import configure_logging

    for number in (signal.SIGINT, signal.SIGTERM):  # until the kernel runs and looks after them
        signal.signal(number, _leave)
    try:
        kernel = _load(arguments.target)
        if arguments.log_level is not None:
            configure_logging(arguments.log_level)
        kernel.run()
    except _Complaint as complaint:
        _complain(complaint)
        return MISUSED
    except ConfigurationError as error:
        _complain(error)
        return FAILED
    return OK


def _serve_with_workers(arguments: argparse.Namespace) -> int:
    """Run a pool of processes, each of which patches and imports. Returns the exit code; blocks."""
    from realtime.errors import ConfigurationError
    from realtime.startup import configure_logging
    from realtime.worker_pool import Worker, WorkerPool

    def setup(_worker: Worker) -> RealtimeKernel:
        from gevent import monkey

        monkey.patch_all()
        try:
            kernel = _load(arguments.target)
        except _Complaint as complaint:
            _complain(complaint)
            raise SystemExit(MISUSED) from None
        if arguments.log_level is not None:
            configure_logging(arguments.log_level)
        return kernel

    try:
        WorkerPool(arguments.workers, setup, log_level=arguments.log_level or "info").run()
    except ConfigurationError as error:
        _complain(error)
        return FAILED
    return OK


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # In whichever greenlet this is: gevent carries it to the main one, and prints no traceback as it would of
    # a KeyboardInterrupt.
    raise SystemExit(OK)


# Finding the kernel ---------------------------------------------------------------------------------------


def _load(target: str) -> RealtimeKernel:
    """Import the module of ``module[:attribute.path]`` and return its kernel.

    :raises _Complaint: there is no such module or kernel, or the module raises an exception.
    """
    from realtime.kernel import RealtimeKernel

    name, colon, path = target.partition(":")
    if not colon:
        path = "kernel"
    if name.endswith(".py") or "/" in name or "\\" in name:
        module_name = name.removesuffix(".py").strip("./\\").replace("/", ".").replace("\\", ".")
        raise _Complaint(f"{name!r} is a file; give its module instead: {module_name}:{path}")
    if not all(part.isidentifier() for part in (*name.split("."), *path.split("."))):
        raise _Complaint(f"{target!r}: must be MODULE or MODULE:KERNEL, such as chat:kernel")
    module = _import(name)
    found: object = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _Complaint(f"module {name!r} has no {path!r}; {_kernels_of(module)}") from None
    if not isinstance(found, RealtimeKernel):
        raise _Complaint(
            f"{name}:{path} is of type {type(found).__name__}, not a RealtimeKernel; {_kernels_of(module)}"
        )
    return found


def _kernels_of(module: ModuleType) -> str:
    from realtime.kernel import RealtimeKernel

    names = sorted(name for name, value in vars(module).items() if isinstance(value, RealtimeKernel))
    if not names:
        return "there is no RealtimeKernel in it"
    return "there is " + ", ".join(f"{module.__name__}:{name}" for name in names)


def _import(name: str) -> ModuleType:
    """Import a module, looking in the current directory first.

    An exception that the module raises is printed with the traceback from its first line on; the machinery
    that led there is left out.

    :raises _Complaint: there is no such module, or it raised an exception.
    """
    here = os.getcwd()
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        own = error.__traceback__
        while own is not None and _is_machinery(own.tb_frame.f_code):
            own = own.tb_next
        if own is None and isinstance(error, ModuleNotFoundError):
            raise _Complaint(
                f"there is no module {error.name!r} in {here} or elsewhere on the Python path"
            ) from None
        traceback.print_exception(type(error), error, own)
        raise _Complaint(f"module {name!r} could not be imported: {_one_line(error)}") from None


def _is_machinery(code: CodeType) -> bool:
    name = code.co_filename
    return name.startswith("<frozen importlib") or name in (__file__, importlib.__file__)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# doctor ---------------------------------------------------------------------------------------------------


def _doctor(arguments: argparse.Namespace) -> int:
    """Print every finding. Patches nothing."""
    kernel = None
    if arguments.target is not None:
        try:
            kernel = _load(arguments.target)
        except _Complaint as complaint:
            _complain(complaint)
            return MISUSED
    sections = [
        _section("Versions", _versions()),
        _section(_patching_title(arguments.target), _patching()),
        _section("Limits of this machine", [*_descriptors(), *_backlog()]),
        _section("Optional parts", _optional_parts()),
    ]
    if kernel is not None:
        sections.append(_section(f"The kernel {arguments.target}", _transports(kernel)))
    try:
        print("\n\n".join(sections), flush=True)
    except BrokenPipeError:  # as in `realtime doctor | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


def _section(title: str, findings: Iterable[_Finding]) -> str:
    lines = [title]
    for finding in findings:
        lines.append(f"  {finding.name:<14} {finding.value}".rstrip())
        if finding.meaning:
            lines.append(textwrap.indent(textwrap.fill(finding.meaning, WIDTH), " " * 6))
    return "\n".join(lines)


def _installed(distribution: str) -> str | None:
    """Return the version of a distribution without importing it; None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[_Finding]:
    import platform

    import gevent
    import msgpack

    version = _installed(DISTRIBUTION)
    meaning = "" if version else "It runs from its source directory."
    yield _Finding("realtime", version or "not installed", meaning)
    yield _Finding("python", f"{platform.python_version()} ({platform.python_implementation()})", "")
    for name in ("gevent", "greenlet", "msgspec"):
        yield _Finding(name, _installed(name) or "unknown", "")
    slow = msgpack.Unpacker.__module__ == "msgpack.fallback"
    yield _Finding(
        "msgpack",
        _installed("msgpack") or "unknown",
        "It lacks its C extension: the mesh and MessagePack clients are slower." if slow else "",
    )
    loop = gevent.get_hub().loop
    library = "libuv" if "libuv" in type(loop).__module__ else "libev"
    meaning = (
        "This is gevent's usual event loop, which realtime is tested with."
        if library == "libev"
        else "It works, but a handler that holds the loop is not named in the log: libev can, libuv cannot."
    )
    yield _Finding("event loop", f"{library}, {loop.backend}", meaning)


def _patching_title(target: str | None) -> str:
    if target is None:
        return "Monkey-patching in a process that is started without `realtime serve`"
    return f"Monkey-patching once {target.partition(':')[0]} is imported without `realtime serve`"


def _patching() -> Iterator[_Finding]:
    from realtime.startup import unpatched_modules

    names = unpatched_modules()
    for name in names:
        yield _Finding(name, "not patched", _UNPATCHED[name])
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


def _optional_parts() -> Iterator[_Finding]:
    for name, requirement, use in (
        ("flask", f"'{DISTRIBUTION}[flask]'", "WebSocketTransport(app=...) serves a Flask application, too."),
        ("websockets", "websockets", "`python -m websockets URL` talks to a server by hand."),
    ):
        version = _installed(name)
        meaning = use if version else f"{use} To have it: pip install {requirement}"
        yield _Finding(name, version or "not installed", meaning)


def _transports(kernel: RealtimeKernel) -> Iterator[_Finding]:
    if not kernel.transports:
        yield _Finding("no transport", "", "Nobody can connect: give it transports=[WebSocketTransport()].")
    for transport in kernel.transports:
        port = getattr(transport, "port", None)
        where = "" if port is None else "a port the system picks" if port == 0 else f"port {port}"
        yield _Finding(type(transport).__name__, where, "")
