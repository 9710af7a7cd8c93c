"""Not a server: the least a process can do and still deliver. It shows what the load generator can take.

One epoll loop that parses, unmasks, encodes and checks nothing: it tells a client's frames apart by their
length and answers each with bytes made beforehand, one ``send`` per socket and wake-up. Whatever rate it
reaches, the load generator has sustained; a server below that rate was not held back by the load generator.
"""

from __future__ import annotations

import json
import select
import socket

from benchmarks.dialects import ROOM, JsonDialect, message_payload, upgrade_response
from benchmarks.frames import SEQUENCES, server_frame
from benchmarks.peers.announce import announce

dialect = JsonDialect()
ECHO, CHAT, JOIN = len(dialect.message("echo", 0)), len(dialect.message("chat", 0)), len(dialect.join())
MOST = 64
"""Messages answered at once; more wait for the next turn."""


def answers(kind: str) -> list[bytes]:
    """A finished frame for each running number, repeated at the end so that a slice never wraps."""
    message = {"type": kind, "payload": {}, "room": ROOM, "timestamp": 1_700_000_000_000}
    frames = [
        server_frame(json.dumps(message | {"payload": message_payload(index)}).encode())
        for index in range(SEQUENCES)
    ]
    return frames + frames[:MOST]


class Ceiling:
    """The loop and its few counters."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.sockets: dict[int, socket.socket] = {}
        self.greeted: set[int] = set()
        self.echoed: dict[int, int] = {}
        self.members: dict[int, socket.socket] = {}
        self.published = 0
        self.chats, self.echoes = answers("chat"), answers("echo")
        self.joined = server_frame(json.dumps({"type": "joined", "payload": ROOM}).encode())

    def accept(self) -> None:
        sock, _ = self.listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.sockets[sock.fileno()] = sock
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def forget(self, fd: int) -> None:
        self.epoll.unregister(fd)
        self.sockets.pop(fd).close()
        self.greeted.discard(fd)
        self.echoed.pop(fd, None)
        self.members.pop(fd, None)
        if not self.members:
            self.published = 0

    def serve(self, fd: int) -> None:
        sock = self.sockets[fd]
        try:
            size = len(data := sock.recv(65536))
            if fd not in self.greeted and size:
                self.greeted.add(fd)
                sock.send(upgrade_response())
            elif size % CHAT == 0 and size:
                self.publish(size // CHAT)
            elif size % ECHO == 0 and size:
                first, count = self.echoed.get(fd, 0), size // ECHO
                sock.send(b"".join(self.echoes[first % SEQUENCES : first % SEQUENCES + count]))
                self.echoed[fd] = first + count
            elif size == JOIN:
                self.members[fd] = sock
                sock.send(self.joined)
            else:  # a close frame, or the end
                sock.send(data[:0])
                self.forget(fd)
        except OSError:
            self.forget(fd)

    def publish(self, count: int) -> None:
        first = self.published % SEQUENCES
        data = b"".join(self.chats[first : first + count])
        self.published += count
        for fd, member in tuple(self.members.items()):
            try:
                member.send(data)
            except OSError:
                self.forget(fd)

    def run(self) -> None:
        listening = self.listener.fileno()
        while True:
            for fd, _ in self.epoll.poll():
                if fd == listening:
                    self.accept()
                elif fd in self.sockets:
                    self.serve(fd)


if __name__ == "__main__":
    ceiling = Ceiling()
    announce(ceiling.listener.getsockname()[1])
    ceiling.run()
