"""Wrapping a method of somebody else's class, and taking the wrapper out without a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

AnyFunction = Callable[..., Any]


class _Placement:
    """One wrapper in its place. It may outlast its use where somebody wrapped it in turn."""

    __slots__ = ("active", "original", "wrapper")

    def __init__(self, original: AnyFunction) -> None:
        self.active = True
        self.original = original
        self.wrapper: AnyFunction = original


class Patch:
    """A wrapper around one method of a class.

    Others may wrap the same method before or after. Where somebody did so after, the wrapper
    cannot be taken out: it then does nothing but call the original, and at the first call at
    which it is on top again takes itself out, or the place of one that somebody took out.
    """

    def __init__(self, owner: type, name: str, wrap: Callable[[AnyFunction], AnyFunction]) -> None:
        """Take the class, the method's name, and what makes a wrapper of the original."""
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._placement: _Placement | None = None

    def place(self) -> None:
        """Wrap the method."""
        current = self._owner.__dict__[self._name]
        placement = self._placement
        if placement is None or placement.wrapper is not current:
            placement = self._placement = self._new_placement(current)
            setattr(self._owner, self._name, placement.wrapper)
        placement.active = True

    def remove(self) -> None:
        """Put the original back, or make the wrapper do nothing until that is possible."""
        placement = self._placement
        if placement is not None:
            placement.active = False
            self._take_out(placement)

    def _new_placement(self, original: AnyFunction) -> _Placement:
        placement = _Placement(original)
        wrapped = self._wrap(original)

        retire_or_take_over = self._retire_or_take_over

        # Its first parameter has the name that everybody gives it, and callers may use.
        @functools.wraps(original)
        def wrapper(self: object, *args: object, **kwargs: object) -> Any:  # noqa: ANN401  (whatever the original gives)
            if placement.active or retire_or_take_over(placement):
                return wrapped(self, *args, **kwargs)
            return original(self, *args, **kwargs)

        placement.wrapper = wrapper
        return placement

    def _retire_or_take_over(self, placement: _Placement) -> bool:
        """Decide what becomes of a wrapper that is not in use, but is called."""
        latest = self._placement
        on_top = self._owner.__dict__[self._name] is placement.wrapper
        if latest is None or not (latest.active and on_top):
            self._take_out(placement)
            return False
        latest.active = False
        placement.active = True
        self._placement = placement
        return True

    def _take_out(self, placement: _Placement) -> None:
        if self._owner.__dict__[self._name] is placement.wrapper:
            setattr(self._owner, self._name, placement.original)
