"""The errors this package raises on purpose: one sentence that says what is wrong and what would be right."""

from __future__ import annotations


class FastweightsError(Exception):
    """Base of every error raised on purpose by this package."""


class UserError(FastweightsError, ValueError):
    """Bad input; the message is one sentence for the person who gave it (the command line exits with status 2)."""


def is_positive(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, int | float) and 0 < value < float("inf")


def require_positive(what: str, value: object) -> None:
    """Refuses all but finite numbers above 0.

    Raises:
        UserError: ``what`` is not one.
    """
    if not is_positive(value):
        raise UserError(f"{what} must be above 0, not {value!r}")
