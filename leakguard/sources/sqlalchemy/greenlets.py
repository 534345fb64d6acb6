"""Stacks across greenlets, in which SQLAlchemy runs its synchronous parts for asyncio."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final


def _greenlet_module() -> Any:  # noqa: ANN401  (a module, or nothing)
    try:
        return importlib.import_module("greenlet")
    except ImportError:  # optional, as it is for SQLAlchemy
        return None


_getcurrent: Final[Callable[[], Any] | None] = getattr(_greenlet_module(), "getcurrent", None)


def parent_stacks() -> Iterator[FrameType]:
    """Return the innermost frames of the stacks that the current one hangs from."""
    parent = None if _getcurrent is None else _getcurrent().parent
    while parent is not None:
        if parent.gr_frame is not None:
            yield parent.gr_frame
        parent = parent.parent


def current_greenlet() -> weakref.ref[Any] | None:
    """Return a reference to the greenlet that runs now; `None` for the main one of a thread."""
    if _getcurrent is None:
        return None
    greenlet = _getcurrent()
    return None if greenlet.parent is None else weakref.ref(greenlet)
