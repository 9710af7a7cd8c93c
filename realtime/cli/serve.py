"""``realtime serve``: patches, imports the application, and runs its kernel in one process or several."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from realtime.cli.addresses import add_mesh_options, add_websocket_options, join_mesh, move_websocket
from realtime.cli.common import FAILED, OK, Complaint, add_command, complain
from realtime.cli.loading import load_kernel
from realtime.cli.reload import Reloader, module_files, server_command
from realtime.cli.watching import ImportReporter

if TYPE_CHECKING:
    from realtime.cli.common import Commands
    from realtime.kernel import RealtimeKernel
    from realtime.worker_pool import Worker

__all__ = ["add", "run_here"]

_DESCRIPTION = """\
Monkey-patches the standard library with gevent, imports the module and runs its kernel until SIGINT or
SIGTERM. The current directory is searched for the module first.
"""
_EXAMPLES = """\
examples:
  realtime serve chat:kernel                     the object `kernel` in chat.py
  realtime serve chat                            the same: `kernel` is the name it looks for
  realtime serve shop.sockets:live.kernel --log-level debug
  realtime serve chat:kernel --workers 4         four processes that share the port
  realtime serve chat:kernel --workers auto      one for each processor
  realtime serve chat:kernel --reload            while you write it: starts again when you save
  realtime serve chat:kernel --port 8081 --mesh  and the same with 8082 in another terminal: they act as one
  realtime serve chat:kernel --mesh 10.0.0.2:9090 --peer 10.0.0.1:9090

--host, --port and --path move the kernel's WebSocketTransport; a kernel that has none gets one.

--mesh alone joins with what the same user serves on this machine by the same module from the same directory. With a
PORT other machines join; the environment variable REALTIME_MESH_SECRET holds the secret that all nodes know, which
anything but loopback needs. With --workers the workers take PORT, PORT + 1, and so on.

With --workers every process imports the module for itself; one that dies is started again. SIGHUP to the first
process replaces the others one by one, with what the files hold then, and refuses no connection meanwhile.

--reload watches the modules that were imported, except installed ones. Clients are told to come back; while the code
does not run, it waits for the next change.

exit codes: 0 stopped by a signal, 1 it could not start (the port is in use, ...), 2 no such module or kernel
"""


def add(commands: Commands) -> None:
    """Put the command on the command line."""
    parser = add_command(
        commands, "serve", _serve, summary="run a kernel", description=_DESCRIPTION, examples=_EXAMPLES
    )
    parser.add_argument("target", metavar="MODULE[:KERNEL]", help="where the RealtimeKernel is")
    add_websocket_options(parser)
    parser.add_argument("--path", help="where WebSockets connect, instead: /realtime")
    parser.add_argument(
        "--workers", metavar="N", type=_workers, help="run N processes behind one port; auto: one for each processor"
    )
    add_mesh_options(parser)
    parser.add_argument("--reload", action="store_true", help="for development: start again when a module changes")
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error", "critical"),
        help="instead of the kernel's own log_level",
    )


def _workers(text: str) -> int:
    """Read the value of ``--workers``."""
    from realtime.worker_pool import usable_cpus

    if text == "auto":
        return usable_cpus()
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1, or auto")
    return int(text)


def _serve(arguments: argparse.Namespace) -> int:
    """Serve in this process, in several, or in one that is started again and again. Returns the exit code; blocks."""
    reporter = ImportReporter.from_environment()
    if arguments.reload and reporter is None:
        files = module_files(arguments.target.partition(":")[0])
        return Reloader(server_command(arguments.argv), files).run()
    if arguments.workers is not None:
        return _serve_with_workers(arguments, reporter)
    from gevent import monkey

    monkey.patch_all()
    return run_here(lambda: _kernel(arguments, reporter))


def run_here(make: Callable[[], RealtimeKernel]) -> int:
    """Make a kernel and run it in this process, which is patched. Returns the exit code; blocks.

    :raises Complaint: it cannot start.
    """
    import signal

    from realtime.errors import ConfigurationError

    for number in (signal.SIGINT, signal.SIGTERM):  # until the kernel runs and looks after them
        signal.signal(number, _leave)
    try:
        make().run()
    except ConfigurationError as error:
        raise Complaint(error, FAILED) from None
    return OK


def _serve_with_workers(arguments: argparse.Namespace, reporter: ImportReporter | None) -> int:
    """Run a pool of processes, each of which patches and imports. Returns the exit code; blocks."""
    from realtime.errors import ConfigurationError
    from realtime.worker_pool import WorkerPool

    def setup(worker: Worker) -> RealtimeKernel:
        from gevent import monkey

        monkey.patch_all()
        try:
            return _kernel(arguments, reporter, worker)
        except Complaint as complaint:
            complain(complaint)
            raise SystemExit(complaint.code) from None

    try:
        WorkerPool(arguments.workers, setup, log_level=arguments.log_level or "info").run()
    except ConfigurationError as error:
        raise Complaint(error, FAILED) from None
    return OK


def _kernel(
    arguments: argparse.Namespace, reporter: ImportReporter | None, worker: Worker | None = None
) -> RealtimeKernel:
    """Import the application and do with its kernel what the command line says."""
    from realtime.startup import configure_logging

    try:
        kernel = load_kernel(arguments.target)
    finally:
        if reporter is not None:
            reporter.report()
    if reporter is not None:
        _watch(reporter)
    if arguments.log_level is not None:
        configure_logging(arguments.log_level)
    move_websocket(kernel, host=arguments.host, port=arguments.port, path=arguments.path)
    join_mesh(kernel, arguments, worker)
    return kernel


def _watch(reporter: ImportReporter) -> None:
    """Report later imports from a greenlet that ends with this process."""
    import gevent

    gevent.spawn(reporter.keep_reporting)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # In whichever greenlet this is: gevent carries it to the main one, and prints no traceback as it would of
    # a KeyboardInterrupt.
    raise SystemExit(OK)
