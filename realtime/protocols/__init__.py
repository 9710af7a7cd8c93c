"""Protocols without I/O: bytes in, events out. No sockets, no clock and no greenlets in here."""
