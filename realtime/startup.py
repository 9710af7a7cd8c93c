"""What happens before the first client: logging, and a plain word about what is not patched."""

from __future__ import annotations

import logging
import sys

from gevent import monkey

from realtime.errors import ConfigurationError

__all__ = ["check_log_level", "configure_logging", "label_logging", "unpatched_modules", "warn_of_unpatched_modules"]

log = logging.getLogger("realtime")

_LEVELS = ("debug", "info", "warning", "error", "critical")
_HANDLER = "realtime"  # the name of the one that is added where the application set up no logging
_TIME_FORMAT = "%H:%M:%S"
_BLOCKING = ("socket", "time", "ssl", "threading", "subprocess", "select")


def configure_logging(level: str) -> None:
    """Set the level of the ``realtime`` logger, and print to stderr if the application set up no logging.

    :raises ConfigurationError: not one of debug, info, warning, error, critical.
    """
    check_log_level(level)
    log.setLevel(level.upper())
    if not log.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.set_name(_HANDLER)
        handler.addFilter(_nobody_else_prints)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", _TIME_FORMAT))
        log.addHandler(handler)


def _nobody_else_prints(_record: logging.LogRecord) -> bool:
    """Tell whether the application has still set up no logging: it may after its kernel was made."""
    return not logging.getLogger().handlers


def check_log_level(level: str) -> None:
    """Raise ConfigurationError unless it is one of debug, info, warning, error, critical."""
    if not isinstance(level, str) or level.lower() not in _LEVELS:
        raise ConfigurationError(f"log_level={level!r}: must be one of {', '.join(_LEVELS)}")


def label_logging(label: str) -> None:
    """Let every line that is printed for want of the application's own logging begin with ``label``."""
    for handler in log.handlers:
        if handler.get_name() == _HANDLER:
            text = f"%(asctime)s %(levelname)-7s {label}: %(message)s"
            handler.setFormatter(logging.Formatter(text, _TIME_FORMAT))


def unpatched_modules() -> list[str]:
    """Return the modules whose blocking calls would block every client, not just one handler."""
    return [name for name in _BLOCKING if not monkey.is_module_patched(name)]


def warn_of_unpatched_modules() -> None:
    """Log what is not patched and what to do about it: importing realtime never patches anything."""
    names = unpatched_modules()
    if names:
        log.info(
            "not monkey-patched: %s. Handlers that wait through these (time.sleep, requests, database drivers) "
            "hold up every client; put `from gevent import monkey; monkey.patch_all()` first, or use gevent.sleep "
            "and threadpool=True",
            ", ".join(names),
        )
