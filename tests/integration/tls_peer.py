"""A blocking client of the ``websockets`` library over TLS."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import websockets.asyncio.client
from programs import PATIENCE

__all__ = ["TLSPeer"]

R = TypeVar("R")


class TLSPeer:
    """Its asyncio client in a thread. Its blocking one reads and writes one TLS connection in two threads, which
    stalls now and then before Python 3.13.

    :param options: of ``websockets.asyncio.client.connect``.
    """

    def __init__(self, url: str, trust: ssl.SSLContext, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self._client = self._run(self._connect(url, ssl=trust, **options))
        except BaseException:
            self._end()
            raise

    @staticmethod
    async def _connect(url: str, **options: Any) -> websockets.asyncio.client.ClientConnection:
        return await websockets.asyncio.client.connect(url, **options)

    def _run(self, work: Coroutine[Any, Any, R], timeout: float = PATIENCE) -> R:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout), self._loop).result()

    def send(self, text: str) -> None:
        """Raises ``websockets.exceptions.ConnectionClosed``."""
        self._run(self._client.send(text))

    def recv(self, timeout: float = PATIENCE) -> str | bytes:
        """Raises ``websockets.exceptions.ConnectionClosed``, TimeoutError."""
        return self._run(self._client.recv(), timeout)

    def __enter__(self) -> TLSPeer:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._run(self._client.close())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
