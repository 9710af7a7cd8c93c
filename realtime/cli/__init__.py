"""The command line, ``realtime`` and ``python -m realtime``: one module a command.

``serve`` and ``demo`` monkey-patch before they import the application, so that code which blocks in the ordinary way
waits in its own greenlet. Importing the library patches nothing, and neither does ``doctor``, which tells what that
means. Nothing that waits is imported at the top of these modules: it would keep the unpatched functions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from realtime.cli import bench, demo, doctor, listen, send, serve
from realtime.cli.common import DISTRIBUTION, INTERRUPTED, OK, Complaint, complain, end_quietly, installed_version

__all__ = ["main"]

_EXAMPLES = """\
examples:
  realtime demo
  realtime serve chat:kernel
  realtime send ws://localhost:8080/realtime chat:message hello --room tea
  realtime listen ws://localhost:8080/realtime
  realtime bench ws://localhost:8080/realtime
  realtime doctor

`realtime COMMAND --help` tells more. `python -m realtime` is the same.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Leaves by SystemExit for ``--help`` and wrong usage.

    :param argv: the arguments; those of the process if None.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except Complaint as complaint:
        complain(complaint)
        return complaint.code
    except BrokenPipeError:
        end_quietly()
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED


class _Version(argparse.Action):
    """Looks the version up when it is asked for, not with every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"realtime {installed_version(DISTRIBUTION) or '(from its source directory)'}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="realtime",
        description="Real-time back ends in plain, blocking Python.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (serve, demo, send, listen, bench, doctor):
        module.add(commands)
    return parser
