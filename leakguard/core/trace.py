"""Traces: the span in which a scope did its work, as OpenTelemetry names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from weakref import ref


class SpanContext(Protocol):
    """What identifies a span; plain numbers, which keep nothing alive."""

    @property
    def trace_id(self) -> int:
        """The number of its trace, 16 bytes."""
        ...

    @property
    def span_id(self) -> int:
        """Its own number, 8 bytes."""
        ...


class Trace:
    """The span that was the current one, and its ids as they are written everywhere."""

    __slots__ = ("context", "span")

    def __init__(self, context: SpanContext, span: ref[object]) -> None:
        self.context = context
        self.span = span
        """The span itself, for as long as somebody else needs it."""

    @property
    def trace_id(self) -> str:
        """The trace's id: 32 hexadecimal digits."""
        return f"{self.context.trace_id:032x}"

    @property
    def span_id(self) -> str:
        """The span's id: 16 hexadecimal digits."""
        return f"{self.context.span_id:016x}"
