"""Statements: when one begins on a connection, and what it says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import Engine

from leakguard.sources.sqlalchemy.activity import STREAMING, Stream, begin_execution
from leakguard.sources.sqlalchemy.listeners import Listener, report_fault

if TYPE_CHECKING:
    from leakguard.sources.sqlalchemy.checkout import Checkout


class Statements:
    """Notes on a checkout when a statement begins on it."""

    def __init__(self, out: dict[int, Checkout]) -> None:
        """Take the checkouts of the process, by the `id()` of their proxies."""
        self._out = out
        # Not before_cursor_execute: an engine with a listener to that joins its listeners anew
        # for every connection, which costs more than all the rest of leakguard together.
        self.listeners: tuple[Listener, ...] = (
            (Engine, "do_execute", self._on_statement),
            (Engine, "do_executemany", self._on_statement),
            (Engine, "do_execute_no_params", self._on_statement),
        )

    def _on_statement(self, cursor: object, statement: str, *arguments: Any) -> None:  # noqa: ARG002, ANN401  (the events' signatures)
        """A statement begins; its parameters, among the arguments, are never looked at."""
        context = arguments[-1]
        if context is None:  # SQLAlchemy's own, not made through a `Connection`
            return
        try:
            hold = self._out.get(id(context.root_connection._dbapi_connection))  # noqa: SLF001  (no public way; tested)
            if hold is None or not hold.guard.follows_statements:
                return
            hold.execution = begin_execution(sys._getframe(1))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
            hold.used_monotonic = hold.execution.began
            # SQLite has no cursors of the server's: its rows are always computed as they are read.
            if context._is_server_side or (  # noqa: SLF001  (no public way; tested)
                hold.facts.is_sqlite and not STREAMING.isdisjoint(context.execution_options)
            ):
                hold.note_stream(Stream(context))
            if hold.guard.settings.statements:
                long = len(statement) > _STATEMENT_LIMIT
                hold.statement_text = f"{statement[:_STATEMENT_LIMIT]}…" if long else statement
                if hold.scope is not None and hold.scope.event_log is not None:
                    hold.scope.event_log.add("statement executed")
        except Exception as error:  # noqa: BLE001  (the caller must not notice)
            report_fault(error)


_STATEMENT_LIMIT: Final = 4000
"""How many characters of a statement are kept; one with many values in it may have millions."""
