"""Frames: where a walk from SQLAlchemy's own functions outwards to the user's line begins.

A walk makes an object of every frame that it passes, which takes longer than all else that is done
at a checkout. Between a session's method and the event there are a dozen, always the same.
"""

from __future__ import annotations

import inspect
import sys
from types import CodeType, FrameType
from typing import Any, Final

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session


def checkout_frame() -> tuple[FrameType, bool]:
    """Return the frame to begin at, for a function that a listener to the checkout event calls.

    And whether a `Connection` checks out, a session's included: it asks the engine for it, and no
    code has the driver's connection to itself.
    """
    try:
        frame = sys._getframe(_TO_EXECUTE)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        # Between these there is SQLAlchemy's own code alone: a function of the user's in between,
        # such as a listener, would be one frame more. That of the engine is looked at, because an
        # engine of the user's may have its own in its place.
        if (
            frame.f_code is _EXECUTE and sys._getframe(_TO_RAW_CONNECTION).f_code is _RAW_CONNECTION  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        ):
            return frame, True
    except ValueError:  # there are not so many
        pass
    frame = sys._getframe(3)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    return frame, _is_of_connection(frame)


def _is_of_connection(frame: FrameType) -> bool:
    inner: FrameType | None = frame
    for _ in range(_NEAR):
        if inner is None:
            return False
        outer = inner.f_back
        if inner.f_code is _RAW_CONNECTION:
            return outer is not None and outer.f_code in _CONNECTS
        inner = outer
    return False


def _code(owner: type, name: str) -> CodeType | None:
    """Return the code of a method; `None` where this version has none of that name."""
    function: Any = getattr(owner, name, None)
    return getattr(inspect.unwrap(function), "__code__", None)


_RAW_CONNECTION: Final = _code(Engine, "raw_connection")
_CONNECTS: Final = (
    _code(Connection, "__init__"),
    _code(Connection, "_revalidate_connection"),  # after it was invalidated
)
_NEAR: Final = 12
"""How many frames to look through for these: SQLAlchemy's and leakguard's own are eight."""
_TO_RAW_CONNECTION: Final = 7
"""How many frames it is from `checkout_frame` to where the engine asks its pool."""
_EXECUTE: Final = _code(Session, "_execute_internal")
_TO_EXECUTE: Final = 14
"""How many to where `execute()`, `scalars()` and `scalar()` of a session do their work."""


def constructing_frame(session: Session, frame: FrameType) -> FrameType | None:
    """Return the frame that constructs a session, or its `AsyncSession`; `None` in a bare greenlet.

    `frame` is that of the wrapper of `__init__`. The `__init__` methods of their classes are none
    of it, nor is what somebody wrapped around them.
    """
    cls = type(session)
    # Of most classes it is the very wrapper, and there is nothing in between.
    direct = frame.f_code is getattr(cls.__init__, "__code__", None)
    outside = frame.f_back if direct else _caller_of(cls, frame)
    if outside is None or outside.f_code.co_name != "__init__":
        return outside
    if outside.f_globals.get("__name__") != "sqlalchemy.ext.asyncio.session":
        return outside
    asynchronous: object = outside.f_locals["self"]
    return _caller_of(type(asynchronous), outside)


def _caller_of(cls: type, frame: FrameType) -> FrameType | None:
    """Return the frame that calls the `__init__` of `cls`, which runs in `frame` or around it."""
    code = getattr(cls.__init__, "__code__", None)  # type: ignore[misc]  # of whichever class it is
    if frame.f_code is code:  # of most classes: there is nothing but our own wrapper
        return frame.f_back
    # The same wrapper may be around those of several bases.
    methods = (vars(base).get("__init__") for base in cls.__mro__)
    times = sum(getattr(method, "__code__", None) is code for method in methods if method)
    outside: FrameType | None = frame
    around: FrameType | None = frame
    while around is not None and times:
        if around.f_code is code:
            times -= 1
            outside = around.f_back
        around = around.f_back
    return outside
