"""The first experiment: the life of one request, with and without `finally`."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

from examples.demo.application import HAS_FUNCTION_SCOPE, Example
from examples.demo.observation import Db, Moment, Watch, What
from examples.demo.server import Answer, get
from leakguard import ConnectionLeakWarning, Finding

GOOD_ITEM, MISSING_ITEM = 1, 404


@dataclass(frozen=True)
class Variation:
    """One way to have it."""

    with_finally: bool
    raises: bool
    function_scope: bool

    @property
    def title(self) -> str:
        """What the tables call it."""
        scope = ', scope="function"' if self.function_scope else ""
        return (
            f"{_word(self)} finally, the endpoint {'raises' if self.raises else 'returns'}{scope}"
        )

    @property
    def path(self) -> str:
        """What to request."""
        scope = "/function-scope" if self.function_scope else ""
        item = MISSING_ITEM if self.raises else GOOD_ITEM
        return f"/{_word(self)}-finally{scope}/items/{item}"


def variations() -> list[Variation]:
    """List all that this FastAPI has, the default scope first."""
    return [
        Variation(with_finally, raises, function_scope)
        for function_scope in (False, True)[: 1 + HAS_FUNCTION_SCOPE]
        for with_finally in (True, False)
        for raises in (False, True)
    ]


@dataclass(frozen=True)
class Life:
    """What was seen of one request, and what leakguard said of it."""

    variation: Variation
    answer: Answer
    error: str
    """The exception that came out of the application, its type first; empty without one."""
    moments: tuple[Moment, ...]
    findings: tuple[Finding, ...]
    log: str
    warning: str

    @property
    def out(self) -> int:
        """How many connections were out of the pool when it was over."""
        return self.moments[-1].out

    @property
    def closed(self) -> bool:
        """Whether the session was closed."""
        return self.line(What.CLOSED) is not None

    @property
    def raised(self) -> bool:
        """Whether the endpoint raised."""
        return self.line(What.RAISED) is not None

    @property
    def ending(self) -> tuple[What, ...]:
        """In which order the response was sent and the session closed."""
        both = (What.RESPONDED, What.CLOSED)
        return tuple(moment.what for moment in self.moments if moment.what in both)

    @property
    def db(self) -> tuple[Db, ...]:
        """What the variable `db` named, one after the other."""
        return tuple(value for value, _ in groupby(moment.db for moment in self.moments))

    def line(self, what: What) -> int | None:
        """Return the line of the example at which something happened."""
        return next((moment.line for moment in self.moments if moment.what is what), None)


class Row(NamedTuple):
    """A row of the table; its step is its number."""

    action: str
    connection: str
    db: str
    notes: str
    turn: Literal["returned", "lost"] | None
    """What this step means for the connection, where it decides."""


def live(variation: Variation, example: Example, watch: Watch, port: int) -> Life:
    """Send the request and watch it."""
    before = len(example.findings())
    with uncollected(), listening() as (log, warning), watch.one_request(example) as observation:
        answer = get(port, variation.path)
    life = Life(
        variation,
        answer,
        observation.error,
        tuple(observation.moments),
        example.findings()[before:],
        log.getvalue(),
        warning.getvalue(),
    )
    # The next one shall find the pool as this one did. A worker thread of older versions of anyio
    # keeps the exception of its last work, and thus the session, until it has other work.
    get(port, f"{example.prefix}/items/{GOOD_ITEM}")
    example.collect()
    return life


@contextmanager
def uncollected() -> Generator[None]:
    """Pause the garbage collector: what it takes, and when, is chance."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def listening() -> Generator[tuple[io.StringIO, io.StringIO]]:
    """Catch what leakguard logs, and the warnings that Python prints."""
    log, errors = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    logger = logging.getLogger("leakguard")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(), redirect_stderr(errors):
            # Python's own default, whatever this process was started with.
            warnings.simplefilter("default", ConnectionLeakWarning)
            yield log, errors
    finally:
        logger.removeHandler(handler)


def rows(life: Life) -> list[Row]:
    """Put what was seen into the words of the table."""
    taken = False
    table: list[Row] = []
    for moment in life.moments:
        taken = taken or moment.out > 0
        action, notes = _WORDS[moment.what](moment, life)
        state = _state(moment, taken=taken)
        table.append(Row(action, state, moment.db, notes, _turn(moment)))
    return table


def _turn(moment: Moment) -> Literal["returned", "lost"] | None:
    if moment.what is What.CLOSED:
        return "returned"
    return "lost" if moment.what in (What.LEFT, What.OVER) and moment.out else None


def _state(moment: Moment, *, taken: bool) -> str:
    if moment.out:
        word = "STILL OUT" if moment.what is What.OVER else "checked out"
    else:
        word = "returned" if taken else "none"
    return f"{word} ({moment.out})"


_WORDS: Mapping[What, Callable[[Moment, Life], tuple[str, str]]] = {
    What.RECEIVED: lambda _, __: ("request received", "no session yet"),
    What.CALLED: lambda _, __: ("call get_db()", ""),
    What.CONSTRUCTED: lambda moment, _: ("call SessionLocal()", _line(moment)),
    What.YIELDED: lambda moment, _: ("get_db() yields db", _line(moment)),
    What.ENTERED: lambda _, __: ("endpoint gets db", "read_item()"),
    What.CHECKED_OUT: lambda moment, _: ("first statement", _line(moment)),
    What.RETURNED: lambda moment, _: ("endpoint returns", _line(moment)),
    What.RAISED: lambda _, life: ("endpoint raises", life.error.partition(":")[0]),
    What.RESPONDED: lambda _, life: ("response sent", f"status {life.answer.status}"),
    What.RESUMED: lambda moment, life: (
        "get_db() goes on",
        f"{'raises at' if life.raised else 'after'} {_line(moment)}",
    ),
    What.CLOSED: lambda moment, _: ("db.close()", _line(moment)),
    What.LEFT: lambda _, life: ("get_db() ends", "" if life.closed else "close() not reached"),
    What.OVER: lambda _, life: ("request over", f"leakguard: {verdict(life)}"),
}
"""The action and the notes of a moment."""


def _line(moment: Moment) -> str:
    return f"line {moment.line}"


def verdict(life: Life) -> str:
    """Return what leakguard said."""
    return ", ".join(finding.kind for finding in life.findings) or "silent"


def _word(variation: Variation) -> str:
    return "with" if variation.with_finally else "without"
