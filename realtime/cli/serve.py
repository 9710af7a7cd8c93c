"""``realtime serve``: patches, imports the application, and runs its kernel in one process or several."""

from __future__ import annotations

import argparse
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from realtime.cli.common import FAILED, OK, Complaint, add_command, complain
from realtime.cli.loading import load_kernel

if TYPE_CHECKING:
    from realtime.cli.common import Commands
    from realtime.kernel import RealtimeKernel

__all__ = ["add"]

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

With --workers every process imports the module for itself; one that dies is started again. SIGHUP to the first
process replaces the others one by one, with what the files hold then, and refuses no connection meanwhile.

exit codes: 0 stopped by a signal, 1 it could not start (the port is in use, ...), 2 no such module or kernel
"""


def add(commands: Commands) -> None:
    """Put the command on the command line."""
    parser = add_command(
        commands, "serve", _serve, summary="run a kernel", description=_DESCRIPTION, examples=_EXAMPLES
    )
    parser.add_argument("target", metavar="MODULE[:KERNEL]", help="where the RealtimeKernel is")
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error", "critical"),
        help="instead of the kernel's own log_level",
    )
    parser.add_argument(
        "--workers", metavar="N", type=_workers, help="run N processes behind one port; auto: one for each processor"
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
    kernel = load_kernel(arguments.target)
    if arguments.log_level is not None:
        configure_logging(arguments.log_level)
    try:
        kernel.run()
    except ConfigurationError as error:
        raise Complaint(error, FAILED) from None
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
            kernel = load_kernel(arguments.target)
        except Complaint as complaint:
            complain(complaint)
            raise SystemExit(complaint.code) from None
        if arguments.log_level is not None:
            configure_logging(arguments.log_level)
        return kernel

    try:
        WorkerPool(arguments.workers, setup, log_level=arguments.log_level or "info").run()
    except ConfigurationError as error:
        raise Complaint(error, FAILED) from None
    return OK


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # In whichever greenlet this is: gevent carries it to the main one, and prints no traceback as it would of
    # a KeyboardInterrupt.
    raise SystemExit(OK)
