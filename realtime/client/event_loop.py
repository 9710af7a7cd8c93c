"""A word of warning where a Client's waits would stop a gevent event loop. Loads nothing of gevent by itself."""

from __future__ import annotations

import logging
import sys

__all__ = ["warn_of_stopped_loop"]

log = logging.getLogger("realtime.client")


def warn_of_stopped_loop() -> None:
    """Say so where something waits for the gevent event loop of this thread, and the process is not patched."""
    if "gevent.hub" not in sys.modules:
        return
    from gevent._hub_local import get_hub_if_exists
    from gevent.monkey import is_module_patched

    hub = get_hub_if_exists()
    if hub is not None and hub.loop.activecnt and not is_module_patched("threading"):
        log.warning(
            "the client is used in the thread of a gevent event loop, which stands still while the client waits: begin "
            "the program with `from gevent import monkey; monkey.patch_all()`, or use the client in a native thread"
        )
