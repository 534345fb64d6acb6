"""Watches one request from outside, without a change to the application.

Three witnesses, none of them leakguard, each of which notes a moment when something happens:

- a layer around the application sees the request come in and the response go out;
- a profile function sees four functions being entered and left, in whichever thread they run:
  `get_db`, the endpoint, and SQLAlchemy's `Session.__init__` and `Session.close`;
- the engine tells of a connection that leaves the pool.

With every moment goes what the pool counts then, and what the variable `db` of `get_db` names.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import CodeType, FrameType
from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.orm import Session

from examples.demo.application import Example
from examples.demo.server import PATIENCE

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Any, Receive, Send], Awaitable[None]]
Reaction = Callable[[FrameType, object], None]


class What(StrEnum):
    """What can happen in the life of a request."""

    RECEIVED = "request received"
    CALLED = "get_db called"
    CONSTRUCTED = "session constructed"
    YIELDED = "db yielded"
    ENTERED = "endpoint entered"
    CHECKED_OUT = "connection checked out"
    RETURNED = "endpoint returned"
    RAISED = "endpoint raised"
    RESPONDED = "response sent"
    RESUMED = "get_db resumed"
    CLOSED = "session closed"
    LEFT = "get_db left"
    OVER = "request over"


class Db(StrEnum):
    """What the variable `db` names."""

    NONE = "None"
    OPEN = "open Session"
    CLOSED = "closed Session"


@dataclass(frozen=True)
class Moment:
    """Something happened."""

    what: What
    db: Db
    out: int
    """How many connections are out of the pool."""
    line: int | None = None
    """Where in the example it happened."""


class Observation:
    """The moments of one request to `example`, in their order."""

    def __init__(self, example: Example) -> None:
        self.moments: list[Moment] = []
        self.error = ""
        """The exception that came out of the application: its type, and its first line."""
        self.over = threading.Event()
        self._example = example
        self._get_db: CodeType = example.module.get_db.__code__
        self._endpoint: CodeType = example.module.read_item.__code__
        # By number, because this is asked for every call in every thread.
        self._reactions: dict[tuple[int, str], Reaction] = {
            (id(self._get_db), "call"): self._get_db_runs,
            (id(self._get_db), "return"): self._get_db_stops,
            (id(self._endpoint), "call"): self._endpoint_runs,
            (id(self._endpoint), "return"): self._endpoint_stops,
            (id(_code(Session.__init__)), "return"): self._session_constructed,
            (id(_code(Session.close)), "return"): self._session_closed,
        }
        self._session: Callable[[], object] = _nothing
        self._closed = False

    def note(self, what: What, line: int | None = None) -> None:
        """Write down that something happens now."""
        out = self._example.connections_out()
        self.moments.append(Moment(what, self._db(), out, line))

    def profile(self, frame: FrameType, happening: str, value: object) -> None:
        """React to the functions of interest."""
        reaction = self._reactions.get((id(frame.f_code), happening))
        if reaction is not None:
            reaction(frame, value)

    def checked_out(self, *_: object) -> None:
        """React to a connection that leaves the pool."""
        self.note(What.CHECKED_OUT, line_in(self._endpoint, inspect.currentframe()))

    def _db(self) -> Db:
        if self._session() is None:
            return Db.NONE
        return Db.CLOSED if self._closed else Db.OPEN

    def _get_db_runs(self, frame: FrameType, _: object) -> None:
        again = any(moment.what is What.CALLED for moment in self.moments)
        self.note(What.RESUMED if again else What.CALLED, frame.f_lineno)

    def _get_db_stops(self, frame: FrameType, value: object) -> None:
        db = frame.f_locals.get("db")
        if value is not None and db is not None:
            # Weakly: whoever watches must not keep the session alive.
            self._session = weakref.ref(db)
            self.note(What.YIELDED, frame.f_lineno)
        else:  # it has ended, and its variables with it
            self._session = _nothing
            self.note(What.LEFT, frame.f_lineno)

    def _endpoint_runs(self, frame: FrameType, _: object) -> None:
        self.note(What.ENTERED, frame.f_lineno)

    def _endpoint_stops(self, frame: FrameType, value: object) -> None:
        # It always returns something; a function that raises gives the profiler nothing.
        self.note(What.RAISED if value is None else What.RETURNED, frame.f_lineno)

    def _session_constructed(self, frame: FrameType, _: object) -> None:
        self.note(What.CONSTRUCTED, line_in(self._get_db, frame))

    def _session_closed(self, frame: FrameType, _: object) -> None:
        if frame.f_locals["self"] is self._session():
            self._closed = True
            self.note(What.CLOSED, line_in(self._get_db, frame))


class Watch:
    """Stands around an application and in its threads, and watches when it is asked to."""

    def __init__(self) -> None:
        self._observation: Observation | None = None

    @contextmanager
    def in_threads(self) -> Generator[None]:
        """Watch the threads that are started in the block: a server and its workers."""
        before = threading.getprofile()
        threading.setprofile(self._profile)
        try:
            yield
        finally:
            threading.setprofile(before)

    @contextmanager
    def one_request(self, example: Example) -> Generator[Observation]:
        """Watch the one request that is made in the block, until the application has ended it."""
        observation = Observation(example)
        event.listen(example.engine, "checkout", observation.checked_out)
        self._observation = observation
        try:
            yield observation
            observation.over.wait(PATIENCE)
        finally:
            self._observation = None
            event.remove(example.engine, "checkout", observation.checked_out)

    def around(self, app: AsgiApp) -> AsgiApp:
        """Return the application with a layer around it."""

        async def layer(scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401  (ASGI's)
            observation = self._observation
            if observation is None:
                await app(scope, receive, send)
                return
            observation.note(What.RECEIVED)
            try:
                await app(scope, receive, _watching(send, observation))
            except Exception as error:
                # As text: the exception itself would keep the session alive.
                observation.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise
            finally:
                observation.note(What.OVER)
                observation.over.set()

        return layer

    def _profile(self, frame: FrameType, happening: str, value: object) -> None:
        if self._observation is not None:
            self._observation.profile(frame, happening, value)


def line_in(code: CodeType, frame: FrameType | None) -> int | None:
    """Return the line at which a function on the stack is."""
    while frame is not None:
        if frame.f_code is code:
            return frame.f_lineno
        frame = frame.f_back
    return None


def _watching(send: Send, observation: Observation) -> Send:
    async def watching_send(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            observation.note(What.RESPONDED)

    return watching_send


def _code(function: Callable[..., object]) -> CodeType:
    """Return the code of a function, of the original where leakguard has wrapped it."""
    return cast(CodeType, inspect.unwrap(function).__code__)


def _nothing() -> None:
    """Stand in for a weak reference to nothing."""
