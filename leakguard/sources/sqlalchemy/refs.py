"""Weak references that know the number of what they refer to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class IdRef(weakref.ref[T]):
    """A weak reference with the `id` of its object, by which a finalizer finds its entry."""

    __slots__ = ("id",)
    id: int

    def __new__(cls, instance: T, callback: Callable[[Any], None]) -> IdRef[T]:
        """Refer to `instance`; `callback` gets the reference when it goes."""
        ref = super().__new__(cls, instance, callback)
        ref.id = id(instance)
        return ref
