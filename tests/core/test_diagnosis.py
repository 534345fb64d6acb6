"""A diagnosis names a cause only where the evidence carries it, and a fix always.

The functions below are the evidence: their code is looked at and never run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from types import CodeType
from typing import Any

import pytest

from leakguard import FindingKind
from leakguard.core.bytecode import is_async, is_generator
from leakguard.core.diagnosis import Case, diagnose
from leakguard.core.finding import Hint

Session: Any = None
AsyncSession: Any = None
pending: Any = None


def get_db() -> Iterator[Any]:
    db = Session()
    yield db
    db.close()


def get_db_that_forgets() -> Iterator[Any]:
    yield Session()


def get_db_that_removes_something_else() -> Iterator[Any]:
    pending.remove("x")
    db = Session()
    yield db


def get_db_that_closes_something_else() -> Iterator[Any]:
    file = Session()
    yield Session()
    file.close()


def get_db_that_closes_another_one() -> Iterator[Any]:
    db = Session()
    audit_db = Session()
    yield db
    audit_db.close()


def get_db_that_closes_another_one_of_the_same_name() -> Iterator[Any]:
    db = Session()
    yield db
    (db := pending.pop()).close()


def get_db_of_a_registry() -> Iterator[Any]:
    yield Session
    Session.remove()


def get_db_of_a_cell() -> Iterator[Any]:
    db = Session()
    yield db
    pending.append(lambda: db)
    db.close()


def get_db_with_finally() -> Iterator[Any]:
    db = Session()
    try:
        yield db
    finally:
        db.close()


def get_db_with_block() -> Iterator[Any]:
    with Session() as db:
        yield db


def get_db_with_block_and_close() -> Iterator[Any]:
    with Session() as db:
        yield db
        db.close()


def get_db_with_else() -> Iterator[Any]:
    db = Session()
    try:
        yield db
        db.commit()
    except ValueError:
        db.rollback()
        raise
    db.close()


def get_db_with_rollback_only() -> Iterator[Any]:
    db = Session()
    try:
        yield db
    except ValueError:
        db.rollback()


async def get_async_db() -> AsyncIterator[Any]:
    db = AsyncSession()
    yield db
    await db.close()


async def get_async_db_that_forgets() -> AsyncIterator[Any]:
    yield AsyncSession()


async def get_async_db_with_finally() -> AsyncIterator[Any]:
    db = AsyncSession()
    try:
        yield db
    finally:
        await db.close()


async def get_async_db_with_block() -> AsyncIterator[Any]:
    async with AsyncSession() as db:
        yield db


def read_items() -> Any:
    return Session().execute()


def read_items_and_close() -> Any:
    db = Session()
    items = db.execute()
    db.close()
    return items


async def read_items_async() -> Any:
    return await AsyncSession().execute()


async def read_items_async_with_block() -> Any:
    async with AsyncSession() as db:
        return await db.execute()


def code(function: Callable[..., Any]) -> CodeType:
    return function.__code__


def lost(constructor: Callable[..., Any] | None = None, **evidence: Any) -> Case:
    built = None if constructor is None else code(constructor)
    return Case(FindingKind.LEAKED, constructor=built, by_session=True, **evidence)


FINALLY = "wrap the yield: try: yield db / finally: db.close(), or: with Session() as db: yield db"
ASYNC_YIELD = "async with the session around the yield: async with Session() as db: yield db"
SESSION_BLOCK = "use a block, which closes it whatever happens: with Session() as db:"
ASYNC_SESSION_BLOCK = "use a block, which closes it whatever happens: async with Session() as db:"
CONNECTION_BLOCK = (
    "use a block, which closes it whatever happens: with engine.connect() as connection:"
)
ASYNC_CONNECTION_BLOCK = (
    "use a block, which closes it whatever happens: async with engine.connect() as connection:"
)


def test_a_dependency_that_is_called_by_hand_is_named() -> None:
    """`next(get_db())` closes the session before its first use, in the generator itself."""
    hint = diagnose(
        lost(get_db_with_finally, closed_by=code(get_db_with_finally), taken_after_close=True)
    )
    assert hint.cause == (
        "the session was used after get_db_with_finally had closed it: Python runs the clean-up "
        "of a generator that nobody keeps at once, as in db = next(get_db_with_finally()), and a "
        "closed session that is used again silently takes a new connection"
    )
    assert hint.fix == (
        "let the framework run it: db = Depends(get_db_with_finally), or outside of a request: "
        "with contextlib.contextmanager(get_db_with_finally)() as db:"
    )


@pytest.mark.parametrize(
    "constructor, closed_by",
    [
        (get_db_with_finally, None),
        (get_db_with_finally, read_items_and_close),
        (read_items_and_close, read_items_and_close),
        (None, None),
    ],
)
def test_use_after_close_alone_accuses_no_generator(
    constructor: Callable[..., Any] | None, closed_by: Callable[..., Any] | None
) -> None:
    """Only a generator that closed the session itself was finalised too early."""
    closer = None if closed_by is None else code(closed_by)
    hint = diagnose(lost(constructor, closed_by=closer, taken_after_close=True))
    assert hint.cause == (
        "the session was used again after close(), which silently took a new connection"
    )
    assert (
        hint.fix == "close the session after its last use, reading of expired attributes included"
    )


@pytest.mark.parametrize(
    "constructor, fix",
    [(get_db_with_finally, SESSION_BLOCK), (get_async_db_with_block, ASYNC_SESSION_BLOCK)],
)
def test_cancellation_is_named(constructor: Callable[..., Any], fix: str) -> None:
    """A cancelled scope explains the loss, whatever the code that closes looks like."""
    hint = diagnose(lost(constructor, cancelled=True, exception="CancelledError"))
    assert hint.cause == (
        "the request was cancelled, and the code that would have given the connection back "
        "did not run"
    )
    assert hint.fix == fix


@pytest.mark.parametrize(
    "constructor, cancelled, when, closing",
    [
        (get_db_with_block, False, "", "with closing(get_db_with_block())"),
        (
            get_async_db_with_block,
            True,
            " when the request was cancelled",
            "async with aclosing(get_async_db_with_block())",
        ),
    ],
)
def test_a_generator_that_was_left_in_the_middle_is_named(
    constructor: Callable[..., Any], cancelled: bool, when: str, closing: str
) -> None:
    """It has the very block that is advised otherwise, and took the connection itself."""
    function = code(constructor)
    hint = diagnose(
        Case(FindingKind.LEAKED, constructor=function, acquirer=function, cancelled=cancelled)
    )
    assert hint.cause == (
        f"{constructor.__name__}, a generator, was left inside of its block{when}: nobody read it "
        "to its end or closed it"
    )
    assert hint.fix == (
        "take the session from a dependency, which the framework ends, or close the generator: "
        f"{closing} as items:"
    )


def test_a_generator_that_does_not_close_was_not_left_in_a_block() -> None:
    """It never closes, wherever it was left."""
    function = code(get_db_with_else)
    hint = diagnose(Case(FindingKind.LEAKED, constructor=function, acquirer=function))
    assert "left inside of its block" not in str(hint.cause)


def test_cancellation_explains_a_connection_without_session() -> None:
    """The function that took it would have closed it."""
    hint = diagnose(Case(FindingKind.LEAKED, acquirer=code(read_items_and_close), cancelled=True))
    assert hint.cause == (
        "the request was cancelled, and the code that would have given the connection back "
        "did not run"
    )
    assert hint.fix == CONNECTION_BLOCK


@pytest.mark.parametrize(
    "evidence", [{"exception": "ValueError"}, {"status": 400}, {"status": 500}]
)
@pytest.mark.parametrize("constructor, fix", [(get_db, FINALLY), (get_async_db, ASYNC_YIELD)])
def test_a_close_that_an_exception_skips_is_named(
    constructor: Callable[..., Any], fix: str, evidence: dict[str, Any]
) -> None:
    """A request that failed never reached the close() behind the yield."""
    hint = diagnose(lost(constructor, **evidence))
    assert hint.cause == (
        f"{constructor.__name__} calls close() after its yield, without a finally block, "
        "so an exception skips it"
    )
    assert hint.fix == fix


def test_the_method_that_is_skipped_is_named() -> None:
    """That of a registry of sessions has another name; a variable of a closure is one, too."""
    hint = diagnose(lost(get_db_of_a_registry, exception="ValueError"))
    assert hint.cause is not None
    assert hint.cause.startswith("get_db_of_a_registry calls remove() after its yield")
    hint = diagnose(lost(get_db_of_a_cell, exception="ValueError"))
    assert hint.cause is not None
    assert hint.cause.startswith("get_db_of_a_cell calls close() after its yield")


@pytest.mark.parametrize(
    "constructor",
    [
        get_db_that_removes_something_else,
        get_db_that_closes_something_else,
        get_db_that_closes_another_one,
        get_db_that_closes_another_one_of_the_same_name,
    ],
)
def test_a_close_of_something_else_is_not_said_to_be_skipped(
    constructor: Callable[..., Any],
) -> None:
    """A list has a remove(), a file a close(): neither would have closed the session."""
    assert diagnose(lost(constructor, exception="ValueError")).cause is None


def get_db_with_constants(options: tuple[Any, ...] = ()) -> Iterator[Any]:
    db = Session(*(options or ()))
    yield db
    db.close()


def test_a_constant_is_no_variable() -> None:
    """An empty tuple, for one, has no name."""
    hint = diagnose(lost(get_db_with_constants, exception="ValueError"))
    assert hint.cause is not None
    assert hint.cause.startswith("get_db_with_constants calls close() after its yield")


ON_ONE_LINE = """
def get_db():
    db = Session()
    audit = Session(); yield db
    db.close()
"""


def test_the_last_variable_of_an_instruction_is_the_one() -> None:
    """Since Python 3.13 one instruction sets a variable and loads another one of the same line."""
    variables: dict[str, Any] = {}
    exec(ON_ONE_LINE, variables)  # noqa: S102  (text of the test)
    hint = diagnose(lost(variables["get_db"], exception="ValueError"))
    assert hint.cause is not None
    assert hint.cause.startswith("get_db calls close() after its yield")


def test_a_fault_of_the_diagnosis_costs_the_cause_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The finding comes out all the same, with what always helps."""
    monkeypatch.setattr("dis.get_instructions", None)

    def get_db_of_the_test() -> Iterator[Any]:
        db = Session()
        yield db
        db.close()

    hint = diagnose(lost(get_db_of_the_test, exception="ValueError"))
    assert hint.cause is None
    assert hint.fix
    assert [record.getMessage() for record in caplog.records] == [
        (
            "leakguard's diagnosis raised TypeError; the application is not affected. "
            "No cause is named. Please report it."
        )
    ]


def test_a_close_outside_its_block_is_named() -> None:
    """Where there is some block, the absence of `finally` is not claimed."""
    hint = diagnose(lost(get_db_with_else, exception="KeyError"))
    assert hint.cause == "get_db_with_else calls close(), so an exception skips it"
    assert hint.fix == FINALLY


@pytest.mark.parametrize("evidence", [{}, {"status": 200}, {"status": 399}])
def test_a_close_that_nothing_skipped_is_not_accused(evidence: dict[str, Any]) -> None:
    """Without a failure there is no reason why the close() behind the yield did not run."""
    hint = diagnose(lost(get_db, **evidence))
    assert hint.cause is None
    assert hint.fix == SESSION_BLOCK


@pytest.mark.parametrize(
    "constructor, fix", [(get_db_that_forgets, FINALLY), (get_async_db_that_forgets, ASYNC_YIELD)]
)
@pytest.mark.parametrize("evidence", [{}, {"exception": "ValueError"}])
def test_a_generator_that_never_closes_is_named(
    constructor: Callable[..., Any], fix: str, evidence: dict[str, Any]
) -> None:
    """No close() and no block in it: nothing in the dependency could close the session."""
    hint = diagnose(lost(constructor, **evidence))
    assert hint.cause == f"{constructor.__name__} yields the session and never closes it"
    assert hint.fix == fix


@pytest.mark.parametrize(
    "constructor",
    [get_db_with_finally, get_db_with_block, get_db_with_rollback_only, get_async_db_with_block],
)
def test_a_dependency_with_a_block_is_not_accused(constructor: Callable[..., Any]) -> None:
    """A block might close the session in ways that the code does not show."""
    assert diagnose(lost(constructor)).cause is None


@pytest.mark.parametrize(
    "constructor",
    [
        get_db_with_finally,
        get_db_with_block,
        get_db_with_block_and_close,
        get_async_db_with_block,
        get_async_db_with_finally,
    ],
)
def test_what_an_exception_does_not_skip_is_not_said_to_be_skipped(
    constructor: Callable[..., Any],
) -> None:
    """An exception skips neither a `with` block nor a close() in a `finally` block."""
    assert diagnose(lost(constructor, exception="ValueError")).cause is None


def test_a_session_that_requests_share_is_named() -> None:
    """It was there before the request, and keeps what the request made it take."""
    hint = diagnose(lost(get_db_with_finally, constructed_outside=True))
    assert hint.cause == (
        "the session was constructed outside of the request and keeps the connection that this "
        "request made it take, until somebody calls commit(), rollback() or close()"
    )
    assert hint.fix == "construct a session for each request: with Session() as db:"


def test_a_second_checkout_after_commit_is_named() -> None:
    """The session gave one connection back and took this one afterwards."""
    hint = diagnose(lost(get_db_with_finally, taken_again=True))
    assert hint.cause == (
        "commit() or rollback() gave a connection back, and using the session afterwards "
        "(an expired attribute, refresh(), another query) checked out this one"
    )
    assert hint.fix == SESSION_BLOCK


def test_a_function_that_does_not_close_its_session_is_named() -> None:
    """The function that constructs the session could not have closed it."""
    hint = diagnose(lost(read_items))
    assert hint.cause == "read_items constructs the session and does not close it"
    assert hint.fix == SESSION_BLOCK


def test_a_function_is_named_with_its_class_and_without_what_it_is_defined_in() -> None:
    """`__init__` alone says little, and where an application is built says nothing."""

    class Repository:
        """Keeps a session."""

        def __init__(self) -> None:
            self.db = Session()

    hint = diagnose(lost(Repository.__init__))
    assert hint.cause == "Repository.__init__ constructs the session and does not close it"


def test_an_endpoint_is_called_one() -> None:
    """The function that the route names is the endpoint."""
    hint = diagnose(lost(read_items_async, endpoint=code(read_items_async)))
    assert (
        hint.cause == "the endpoint read_items_async constructs the session and does not close it"
    )
    assert hint.fix == ASYNC_SESSION_BLOCK


def test_work_after_the_response_is_called_that() -> None:
    """A background task is not an endpoint."""
    hint = diagnose(lost(read_items, after_response=True, endpoint=code(read_items_async)))
    assert hint.cause == (
        "read_items, which runs after the response, constructs the session and does not close it"
    )


@pytest.mark.parametrize("constructor", [read_items_and_close, read_items_async_with_block])
def test_a_function_that_might_close_its_session_is_not_accused(
    constructor: Callable[..., Any],
) -> None:
    """A call to close() or a block may have done it; who knows why it did not."""
    assert diagnose(lost(constructor)).cause is None


def test_nothing_known_names_no_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Without a line there is advice, and no accusation; that is no fault."""
    hint = diagnose(lost())
    assert hint.cause is None
    assert hint.fix == SESSION_BLOCK
    assert caplog.records == []


@pytest.mark.parametrize(
    "acquirer, fix",
    [(read_items, CONNECTION_BLOCK), (read_items_async, ASYNC_CONNECTION_BLOCK)],
)
def test_a_connection_without_session_names_who_took_it(
    acquirer: Callable[..., Any], fix: str
) -> None:
    """A Core connection is the business of the function that checked it out."""
    hint = diagnose(Case(FindingKind.LEAKED, acquirer=code(acquirer)))
    assert hint.cause == f"{acquirer.__name__} takes a connection and does not close it"
    assert hint.fix == fix


@pytest.mark.parametrize("acquirer", [read_items_and_close, read_items_async_with_block, None])
def test_a_connection_that_might_be_closed_accuses_nobody(
    acquirer: Callable[..., Any] | None,
) -> None:
    """A look-alike with a close or a block, and an unknown line, name no cause."""
    taker = None if acquirer is None else code(acquirer)
    assert diagnose(Case(FindingKind.LEAKED, acquirer=taker)).cause is None


def test_a_session_is_not_the_mistake_of_who_used_it_first() -> None:
    """The checkout of a session's connection happens in the endpoint, innocent of the leak."""
    case = lost(get_db_with_finally, acquirer=code(read_items))
    assert diagnose(case).cause is None


def test_reclaimed_is_diagnosed_like_leaked() -> None:
    """The mistake is the same, whenever the garbage collector runs."""
    cases = [
        lost(get_db, exception="ValueError"),
        lost(get_db_that_forgets),
        lost(read_items),
        lost(taken_again=True),
        lost(taken_after_close=True),
        lost(cancelled=True),
        lost(),
    ]
    for case in cases:
        again = dataclasses.replace(case, kind=FindingKind.RECLAIMED)
        assert diagnose(again) == diagnose(case)


ON_A_HOLD = [kind for kind in FindingKind if kind is not FindingKind.POOL_EXHAUSTED]
NO_LOSSES = {
    FindingKind.HELD: (
        "it is kept while its owner does something else that takes long, or waits for it",
        (
            "give it back before the slow part, and take it again afterwards: db.commit() or "
            "close() gives it back"
        ),
    ),
    FindingKind.OUTLIVES_SCOPE: (
        "a task or thread was started by the scope and is still using it",
        (
            "await it before the request ends, or let it open and close a session of its own; if "
            "it is meant to go on, say so: with leakguard.allow(reason):"
        ),
    ),
    FindingKind.RETURNED_LATE: (
        (
            "something kept it after the last byte of the response: a background task, a "
            "clean-up, or a client that reads slowly"
        ),
        (
            "close the session before the slow part, or open one there; in FastAPI, "
            'Depends(..., scope="function") ends before the response is sent'
        ),
    ),
    FindingKind.NESTED_CHECKOUT: (
        (
            "one unit of work needs two connections at once: when every worker holds its first and "
            "waits for its second, none goes on"
        ),
        (
            "pass the session on instead of opening another one, or give the inner work an engine "
            "of its own"
        ),
    ),
    FindingKind.SYNC_IN_ASYNC: (
        "a synchronous checkout in async code stops every request of the process while it waits",
        "make the function def instead of async def, or use AsyncSession",
    ),
    FindingKind.UNCLOSED_SESSION: (
        "nobody called close(); it holds no connection now",
        "use a block, which closes it whatever happens: with Session() as db:",
    ),
}


def test_every_kind_that_is_no_loss_is_among_them() -> None:
    """Losses are diagnosed by their evidence."""
    assert set(ON_A_HOLD) - set(NO_LOSSES) == {FindingKind.LEAKED, FindingKind.RECLAIMED}


@pytest.mark.parametrize("kind", NO_LOSSES)
def test_what_is_no_loss_is_explained_by_its_kind(kind: FindingKind) -> None:
    """Evidence of a loss does not explain what is no loss."""
    bare = Case(kind, by_session=True)
    loaded = dataclasses.replace(
        bare, taken_after_close=True, taken_again=True, cancelled=True, exception="ValueError"
    )
    for case in (bare, loaded):
        hint = diagnose(case)
        assert (hint.cause, hint.fix) == NO_LOSSES[kind]


def test_what_keeps_a_held_connection_is_named() -> None:
    """Between the messages of a WebSocket, while the response is sent, or in a function."""
    held = Case(FindingKind.HELD, by_session=True, now=read_items.__code__)
    assert diagnose(held).cause == (
        "it is kept while read_items does something else that takes long, or waits for it"
    )
    quiet = diagnose(dataclasses.replace(held, scope_type="websocket", responding=True))
    assert quiet.cause == "a WebSocket connection keeps it between its messages"
    assert quiet.fix.endswith("give it back before the next: with Session() as db:")
    stream = diagnose(dataclasses.replace(held, responding=True))
    assert stream == Hint(
        "the response is being sent while nothing is read from the database: a stream, or a client "
        "that reads slowly",
        "read the data before the response begins, or take a connection inside of the stream and "
        'give it back between its parts; in FastAPI, Depends(..., scope="function") ends before '
        "the response is sent",
    )
    asynchronous = diagnose(dataclasses.replace(held, asynchronous=True))
    assert asynchronous.fix.endswith("await db.commit() or close() gives it back")
    connection = diagnose(dataclasses.replace(held, by_session=False))
    assert connection.fix.endswith("afterwards: close() gives it back")


def test_the_one_who_still_has_it_is_named() -> None:
    """A task that outlives the scope is named in the cause."""
    hint = diagnose(Case(FindingKind.OUTLIVES_SCOPE, outlived_by="task 'export'"))
    assert hint.cause == "task 'export' was started by the scope and is still using it"


def test_a_task_whose_loop_was_closed_is_named() -> None:
    """A block is no remedy: the task may have one, and does not reach its end."""
    hint = diagnose(Case(FindingKind.LEAKED, stranded="task 'export'"))
    assert hint == Hint(
        "task 'export' has it and cannot go on: its event loop was closed before it was done",
        "cancel the task and await it before the loop is closed, as asyncio.run() does",
    )


@pytest.mark.parametrize("kind", ON_A_HOLD)
@pytest.mark.parametrize("by_session", [True, False])
def test_there_is_always_a_fix(kind: FindingKind, by_session: bool) -> None:
    """Whatever the kind, the reader is told what to change."""
    assert diagnose(Case(kind, by_session=by_session)).fix


@pytest.mark.parametrize(
    "function, generator, asynchronous",
    [
        (read_items, False, False),
        (read_items_async, False, True),
        (get_db, True, False),
        (get_async_db, True, True),
    ],
)
def test_kinds_of_functions_are_told_apart(
    function: Callable[..., Any], generator: bool, asynchronous: bool
) -> None:
    """A code object tells what kind of function it belongs to."""
    assert is_generator(code(function)) is generator
    assert is_async(code(function)) is asynchronous


def test_no_function_is_of_no_kind() -> None:
    """Where the line is unknown nothing is said about its function."""
    assert not is_generator(None)
    assert not is_async(None)


@pytest.mark.parametrize(
    "constructor, asynchronous, fix",
    [
        (read_items, True, ASYNC_SESSION_BLOCK),
        (read_items_async, False, SESSION_BLOCK),
        (get_db_that_forgets, True, ASYNC_YIELD),
        (get_async_db_that_forgets, False, FINALLY),
    ],
)
def test_the_fix_follows_the_session_not_the_function(
    constructor: Callable[..., Any], asynchronous: bool, fix: str
) -> None:
    """A synchronous session in async code, and the other way round, is closed its own way."""
    assert diagnose(lost(constructor, asynchronous=asynchronous)).fix == fix


def test_cancellation_explains_nothing_where_no_code_would_have_closed() -> None:
    """A dependency that never closes would have leaked without the cancellation, too."""
    hint = diagnose(lost(get_db_that_forgets, cancelled=True, exception="CancelledError"))
    assert hint.cause == "get_db_that_forgets yields the session and never closes it"
