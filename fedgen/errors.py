"""Errors a user can act on: each names the value, the choices and the configuration key."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FedgenError(Exception):
    """Base of every error that fedgen raises on purpose; the CLI prints its message without a traceback."""


class ConfigError(FedgenError):
    """The configuration is wrong: an unknown key or choice, or values that contradict each other."""


class DataError(FedgenError):
    """A data set, clip or embedding store is missing, unreadable or does not fit the configuration."""


class CheckpointError(FedgenError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


class PayloadError(FedgenError):
    """A message carries content of a wrong shape, type, class or value."""


class AggregationError(FedgenError):
    """A round did not get enough good replies."""


class StorageError(FedgenError, OSError):
    """A file cannot be written: the disk is full, or it may not be; what was saved before is intact."""


class LeakError(FedgenError):
    """Synthetic samples give away training records; all that the run made is saved."""


def visible(text: str) -> str:
    """Return ``text`` with what does not print, such as a terminal's commands, written as Python writes it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def said(words: object, longest: int = 500) -> str:
    """Return what somebody else says as one line for logs, terminals and files: escaped, and its first part alone."""
    line = visible(" ".join(str(words)[: 4 * longest].split()))
    return line if len(line) <= longest else f"{line[:longest]} ..."


def suggestion(value: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the choice nearest to ``value``, or an empty string."""
    close = get_close_matches(str(value)[:200], [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def choose(value: str, choices: Iterable[str], key: str) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises
    ------
    ConfigError
        Names the value, the configuration key, every choice and the nearest one.
    """
    options = list(choices)
    if value not in options:
        raise ConfigError(f"{key}={value!r} is not one of {', '.join(options)}.{suggestion(value, options)}")
    return value


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)
