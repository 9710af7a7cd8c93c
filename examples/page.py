"""A page for a browser: a few files of this folder as a WSGI application, for ``WebSocketTransport(app=...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Page:
    """The WSGI application. The files are read once, so that no request waits for a disk.

    :param path: where the page's WebSocket connects: takes the place of ``{{ path }}`` in the page.
    :param page: the file that is served at ``/``.
    :param others: files served under their own names.
    """

    def __init__(self, path: str, page: str, *others: str) -> None:
        folder = Path(__file__).parent
        self._files = {f"/{name}": ((folder / name).read_bytes(), content_type(name)) for name in others}
        html = (folder / page).read_bytes().replace(b"{{ path }}", escape(path).encode())
        self._files["/"] = (html, content_type(page))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        found = self._files.get(environ["PATH_INFO"] or "/")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return answer(start_response, "405 Method Not Allowed", b"Only GET.\n", allow="GET, HEAD")
        if found is None:
            return answer(start_response, "404 Not Found", b"There is nothing here. The page is at /\n")
        return answer(start_response, "200 OK", *found)


def content_type(name: str) -> str:
    """Return the type of one of our files, by its suffix."""
    return f"{TYPES[Path(name).suffix]}; charset=utf-8"


def answer(
    start_response: Callable[..., Any],
    status: str,
    body: bytes,
    kind: str = "text/plain; charset=utf-8",
    **headers: str,
) -> list[bytes]:
    """Begin a response and return its body. pywsgi sends no body to HEAD."""
    fixed = {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    start_response(status, [*fixed.items(), *headers.items()])
    return [body]
