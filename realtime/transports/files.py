"""One file kept in memory and served over HTTP, as a WSGI application."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any

__all__ = ["ServedFile", "javascript_client"]


class ServedFile:
    """Answers GET and HEAD with a file that anybody may have, from whatever page.

    A browser asks each time whether its copy is current (``Cache-Control: no-cache`` and an ETag, RFC 9110
    section 13.1.2), so nobody runs an old one after an upgrade.

    :param content_type: such as ``"text/javascript; charset=utf-8"``.
    """

    def __init__(self, content: bytes, content_type: str) -> None:
        self._content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self._always = [
            ("ETag", self._etag),
            ("Cache-Control", "no-cache"),
            ("Access-Control-Allow-Origin", "*"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        self._described = [("Content-Type", content_type), ("Content-Length", str(len(content)))]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request. The server sends no body to HEAD."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            text = b"This is a file: GET and HEAD only.\n"
            kind = ("Content-Type", "text/plain; charset=utf-8")
            length = ("Content-Length", str(len(text)))
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), kind, length])
            return [text]
        if self._is_current(environ.get("HTTP_IF_NONE_MATCH", "")):
            start_response("304 Not Modified", self._always)
            return []
        start_response("200 OK", self._described + self._always)
        return [self._content]

    def _is_current(self, known: str) -> bool:
        """Tell whether the client has this content already. Weak comparison, RFC 9110 section 8.8.3.2."""
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        return self._etag in tags or "*" in tags


def javascript_client() -> ServedFile:
    """Return the JavaScript client, read from the package now."""
    path = files("realtime") / "client" / "javascript" / "realtime.js"
    return ServedFile(path.read_bytes(), "text/javascript; charset=utf-8")
