"""Stacks across greenlets, in which SQLAlchemy runs its synchronous parts for asyncio."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final


def _greenlet_module() -> Any:  # noqa: ANN401  (a module, or nothing)
    try:
        return importlib.import_module("greenlet")
    except ImportError:  # optional, as it is for SQLAlchemy
        return None


class _Thread:
    """What runs where there are no greenlets: the thread, which hangs from no other stack."""

    parent = None
    dead = False


_THREAD: Final = _Thread()


def current_greenlet_of(module: Any) -> Callable[[], Any]:  # noqa: ANN401  (a module, or nothing)
    """Return the function that `current_greenlet` is, by whether there is the module."""
    get: Callable[[], Any] = getattr(module, "getcurrent", lambda: _THREAD)
    return get


current_greenlet: Final[Callable[[], Any]] = current_greenlet_of(_greenlet_module())
"""Returns the greenlet that runs now. The one that has no `parent` is its thread."""


def parent_stacks() -> Iterator[FrameType]:
    """Return the innermost frames of the stacks that the current one hangs from."""
    parent = current_greenlet().parent
    while parent is not None:
        if parent.gr_frame is not None:
            yield parent.gr_frame
        parent = parent.parent
