"""What listeners of SQLAlchemy's events have in common: their form, and what becomes of faults."""

from __future__ import annotations

from collections.abc import Callable

from leakguard.core.faults import FAULTS

Listener = tuple[type, str, Callable[..., None]]
"""The class whose events are listened to, the event, and the function."""


def report_fault(error: Exception) -> None:
    """Log a fault of this source, once."""
    FAULTS.report("leakguard's SQLAlchemy source", error, "Please report it.")
