"""What the commands share: exit codes, one-line complaints, and how a command puts itself on the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

__all__ = [
    "DISTRIBUTION",
    "FAILED",
    "INTERRUPTED",
    "MISUSED",
    "OK",
    "Complaint",
    "add_command",
    "complain",
    "end_quietly",
    "installed_version",
    "positive_number",
    "printable",
]

OK, FAILED, MISUSED = 0, 1, 2  # exit codes; argparse uses the same 2
INTERRUPTED = 130  # as a shell tells of Ctrl-C

DISTRIBUTION = "realtime-toolkit"

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """Where commands are added."""

Command = Callable[[argparse.Namespace], int]


class Complaint(Exception):
    """What the user can put right: shown as one line.

    :param code: what the command exits with.
    """

    def __init__(self, text: object, code: int = MISUSED) -> None:
        super().__init__(text)
        self.code = code


def add_command(
    commands: Commands, name: str, command: Command, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command and return its parser, for its arguments. ``examples`` ends its ``--help``."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def positive_number(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1")
    return int(text)


def complain(text: object) -> None:
    """Tell on stderr what is wrong."""
    print(f"realtime: {printable(str(text))}", file=sys.stderr, flush=True)


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution without importing it; None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def printable(text: str) -> str:
    """Return a text that cannot move the cursor or change colours, whoever wrote it."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


def end_quietly() -> None:
    """After a BrokenPipeError, as in ``realtime doctor | head``: whoever reads has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
