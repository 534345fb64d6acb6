"""Weak references that know the number of what they refer to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class NumberedRef(weakref.ref[T]):
    """A weak reference with the `id` of its object, by which a finalizer finds its entry."""

    __slots__ = ("number",)
    number: int

    def __new__(cls, instance: T, callback: Callable[[Any], None]) -> NumberedRef[T]:
        """Refer to `instance`; `callback` gets the reference when it goes."""
        ref = super().__new__(cls, instance, callback)
        ref.number = id(instance)
        return ref
