"""Diagnosis: from the evidence of a finding on a hold to the likely mistake and its fix.

A cause is named only where the evidence carries it. Each rule looks at one finding's `Case`
and either explains it or passes it on; the first that explains it wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Final

from leakguard.core.bytecode import (
    close_of_yielded,
    closes_on_exception,
    has_block,
    is_async,
    is_generator,
    might_close,
)
from leakguard.core.faults import FAULTS
from leakguard.core.finding import FindingKind, Hint


@dataclass(frozen=True, slots=True)
class Case:
    """What a diagnosis looks at: plain values, and code objects, which tell a function's kind."""

    kind: FindingKind
    constructor: CodeType | None = None
    """The function that constructed the session."""
    acquirer: CodeType | None = None
    """The function that checked the connection out."""
    closed_by: CodeType | None = None
    """The generator that closed the session before its first use, because nobody kept it."""
    by_session: bool = False
    """Whether a session checked the connection out."""
    exception: str | None = None
    """The type name of the exception that ended the scope."""
    cancelled: bool = False
    """Whether the scope was cancelled, and was cut short by that."""
    status: int | None = None
    """The status of the response."""
    taken_after_close: bool = False
    """Whether the session had been closed before this checkout."""
    taken_again: bool = False
    """Whether the session had given a connection back before, by commit or rollback."""
    after_response: bool = False
    """Whether the session was constructed after the last byte of the response; where there is
    none, whether the connection was checked out then."""
    asynchronous: bool | None = None
    """Whether the session or connection is used with `await`; `None` where nobody knows."""
    constructed_outside: bool = False
    """Whether the session was constructed outside of any scope, and used in this one."""
    endpoint: CodeType | None = None
    """The function that the route names."""
    outlived_by: str | None = None
    """The task or thread that had it, where that went on after the scope."""
    stranded: str | None = None
    """The task that has it, where its event loop was closed before it was done."""
    scope_type: str | None = None
    """What the scope is: `"http"`, `"websocket"`, or another type."""
    responding: bool = False
    """Whether the response has begun and is not complete."""
    now: CodeType | None = None
    """The function in which those are who have it, where it is still out."""


Rule = Callable[[Case], Hint | None]


def diagnose(case: Case) -> Hint:
    """Name the likely mistake, and always a fix."""
    try:
        hints = (rule(case) for rule in _RULES[case.kind])
        hint = next((hint for hint in hints if hint is not None), None)
    except Exception as error:  # noqa: BLE001  (it reads bytecode, which changes between versions)
        FAULTS.report("leakguard's diagnosis", error, "No cause is named. Please report it.")
        hint = None
    return _GENERIC_FIXES[case.kind](case) if hint is None else hint


def _name(code: CodeType) -> str:
    # Of a method with its class: `__init__` alone says little.
    return code.co_qualname.rpartition("<locals>.")[2]


def _used_after_close(case: Case) -> Hint | None:
    if not case.taken_after_close:
        return None
    constructor = case.constructor
    if is_generator(constructor) and case.closed_by is constructor:
        function = _name(constructor)
        return Hint(
            f"the session was used after {function} had closed it: Python runs the clean-up of a "
            f"generator that nobody keeps at once, as in db = next({function}()), and a closed "
            "session that is used again silently takes a new connection",
            f"let the framework run it: db = Depends({function}), or outside of a request: "
            f"with contextlib.contextmanager({function})() as db:",
        )
    return Hint(
        "the session was used again after close(), which silently took a new connection",
        "close the session after its last use, reading of expired attributes included",
    )


def _left_by_a_closed_loop(case: Case) -> Hint | None:
    if case.stranded is None:
        return None
    return Hint(
        f"{case.stranded} has it and cannot go on: its event loop was closed before it was done",
        "cancel the task and await it before the loop is closed, as asyncio.run() does",
    )


def _left_in_its_block(case: Case) -> Hint | None:
    constructor = case.constructor
    # One that only makes the session, as a dependency does, may have been ended by then.
    if not is_generator(constructor) or case.acquirer is not constructor:
        return None
    if not closes_on_exception(constructor):
        return None
    function = _name(constructor)
    when = " when the request was cancelled" if case.cancelled else ""
    closing = "async with aclosing" if is_async(constructor) else "with closing"
    return Hint(
        f"{function}, a generator, was left inside of its block{when}: nobody read it to its end "
        "or closed it",
        "take the session from a dependency, which the framework ends, or close the generator: "
        f"{closing}({function}()) as items:",
    )


def _skipped_by_cancellation(case: Case) -> Hint | None:
    if not (case.cancelled and (might_close(case.constructor) or might_close(case.acquirer))):
        return None
    return Hint(
        "the request was cancelled, and the code that would have given the connection back "
        "did not run",
        _close_always(case),
    )


def _skipped_by_exception(case: Case) -> Hint | None:
    # A framework throws the exception of the request into the generator, also one that it
    # answers with a status of its own, such as FastAPI's HTTPException.
    failed = case.exception is not None or (case.status or 0) >= _FIRST_ERROR_STATUS
    constructor = case.constructor
    if not failed or constructor is None:
        return None
    close = close_of_yielded(constructor)
    if close is None or closes_on_exception(constructor):
        return None
    how = ", so an exception skips it"
    if not has_block(constructor):
        how = " after its yield, without a finally block" + how
    return Hint(f"{_name(constructor)} calls {close}(){how}", _wrap_the_yield(case))


def _generator_without_close(case: Case) -> Hint | None:
    constructor = case.constructor
    if not is_generator(constructor) or might_close(constructor):
        return None
    return Hint(
        f"{_name(constructor)} yields the session and never closes it", _wrap_the_yield(case)
    )


def _taken_again(case: Case) -> Hint | None:
    if not case.taken_again:
        return None
    return Hint(
        "commit() or rollback() gave a connection back, and using the session afterwards "
        "(an expired attribute, refresh(), another query) checked out this one",
        _close_always(case),
    )


def _shared_session(case: Case) -> Hint | None:
    if not case.constructed_outside:
        return None
    return Hint(
        "the session was constructed outside of the request and keeps the connection that this "
        "request made it take, until somebody calls commit(), rollback() or close()",
        f"construct a session for each request: {_block(case)}",
    )


def _never_closed_where_constructed(case: Case) -> Hint | None:
    constructor = case.constructor
    if not case.by_session or constructor is None or might_close(constructor):
        return None
    return Hint(
        f"{_role(constructor, case)} constructs the session and does not close it",
        _close_always(case),
    )


def _connection_never_closed(case: Case) -> Hint | None:
    acquirer = case.acquirer
    if case.by_session or acquirer is None or might_close(acquirer):
        return None
    return Hint(
        f"{_role(acquirer, case)} takes a connection and does not close it", _close_always(case)
    )


def _role(code: CodeType, case: Case) -> str:
    if code is case.endpoint:
        return f"the endpoint {_name(code)}"
    if case.after_response:
        return f"{_name(code)}, which runs after the response,"
    return _name(code)


def _is_asynchronous(case: Case) -> bool:
    if case.asynchronous is None:
        return is_async(case.constructor or case.acquirer)
    return case.asynchronous


def _wrap_the_yield(case: Case) -> str:
    if _is_asynchronous(case):
        return "async with the session around the yield: async with Session() as db: yield db"
    return "wrap the yield: try: yield db / finally: db.close(), or: with Session() as db: yield db"


def _close_always(case: Case) -> str:
    return f"use a block, which closes it whatever happens: {_block(case)}"


def _block(case: Case) -> str:
    asynchronous = "async " if _is_asynchronous(case) else ""
    what = "Session() as db:" if case.by_session else "engine.connect() as connection:"
    return f"{asynchronous}with {what}"


def _idle_websocket(case: Case) -> Hint | None:
    if case.scope_type != "websocket":
        return None
    return Hint(
        "a WebSocket connection keeps it between its messages",
        f"take one for each message and give it back before the next: {_block(case)}",
    )


def _idle_stream(case: Case) -> Hint | None:
    if not case.responding:
        return None
    return Hint(
        "the response is being sent while nothing is read from the database: a stream, or a client "
        "that reads slowly",
        "read the data before the response begins, or take a connection inside of the stream and "
        'give it back between its parts; in FastAPI, Depends(..., scope="function") ends before '
        "the response is sent",
    )


_FIRST_ERROR_STATUS: Final = 400

_LOSSES: Final[tuple[Rule, ...]] = (
    _left_by_a_closed_loop,
    _used_after_close,
    _left_in_its_block,
    _skipped_by_cancellation,
    _skipped_by_exception,
    _generator_without_close,
    _shared_session,
    _taken_again,
    _never_closed_where_constructed,
    _connection_never_closed,
)
_RULES: Final[dict[FindingKind, tuple[Rule, ...]]] = {
    **dict.fromkeys(FindingKind, ()),
    FindingKind.HELD: (_idle_websocket, _idle_stream),
    FindingKind.LEAKED: _LOSSES,
    FindingKind.RECLAIMED: _LOSSES,
}


SHARE_THE_SESSION: Final = (
    "pass the session on instead of opening another one, or give the inner work an engine of its "
    "own"
)
MAKE_IT_ASYNCHRONOUS: Final = "make the function def instead of async def, or use AsyncSession"
"""What helps against these mistakes, also once a pool has run dry for them."""


def _generic_loss(case: Case) -> Hint:
    return Hint(None, _close_always(case))


def _generic_held(case: Case) -> Hint:
    who = "its owner" if case.now is None else _name(case.now)
    commit = "await db.commit()" if _is_asynchronous(case) else "db.commit()"
    give_back = f"{commit} or close() gives it back" if case.by_session else "close() gives it back"
    return Hint(
        f"it is kept while {who} does something else that takes long, or waits for it",
        f"give it back before the slow part, and take it again afterwards: {give_back}",
    )


def _generic_outlives(case: Case) -> Hint:
    return Hint(
        f"{case.outlived_by or 'a task or thread'} was started by the scope and is still using it",
        "await it before the request ends, or let it open and close a session of its own; if it "
        "is meant to go on, say so: with leakguard.allow(reason):",
    )


def _generic_late(_: Case) -> Hint:
    return Hint(
        "something kept it after the last byte of the response: a background task, a clean-up, or "
        "a client that reads slowly",
        "close the session before the slow part, or open one there; in FastAPI, "
        'Depends(..., scope="function") ends before the response is sent',
    )


def _generic_nested(_: Case) -> Hint:
    return Hint(
        "one unit of work needs two connections at once: when every worker holds its first and "
        "waits for its second, none goes on",
        SHARE_THE_SESSION,
    )


def _generic_sync(_: Case) -> Hint:
    return Hint(
        "a synchronous checkout in async code stops every request of the process while it waits",
        MAKE_IT_ASYNCHRONOUS,
    )


def _generic_unclosed(case: Case) -> Hint:
    return Hint("nobody called close(); it holds no connection now", _close_always(case))


_GENERIC_FIXES: Final[dict[FindingKind, Callable[[Case], Hint]]] = {
    FindingKind.LEAKED: _generic_loss,
    FindingKind.RECLAIMED: _generic_loss,
    FindingKind.HELD: _generic_held,
    FindingKind.OUTLIVES_SCOPE: _generic_outlives,
    FindingKind.RETURNED_LATE: _generic_late,
    FindingKind.NESTED_CHECKOUT: _generic_nested,
    FindingKind.SYNC_IN_ASYNC: _generic_sync,
    FindingKind.UNCLOSED_SESSION: _generic_unclosed,
}
