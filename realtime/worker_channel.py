"""What a worker and the pool it belongs to tell each other: lines of JSON on a pair of Unix sockets.

The worker asks for the listening sockets that it needs, and says that it serves, or why it does not. The pool
only answers; to a worker that serves it says nothing, and the end of the stream says that the pool is gone.
"""

from __future__ import annotations

import os
import socket

import msgspec

from realtime.errors import ConfigurationError, PortInUse

__all__ = ["ChannelClosed", "Failed", "PoolEnd", "Ready", "Wanted", "WorkerEnd", "channel_pair"]

LINE = 65536  # bytes of the longest line
TEXT = 8192  # characters of an error's text that are passed on


class Wanted(msgspec.Struct, tag=True, frozen=True):
    """A listening socket is wanted; it is the ``ordinal``-th for this address in the worker, from 0."""

    host: str
    port: int
    ordinal: int
    exclusive: bool


class Ready(msgspec.Struct, tag=True):
    """The worker serves."""


class Failed(msgspec.Struct, tag=True):
    """The worker cannot serve.

    ``text`` says why; None where it has said so itself, and wants the pool to end with ``exit_code``.
    """

    text: str | None
    port_in_use: bool = False
    exit_code: int = 1


class _Answer(msgspec.Struct):
    """To Wanted: the socket comes with it, or ``error`` says why not."""

    error: str | None = None
    port_in_use: bool = False


_reports: msgspec.json.Decoder[Wanted | Ready | Failed] = msgspec.json.Decoder(Wanted | Ready | Failed)
_answers = msgspec.json.Decoder(_Answer)


class ChannelClosed(Exception):
    """The other end is gone, or talks nonsense."""


def channel_pair() -> tuple[PoolEnd, WorkerEnd]:
    """Make the two ends of a channel."""
    ours, theirs = socket.socketpair()
    return PoolEnd(ours), WorkerEnd(theirs)


class PoolEnd:
    """The pool's end: never waits."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = b""

    def fileno(self) -> int:
        """The descriptor, to wait for what comes."""
        return self._socket.fileno()

    def receive(self) -> list[Wanted | Ready | Failed]:
        """Return what the worker has said since the last call.

        :raises ChannelClosed: nothing more will come.
        """
        try:
            data = self._socket.recv(LINE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelClosed(str(error)) from None
        if not data:
            raise ChannelClosed("the worker closed it")
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > LINE:
            raise ChannelClosed("a line that does not end")
        try:
            return [_reports.decode(line) for line in lines]
        except msgspec.MsgspecError as error:
            raise ChannelClosed(f"not a report: {error}") from None

    def give(self, listening: socket.socket) -> None:
        """Answer with a listening socket."""
        self._answer(_Answer(), [listening.fileno()])

    def refuse(self, error: ConfigurationError) -> None:
        """Answer that there is none."""
        self._answer(_Answer(error=str(error)[:TEXT], port_in_use=isinstance(error, PortInUse)), [])

    def _answer(self, answer: _Answer, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._socket, [msgspec.json.encode(answer) + b"\n"], descriptors)
        except OSError:
            pass  # it has ended: that is noticed anyway

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class WorkerEnd:
    """The worker's end. What it asks blocks the whole process, event loop included."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        """The descriptor, to wait for the end of the stream: nothing comes that was not asked for."""
        return self._socket.fileno()

    def socket_for(self, wanted: Wanted, timeout: float) -> socket.socket:
        """Ask for a listening socket. Blocks the process, ``timeout`` seconds at most.

        :raises ConfigurationError, PortInUse: the pool cannot listen there.
        :raises ChannelClosed: the pool is gone.
        """
        self._send(wanted)
        self._socket.settimeout(timeout)
        received, descriptors = b"", []
        while not received.endswith(b"\n"):
            try:
                data, more, _, _ = socket.recv_fds(self._socket, LINE, 1)
            except OSError as error:
                raise ChannelClosed(f"no answer from the pool: {error}") from None
            descriptors += more
            received += data
            if not data or len(received) > LINE:
                raise ChannelClosed("no answer from the pool")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        answer = _answers.decode(received)
        if answer.error is not None:
            raise (PortInUse if answer.port_in_use else ConfigurationError)(answer.error)
        (descriptor,) = descriptors
        return socket.socket(fileno=descriptor)

    def ready(self) -> None:
        """Say that the worker serves."""
        self._send(Ready())

    def failed(self, text: str | None, *, port_in_use: bool = False, exit_code: int = 1) -> None:
        """Say why it does not."""
        self._send(Failed(text if text is None else text[:TEXT], port_in_use, exit_code))

    def _send(self, report: Wanted | Ready | Failed) -> None:
        try:
            self._socket.settimeout(None)
            self._socket.sendall(msgspec.json.encode(report) + b"\n")
        except OSError:
            pass  # the pool is gone, which whoever waits for it will notice

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
