"""A message put together from what has arrived of it (RFC 6455 section 5.4), within its bounds at every step."""

from __future__ import annotations

from codecs import utf_8_decode

from realtime.errors import PayloadNotUtf8, PayloadTooBig
from realtime.protocols.deflate import PerMessageDeflate
from realtime.protocols.websocket_events import BinaryReceived, TextReceived

__all__ = ["Assembly"]

_BYTES_PER_FRAGMENT = 64  # each so many bytes of a message allow one more fragment


class Assembly:
    """A message of which not all has arrived: checked and inflated piece by piece, bounded by ``limit``."""

    __slots__ = ("_cut", "_data", "_deflate", "_limit", "_text", "fragments", "received")

    def __init__(self, text: bool, limit: int, deflate: PerMessageDeflate | None) -> None:
        self._text = text
        self._limit = limit
        self._deflate = deflate
        self._data: bytes | bytearray = b""
        self._cut = b""  # the first bytes of a character whose others have not arrived
        self.fragments = 0  # frames begun
        self.received = 0  # payload bytes of these, as promised by their headers

    def check_frame(self, length: int, fragments: int) -> None:
        """Raise PayloadTooBig if a further frame, known by its header alone, breaks a bound."""
        bound = self._limit
        if self._deflate is not None:
            # What does not compress grows a little; the real bound is kept while inflating.
            bound += bound // 16 + 64
        if self.received + length > bound:
            raise PayloadTooBig(f"a message of more than {self._limit} bytes")
        if self.fragments >= fragments + self.received // _BYTES_PER_FRAGMENT:
            raise PayloadTooBig(f"a message in more than {self.fragments} small fragments")

    def append(self, payload: bytes) -> None:
        """Take unmasked payload. Raises PayloadTooBig, PayloadNotUtf8 or FrameError at the first bad byte."""
        if self._deflate is None:
            self._keep(payload)
        else:
            self._keep_inflated(self._deflate.inflate(payload, self._limit - len(self._data)))

    def finish(self) -> TextReceived | BinaryReceived:
        """Return the event for the whole message. Raises as :meth:`append` does."""
        if self._deflate is not None:
            self._keep_inflated(self._deflate.finish(self._limit - len(self._data)))
        if self._cut:
            raise PayloadNotUtf8("a text message that ends within a character")
        data = bytes(self._data)
        return TextReceived(data) if self._text else BinaryReceived(data)

    def _keep_inflated(self, payload: bytes) -> None:
        room = self._limit - len(self._data)
        if len(payload) <= room:
            self._keep(payload)
        else:
            self._keep(payload[:room])  # first, so that the first fault in the stream is the one reported
            raise PayloadTooBig(f"a compressed message that inflates to more than {self._limit} bytes")

    def _keep(self, payload: bytes) -> None:
        if self._text and (self._cut or not payload.isascii()):
            self._check_utf8(payload)
        if not self._data:
            self._data = payload  # mostly the only piece: no copy
        else:
            if isinstance(self._data, bytes):
                self._data = bytearray(self._data)
            self._data += payload

    def _check_utf8(self, payload: bytes) -> None:
        data = self._cut + payload if self._cut else payload
        try:
            consumed = utf_8_decode(data, "strict", False)[1]
        except UnicodeDecodeError:
            raise PayloadNotUtf8("a text message that is not UTF-8") from None
        self._cut = data[consumed:]
        if b"\xed\xa0" <= self._cut < b"\xee":
            # Python's decoder waits for the third byte of a surrogate, which cannot make it valid.
            raise PayloadNotUtf8("a text message with a surrogate")
