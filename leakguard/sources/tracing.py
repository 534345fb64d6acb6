"""Tracing: the span of OpenTelemetry's in which a scope does its work.

Not imported: where nobody else has done so, there are no spans.
"""

from __future__ import annotations

from sys import modules
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from leakguard.core.faults import FAULTS
from leakguard.core.trace import Trace

if TYPE_CHECKING:
    from leakguard.core.scope import Scope


TRACING: Final = "opentelemetry.trace"
"""The module that knows the current span."""

_CONTEXT: Final = "opentelemetry.context"


def note_span(scope: Scope) -> None:
    """Write down the current span, the first time that there is one. Never raises.

    To be called where `TRACING` is among the modules, which is quicker to see than to call this.
    At the beginning of a request it is the request's own where tracing is outside of leakguard;
    else it is the one that is current when the request takes its first session or connection.
    """
    if scope.trace is not None:
        return
    try:
        module: Any = modules[_CONTEXT]
        try:
            # As `get_current()` does, by two calls less.
            current = module._RUNTIME_CONTEXT._current_context.get()  # noqa: SLF001  (no public way; tested)
        except AttributeError:  # a context of another kind
            current = module.get_current()
        # Where the API is there and nobody uses it, as FastAPI imports it, the context is empty.
        if not current:
            return
        api: Any = modules[TRACING]
        span = api.get_current_span()
        context = span.get_span_context()
        if context.is_valid:
            scope.trace = Trace(context, ref(span))
    except Exception as error:  # noqa: BLE001  (the request must not notice)
        FAULTS.report("leakguard's look at the current span", error, "It is not named.")
