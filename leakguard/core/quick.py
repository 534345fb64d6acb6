"""Making what there is for every request, or every statement, in as few steps as there can be."""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar, cast

TupleT = TypeVar("TupleT", bound=tuple[Any, ...])


class _MakesTuples(Protocol):
    def __call__(self, cls: type[TupleT], values: tuple[Any, ...], /) -> TupleT: ...


new_tuple: Final = cast("_MakesTuples", tuple[Any, ...].__new__)
"""Makes a named tuple of all its values, in their order, in a third of the time that its
constructor takes: that is a function of Python's, which calls this one. Nobody checks them."""
