"""Stages: the stretches of a run of tests that must give back what they took."""

from __future__ import annotations

from asyncio import all_tasks
from contextlib import contextmanager
from threading import Condition, active_count, get_ident
from typing import TYPE_CHECKING, Final, Literal

from _pytest import runner

from leakguard.core.callsite import mark_boundary
from leakguard.core.collector import PAUSE
from leakguard.core.guard import Guard
from leakguard.core.hold import ConnectionHold
from leakguard.core.observer import Observer
from leakguard.core.process import INSTALLED, observe_everywhere, observe_no_more
from leakguard.core.scope import AMBIENT, Scope
from leakguard.core.settings import build_settings
from leakguard.core.stacks import frames_of, thread_stacks
from leakguard.core.tasks import may_run, runs_elsewhere
from leakguard.core.watch import WATCH
from leakguard.sources.sqlalchemy import SQLALCHEMY
from leakguard.sources.starlette import STARLETTE
from leakguard.testing import describe as _describe  # noqa: F401  # pyright: ignore[reportUnusedImport]  # see below
from leakguard.testing.keeping import kept

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Generator, Iterable, Sequence

    from leakguard.core.finding import Finding
    from leakguard.core.hold import Hold

    Kind = Literal["test", "fixture"]
    Keeper = tuple["Stage", Callable[[Iterable[object]], set[int]]]
    """A fixture that goes on, and what tells the `id()` of those objects that it refers to."""


_ANYIO_RUNNER: Final = "TestRunner._run_tests_and_fixtures"
"""In the name of the task of AnyIO's plugin that runs tests and fixtures, on asyncio and on trio.
While a wider fixture has it, it is one for all of them."""


class Stage(Scope):
    """A test with its fixtures, or a fixture that serves several tests."""

    def __init__(self, guard: Guard, name: str, type: Kind) -> None:  # noqa: A002  (as of a scope)
        super().__init__(guard, name, type)
        self.parent = None  # a fixture outlives the test that was the first to ask for it
        self.interrupted: Scope | None = None
        """The stage that goes on when this one ends or is left."""
        self.findings: list[Finding] = []
        """What was found of its own, and of the requests made in it."""
        self.requests: set[Scope] = set()
        """The scopes that were opened in it and have not ended."""
        self.eventful = False
        """Whether anything was opened or taken in it."""


class Stages(Observer):
    """Watches all stages of a run, and keeps what is found of each."""

    def __init__(self) -> None:
        self._guard = Guard(build_settings({"mode": "testing"}), (), (SQLALCHEMY, STARLETTE))
        self._told = Condition()
        self._rest: list[tuple[str, Finding]] = []
        """What was found when its stage had ended, with that one's name, or outside of any."""
        self._parked: list[ConnectionHold] = []
        """What a task may yet give back whose event loop stood still when its stage ended."""

    def start(self) -> None:
        """Begin to watch."""
        observe_everywhere(self)
        self._guard.install()
        WATCH.start()  # not in the middle of a test, which may count the threads, or replace them

    def stop(self) -> None:
        """Watch no more."""
        self._guard.uninstall()
        observe_no_more(self)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Watch nothing in the block. What was out before is forgotten."""
        ambient, AMBIENT.scope = AMBIENT.scope, None
        self.stop()
        try:
            yield
        finally:
            self.start()
            AMBIENT.scope = ambient

    def begin(self, name: str, type: Kind) -> Stage:  # noqa: A002  (as of a scope)
        """Begin a stage: what is taken from now on, in whatever thread or task, is its own."""
        stage = Stage(self._guard, name, type)
        self.enter(stage)
        return stage

    def enter(self, stage: Stage) -> None:
        """Go on with a stage, in the middle of another one."""
        stage.interrupted = AMBIENT.scope
        AMBIENT.scope = stage

    def leave(self, stage: Stage) -> None:
        """Go on with the one that it interrupted."""
        AMBIENT.scope, stage.interrupted = stage.interrupted, None

    def end(self, stage: Stage, keepers: Iterable[Keeper] = ()) -> list[Finding]:
        """End a stage, which goes on, and return what was found, when all verdicts have fallen.

        What one of the `keepers` has is up to that one: the first of them takes it over.
        """
        try:
            if stage.eventful:
                self.settle(stage)
                self._disown_runner(stage)
                for keeper, refers_to in keepers:
                    self._hand_over_kept(stage, keeper, refers_to)
                self._wait_for_threads(stage)
                self._park(stage)
        finally:  # whatever a signal handler raises meanwhile
            try:
                self._guard.close_scope(stage)
                if stage.eventful:
                    self._decide()
            finally:
                self.leave(stage)
        return stage.findings

    def _disown_runner(self, stage: Stage) -> None:
        """Count as the stage's own work what a task that runs all tests has taken: it goes on."""
        for hold in _connections(self.open_holds(stage)):
            for one in (hold, hold.session):
                if one is not None and _ANYIO_RUNNER in str(one.holder):
                    one.holder = None

    def _hand_over_kept(
        self, stage: Stage, keeper: Stage, refers_to: Callable[[Iterable[object]], set[int]]
    ) -> None:
        connections = _open_connections(stage)
        if not connections:  # of sessions without, nobody has to know whose they are
            return
        holds = [*connections, *(hold for hold in stage.open_sessions.copy() if hold.open)]
        subjects = {hold: hold.subject for hold in holds}
        kept = refers_to(subjects.values())
        for hold, subject in subjects.items():
            session = hold.session if isinstance(hold, ConnectionHold) else None
            if id(subject) in kept or (session in subjects and id(subjects[session]) in kept):
                keeper.eventful = True
                hold.guard.hand_over(hold, keeper.guard, keeper)

    def _wait_for_threads(self, stage: Stage) -> None:
        """Give another thread its time to give back what the stage has handed to it."""
        connections = _open_connections(stage)
        if not connections or active_count() == 1:
            return
        in_hand = _in_hand(connections)
        if in_hand:
            with self._told:
                self._told.wait_for(lambda: not any(one.open for one in in_hand), self._patience)

    def _park(self, stage: Stage) -> None:
        """Leave what the tasks of an event loop have that goes on in another test, as it may."""
        connections = _connections(self.open_holds(stage))
        tasks = [task for loop in _standing_still(connections) for task in all_tasks(loop)]
        for hold in _reached(connections, (), [task.get_coro() for task in tasks]):
            hold.parked = True
            self._parked.append(hold)

    def settle(self, stage: Stage) -> None:
        """Wait for the requests of a stage that a server in another thread has yet to end.

        For `late_after` seconds at most: a stream may be meant to go on.
        """
        with self._told:
            self._told.wait_for(lambda: not _under_way(stage), self._patience)

    def findings(self, stage: Stage) -> list[Finding]:
        """Return what was found of a stage so far."""
        self.settle(stage)
        self._wait_for_verdicts(INSTALLED.copy())
        return stage.findings

    def open_holds(self, stage: Stage) -> list[Hold]:
        """Return what is out of a stage and of its requests, oldest first."""
        holds = [hold for guard in INSTALLED.copy() for hold in guard.open_holds()]
        own = (hold for hold in holds if _stage_of(hold.scope) is stage)
        return sorted(own, key=lambda hold: hold.acquired_monotonic)

    def take_rest(self) -> list[tuple[str, Finding]]:
        """Return what was found when its stage had ended, with that one's name, if any."""
        while self._parked:  # no loop goes on any more
            self._parked.pop().parked = False
        self._decide()
        rest, self._rest = self._rest, []
        return rest

    @property
    def _patience(self) -> float:
        return self._guard.settings.late_after

    def _decide(self) -> None:
        """Have every verdict fall that can: work that goes on gets its time to give things back."""
        guards = INSTALLED.copy()
        self._wait_for_verdicts(guards)
        for guard in guards:
            guard.judge_pending()
        WATCH.drain(self._patience)  # it tells what the collector did, and may be at it

    def _wait_for_verdicts(self, guards: Iterable[Guard]) -> None:
        with self._told:
            self._told.wait_for(lambda: not any(one.undecided for one in guards), self._patience)

    def scope_opened(self, scope: Scope) -> None:
        """Remember what is under way."""
        stage = _stage_of(scope)
        if stage is not None:  # there is none while tests are collected
            stage.eventful = True
            stage.requests.add(scope)

    def scope_closed(self, scope: Scope) -> None:
        """Remember that it is not under way any more."""
        stage = _stage_of(scope)
        if stage is not None and scope in stage.requests:
            stage.requests.discard(scope)
            self._tell()

    def acquired(self, hold: Hold) -> None:
        """Remember that there is something to judge."""
        stage = _stage_of(hold.scope)
        if stage is not None:
            stage.eventful = True

    def released(self, hold: Hold) -> None:
        """Have whoever waits for it look again."""
        if hold.resource == "connection":
            self._tell()

    def found(self, finding: Finding) -> None:
        """Keep it for its stage."""
        stage = _stage_of(finding.scope)
        if stage is not None and stage.guard is not self._guard:
            return  # of a run of tests within this one, or around it
        if stage is None or (stage.closed_at is not None and AMBIENT.scope is not stage):
            self._rest.append(("" if stage is None else stage.name, finding))
        else:
            stage.findings.append(finding)
        self._tell()

    def _tell(self) -> None:
        with self._told:
            self._told.notify_all()


def _stage_of(scope: Scope | None) -> Stage | None:
    while scope is not None and not isinstance(scope, Stage):
        scope = scope.parent
    return scope


def _open_connections(stage: Stage) -> list[ConnectionHold]:
    return _connections(stage.open_connections.copy())


def _connections(holds: Iterable[Hold]) -> list[ConnectionHold]:
    return [hold for hold in holds if isinstance(hold, ConnectionHold) and hold.open]


def _in_hand(connections: list[ConnectionHold]) -> list[ConnectionHold]:
    """Return those that another thread works with: its frames refer to them, or their sessions."""
    variables: list[object] = []
    own = get_ident()
    for thread, stack in thread_stacks().items():
        if thread != own:
            with PAUSE:
                variables += [dict(frame.f_locals) for frame in frames_of(stack)]
    return _reached(connections, variables, ())


def _reached(
    connections: list[ConnectionHold], variables: Sequence[object], work: Sequence[object]
) -> list[ConnectionHold]:
    """Return those to which, or to whose sessions, variables refer, or work that is to go on."""
    if not (variables or work):
        return []
    owners = {hold: [hold.subject] for hold in connections}
    for hold, subjects in owners.items():
        if hold.session is not None:
            subjects.append(hold.session.subject)
    things = [subject for subjects in owners.values() for subject in subjects]
    found = kept(variables, work, things)
    return [hold for hold, subjects in owners.items() if found & set(map(id, subjects))]


def _standing_still(connections: list[ConnectionHold]) -> set[AbstractEventLoop]:
    """Return the event loops of those who took them that are neither running nor closed."""
    loops = {holder.loop for hold in connections for holder in hold.holders}
    for hold in connections:
        if hold.scope is not None and hold.scope.loop is not None:
            loops.add(hold.scope.loop())
    return {loop for loop in loops if loop is not None and may_run(loop) and not loop.is_running()}


def _under_way(stage: Stage) -> bool:
    """Return whether a request of it is on a loop that goes on in another thread."""
    loops = (None if scope.loop is None else scope.loop() for scope in stage.requests.copy())
    return runs_elsewhere(loop for loop in loops if loop is not None)


# What describes a leak is imported above, before there is one: pytest parses each module of a
# plugin anew, and Python 3.11 may fail at that where the collector runs a finalizer meanwhile, as
# that of a connection.

# What is around a test, such as a worker of pytest-xdist, is none of its lines.
mark_boundary(runner.__file__)
