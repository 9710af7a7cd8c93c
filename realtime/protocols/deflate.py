"""permessage-deflate (RFC 7692): negotiating it on either side, compressing, and inflating within a bound.

Server policy is a :class:`DeflateOptions`; what one connection agreed on is a :class:`PerMessageDeflate`.
Nothing here switches greenlets.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from realtime.errors import ConfigurationError, FrameError

__all__ = [
    "DeflateOptions",
    "PerMessageDeflate",
    "accept_offer",
    "accept_response",
    "compress_once",
    "make_offer",
]

EXTENSION = "permessage-deflate"

_TAIL = b"\x00\x00\xff\xff"  # what a sync flush ends with; taken off on the wire (RFC 7692 section 7.2.1)
_EMPTY_FINAL_BLOCK = b"\x03\x00"
_LARGEST_WINDOW = 15
_SMALLEST_WINDOW = 9  # zlib reads, but cannot write, raw deflate with a window of 2**8 bytes
# A message may hold several final blocks (section 7.2.3.4), but each costs a new inflater: a peer has no use
# for more than one a flush, and two-byte blocks without end would be an attack on the processor.
_MAX_FINAL_BLOCKS = 128

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2
_QUOTED = r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~\x80-\xff])*"'
_ITEM = re.compile(rf"[ \t]*({_TOKEN})[ \t]*(?:=[ \t]*({_TOKEN}|{_QUOTED})[ \t]*)?([;,]|\Z)")
_WINDOW_BITS = re.compile(r"[89]|1[0-5]")


@dataclass(frozen=True, kw_only=True)
class DeflateOptions:
    """What we offer as a client or agree to as a server. Raises ConfigurationError for impossible values."""

    server_no_context_takeover: bool = False
    """The server starts each message anew: one compressed frame fits every member of a room, and the
    connection keeps no compressor (about 256 KiB). Compresses short, similar messages less well."""

    client_no_context_takeover: bool = False
    """The client starts each message anew: the server keeps no inflater (about 40 KiB) between messages."""

    server_max_window_bits: int = _LARGEST_WINDOW
    """Base-2 logarithm of the server's window in bytes, 9 to 15. Less: less memory, less compression."""

    client_max_window_bits: int = _LARGEST_WINDOW
    """The same for the client's window; a server can only ask this of clients that offer it."""

    level: int = 6
    """zlib's compression level, 0 (stored) to 9 (slowest); 6 is zlib's own default."""

    memory_level: int = 8
    """zlib's memory level of a compressor, 1 to 9; 8 is zlib's own default."""

    min_size: int = 256
    """Messages of fewer bytes go uncompressed: they would hardly shrink."""

    def __post_init__(self) -> None:
        self._require("server_max_window_bits", _SMALLEST_WINDOW, _LARGEST_WINDOW)
        self._require("client_max_window_bits", _SMALLEST_WINDOW, _LARGEST_WINDOW)
        self._require("level", 0, 9)
        self._require("memory_level", 1, 9)
        self._require("min_size", 0, sys.maxsize)

    def _require(self, name: str, smallest: int, largest: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not smallest <= value <= largest:
            raise ConfigurationError(f"DeflateOptions({name}={value!r}): must be {smallest} to {largest}")


def _new_compressor(window_bits: int, level: int, memory_level: int) -> zlib._Compress:
    return zlib.compressobj(level, zlib.DEFLATED, -window_bits, memory_level)


def compress_once(
    payload: bytes, *, window_bits: int = _LARGEST_WINDOW, level: int = 6, memory_level: int = 8
) -> bytes:
    """Compress a whole message so that it depends on no other: to be shared by every receiver that agreed on
    ``window_bits`` or more for our window. Goes into a frame with RSV1 set.
    """
    compressor = _new_compressor(window_bits, level, memory_level)
    return compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]


def inflate_once(compressed: bytes) -> bytes:
    """Return what ``compress_once`` was given: for our own messages alone, as the size of the result is not bound."""
    inflater = zlib.decompressobj(-_LARGEST_WINDOW)
    return inflater.decompress(compressed + b"\x00\x00\xff\xff") + inflater.flush()


class PerMessageDeflate:
    """The compressor and the inflater of one connection, with the parameters it agreed on.

    ``send_*`` is about our messages, ``receive_*`` about the peer's. Both objects are made when first needed.
    With ``send_takeover=False`` every message stands alone, so :func:`compress_once` may do it once for many.
    A peer that demands a window of 2**8 bytes of us is sent no compressed message, which is always allowed.
    """

    __slots__ = (
        "_compressor",
        "_final_blocks",
        "_fresh",
        "_inflater",
        "level",
        "memory_level",
        "min_size",
        "receive_takeover",
        "receive_window_bits",
        "send_takeover",
        "send_window_bits",
    )

    def __init__(
        self,
        *,
        send_takeover: bool = True,
        receive_takeover: bool = True,
        send_window_bits: int = _LARGEST_WINDOW,
        receive_window_bits: int = _LARGEST_WINDOW,
        level: int = 6,
        memory_level: int = 8,
        min_size: int = 256,
    ) -> None:
        self.send_takeover = send_takeover
        self.receive_takeover = receive_takeover
        self.send_window_bits = send_window_bits
        self.receive_window_bits = receive_window_bits
        self.level = level
        self.memory_level = memory_level
        self.min_size = min_size if send_window_bits >= _SMALLEST_WINDOW else sys.maxsize
        self._compressor: zlib._Compress | None = None
        self._inflater: zlib._Decompress | None = None
        self._fresh = False  # the inflater was begun after a final block and has seen nothing yet
        self._final_blocks = 0

    def compress(self, payload: bytes) -> bytes:
        """Return a message's compressed payload, for a frame with RSV1 set. The order of calls is the order
        on the wire: with takeover, the peer's window is built from every message before."""
        if not self.send_takeover:
            return compress_once(
                payload, window_bits=self.send_window_bits, level=self.level, memory_level=self.memory_level
            )
        if self._compressor is None:
            self._compressor = _new_compressor(self.send_window_bits, self.level, self.memory_level)
        return self._compressor.compress(payload) + self._compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]

    def inflate(self, data: bytes, room: int) -> bytes:
        """Inflate a piece of a message into at most ``room + 1`` bytes.

        More than ``room`` bytes returned means that the message does not fit: nothing may follow. Raises
        FrameError if the data is no deflate stream.
        """
        if self._inflater is None:
            self._inflater = self._new_inflater()
        if not data:
            return b""
        self._fresh = False
        try:
            inflated = self._inflater.decompress(data, room + 1)
            while self._inflater.eof and len(inflated) <= room:
                rest = self._after_final_block()
                if not rest:
                    break
                self._fresh = False
                inflated += self._inflater.decompress(rest, room + 1 - len(inflated))
        except zlib.error:
            raise FrameError("the compressed data is no deflate stream") from None
        return inflated

    def finish(self, room: int) -> bytes:
        """End the message: return its last bytes as :meth:`inflate` does. FrameError if it was cut off."""
        inflated = b""
        if not self._fresh:  # else the peer's final block was its last byte: it forgot section 7.2.1's 0x00
            inflated = self.inflate(_TAIL, room)
        if len(inflated) <= room:
            self._check_boundary()
        self._final_blocks = 0
        self._fresh = False
        if not self.receive_takeover:
            self._inflater = None
        return inflated

    def _new_inflater(self) -> zlib._Decompress:
        return zlib.decompressobj(-self.receive_window_bits)

    def _after_final_block(self) -> bytes:
        """Begin a new inflater, as zlib's own streams do after a final block; return what it has to read."""
        assert self._inflater is not None
        self._final_blocks += 1
        if self._final_blocks > _MAX_FINAL_BLOCKS:
            raise FrameError(f"more than {_MAX_FINAL_BLOCKS} final deflate blocks in one message")
        rest = self._inflater.unused_data
        self._inflater = self._new_inflater()
        self._fresh = True
        return rest

    def _check_boundary(self) -> None:
        """Raise FrameError unless the message ended where a block ends (costs 1 µs, measured).

        Without this a message that was cut off would pass as a shorter one and poison those after it.
        """
        assert self._inflater is not None
        probe = self._inflater.copy() if self.receive_takeover else self._inflater
        try:
            probe.decompress(_EMPTY_FINAL_BLOCK, 1)
        except zlib.error:
            pass
        if not probe.eof or probe.unused_data:
            raise FrameError("the compressed message ends within a deflate block")


# ---------------------------------------------------------------------------------------------- negotiation


@dataclass(frozen=True)
class _Parameters:
    """The parameters of an offer or response (RFC 7692 section 7.1). None: absent; 0: without a value."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None

    @classmethod
    def parse(cls, parameters: Iterable[tuple[str, str | None]], *, offer: bool) -> _Parameters:
        """Raise ValueError for what section 7.1 has declined: unknown, doubled or ill-valued ones."""
        found: dict[str, int] = {}
        for name, value in parameters:
            if name in found:
                raise ValueError(f"{name} is given twice")
            if name in ("server_no_context_takeover", "client_no_context_takeover"):
                if value is not None:
                    raise ValueError(f"{name} takes no value")
                found[name] = True
            elif name == "client_max_window_bits" and value is None and offer:
                found[name] = 0
            elif name in ("server_max_window_bits", "client_max_window_bits"):
                if value is None or not _WINDOW_BITS.fullmatch(value):
                    raise ValueError(f"{name} must be 8 to 15")
                found[name] = int(value)
            else:
                raise ValueError(f"{name} is no parameter of {EXTENSION}")
        return cls(**found)  # type: ignore[arg-type]

    def render(self) -> str:
        parts = [EXTENSION]
        if self.server_no_context_takeover:
            parts.append("server_no_context_takeover")
        if self.client_no_context_takeover:
            parts.append("client_no_context_takeover")
        if self.server_max_window_bits is not None:
            parts.append(f"server_max_window_bits={self.server_max_window_bits}")
        if self.client_max_window_bits is not None:
            value = f"={self.client_max_window_bits}" if self.client_max_window_bits else ""
            parts.append(f"client_max_window_bits{value}")
        return "; ".join(parts)


def parse_extensions(header: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Read a Sec-WebSocket-Extensions header (RFC 6455 section 9.1) into names with their parameters.

    Raises ValueError if it does not follow the grammar.
    """
    extensions: list[tuple[str, list[tuple[str, str | None]]]] = []
    position, delimiter = 0, ","
    while delimiter:
        match = _ITEM.match(header, position)
        if match is None:
            raise ValueError(f"not a list of extensions: {header[:200]!r}")
        name, value = match[1], match[2]
        if value is not None and value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        if delimiter == ";":
            extensions[-1][1].append((name, value))
        elif value is None:
            extensions.append((name, []))
        else:
            raise ValueError(f"an extension's name takes no value: {header[:200]!r}")
        position, delimiter = match.end(), match[3]
    return extensions


def accept_offer(header: str, options: DeflateOptions) -> tuple[PerMessageDeflate, str] | None:
    """As a server, agree to the first offer of the client's header that we can (RFC 7692 section 5.1).

    Returns the agreement and our Sec-WebSocket-Extensions header, or None if no offer will do. Raises
    ValueError
    if the header is malformed.
    """
    for name, parameters in parse_extensions(header):
        if name != EXTENSION:
            continue
        try:
            offer = _Parameters.parse(parameters, offer=True)
        except ValueError:
            continue  # section 5.1: decline this offer and look at the next
        server_bits = min(offer.server_max_window_bits or _LARGEST_WINDOW, options.server_max_window_bits)
        if server_bits < _SMALLEST_WINDOW:
            continue
        client_bits = _LARGEST_WINDOW
        if offer.client_max_window_bits is not None:
            client_bits = min(offer.client_max_window_bits or _LARGEST_WINDOW, options.client_max_window_bits)
        agreed = _Parameters(
            offer.server_no_context_takeover or options.server_no_context_takeover,
            offer.client_no_context_takeover or options.client_no_context_takeover,
            server_bits if server_bits < _LARGEST_WINDOW or offer.server_max_window_bits else None,
            client_bits if client_bits < _LARGEST_WINDOW else None,
        )
        deflate = PerMessageDeflate(
            send_takeover=not agreed.server_no_context_takeover,
            receive_takeover=not agreed.client_no_context_takeover,
            send_window_bits=server_bits,
            receive_window_bits=client_bits,
            level=options.level,
            memory_level=options.memory_level,
            min_size=options.min_size,
        )
        return deflate, agreed.render()
    return None


def make_offer(options: DeflateOptions) -> str:
    """As a client, return the Sec-WebSocket-Extensions header that offers ``options``."""
    server_bits, client_bits = options.server_max_window_bits, options.client_max_window_bits
    return _Parameters(
        options.server_no_context_takeover,
        options.client_no_context_takeover,
        server_bits if server_bits < _LARGEST_WINDOW else None,
        client_bits if client_bits < _LARGEST_WINDOW else 0,
    ).render()


def accept_response(header: str, options: DeflateOptions) -> PerMessageDeflate:
    """As a client, check the server's answer to :func:`make_offer` (RFC 7692 section 7.1).

    Raises ValueError, whose text says what is wrong, for an answer that does not fit the offer.
    """
    extensions = parse_extensions(header)
    if len(extensions) != 1 or extensions[0][0] != EXTENSION:
        raise ValueError(f"the server chose extensions we did not offer: {header[:200]!r}")
    agreed = _Parameters.parse(extensions[0][1], offer=False)
    if options.server_no_context_takeover and not agreed.server_no_context_takeover:
        raise ValueError("the server ignored server_no_context_takeover")
    if (agreed.server_max_window_bits or _LARGEST_WINDOW) > options.server_max_window_bits:
        raise ValueError("the server's window is larger than server_max_window_bits")
    if (agreed.client_max_window_bits or 0) > options.client_max_window_bits:
        raise ValueError("the server answered a larger client_max_window_bits than we offered")
    return PerMessageDeflate(
        send_takeover=not (agreed.client_no_context_takeover or options.client_no_context_takeover),
        receive_takeover=not agreed.server_no_context_takeover,
        send_window_bits=min(
            agreed.client_max_window_bits or _LARGEST_WINDOW, options.client_max_window_bits
        ),
        receive_window_bits=agreed.server_max_window_bits or _LARGEST_WINDOW,
        level=options.level,
        memory_level=options.memory_level,
        min_size=options.min_size,
    )
