"""Wrapping a method of somebody else's class, and taking the wrapper out without a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

AnyFunction = Callable[..., Any]


class Placement:
    """One wrapper in its place. It may outlast its use where somebody wrapped it in turn."""

    __slots__ = ("_patch", "active", "original", "wrapper")

    def __init__(self, patch: Patch, original: AnyFunction) -> None:
        self._patch = patch
        self.original = original
        self.wrapper: AnyFunction = original
        self.active = True
        """Whether the wrapper is in use. One that is not, and whose `resume` does not say
        otherwise, calls the original and does nothing else."""

    def resume(self) -> bool:
        """Decide what becomes of a wrapper that is not in use but called, and say if it is now."""
        return self._patch.retire_or_take_over(self)


Wrap = Callable[[AnyFunction, Placement], AnyFunction]


class Patch:
    """A wrapper around one method of a class.

    Others may wrap the same method before or after. Where somebody did so after, the wrapper
    cannot be taken out: it then does nothing but call the original, and at the first call at
    which it is on top again takes itself out, or the place of one that somebody took out.
    """

    def __init__(self, owner: type, name: str, wrap: Wrap) -> None:
        """Take the class, the method's name, and what makes a wrapper of the original.

        The wrapper begins with
        `if not (placement.active or placement.resume()): return original(...)`. That is its own
        business, because a function around it would cost as much as all that most wrappers do. Its
        first parameter is called `self`: everybody calls it so, and callers may.
        """
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._placement: Placement | None = None

    def place(self) -> None:
        """Wrap the method."""
        current = self._owner.__dict__[self._name]
        placement = self._placement
        if placement is None or placement.wrapper is not current:
            placement = self._placement = Placement(self, current)
            wrapper = self._wrap(current, placement)
            placement.wrapper = functools.update_wrapper(wrapper, current)
            setattr(self._owner, self._name, wrapper)
        placement.active = True

    def remove(self) -> None:
        """Put the original back, or make the wrapper do nothing until that is possible."""
        placement = self._placement
        if placement is not None:
            placement.active = False
            self._take_out(placement)

    def retire_or_take_over(self, placement: Placement) -> bool:
        """Take out a wrapper that is not in use, or have it take over from one that is gone.

        Return whether it is in use from now on.
        """
        latest = self._placement
        on_top = self._owner.__dict__[self._name] is placement.wrapper
        if latest is None or not (latest.active and on_top):
            self._take_out(placement)
            return False
        latest.active = False
        placement.active = True
        self._placement = placement
        return True

    def _take_out(self, placement: Placement) -> None:
        if self._owner.__dict__[self._name] is placement.wrapper:
            setattr(self._owner, self._name, placement.original)
