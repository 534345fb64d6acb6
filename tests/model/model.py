"""A model of what a guard must say: plain data, no library, no clock.

The programs of `test_model` tell it what they do in the words of the documentation: an actor (a
thread or task) opens a scope, takes a connection, gives it back. It knows which holds are open and
which findings are due. Nothing of leakguard is imported but the names of the kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from leakguard import FindingKind


class State(Enum):
    """What became of a hold."""

    OUT = auto()
    RETURNED = auto()
    COLLECTED = auto()


@dataclass(eq=False)
class ModelActor:
    """A thread or task: what it acquires goes to the innermost of its scopes."""

    base: ModelScope | None = None
    """The scope that its copy of the context brought along, which may have ended since."""
    scopes: list[ModelScope] = field(default_factory=list["ModelScope"])
    alive: bool = True

    @property
    def scope(self) -> ModelScope | None:
        """The innermost scope of its context."""
        return self.scopes[-1] if self.scopes else self.base


@dataclass(eq=False)
class ModelScope:
    """A stretch of work that must give back what it took."""

    owner: ModelActor
    parent: ModelScope | None
    is_open: bool = True
    holds: list[ModelHold] = field(default_factory=list["ModelHold"])


@dataclass(eq=False)
class ModelFinding:
    """A verdict that is due."""

    hold: ModelHold
    kind: FindingKind
    also: tuple[FindingKind, ...] = ()
    resolved: bool = False
    superseded: bool = False
    """It was a notice, and `leaked` was said of the same hold afterwards."""


@dataclass(eq=False)
class ModelHold:
    """A connection or session that was acquired."""

    resource: Literal["connection", "session"]
    holder: ModelActor | None
    """Who acquired it; `None` for the one that had its scope open."""
    scope: ModelScope | None
    allowed: bool = False
    nested: bool = False
    pool: object = None
    """What it was taken from: what is of the same pool can be nested."""
    detached: bool = False
    session: ModelHold | None = None
    state: State = State.OUT
    waiting: bool = False
    """It was out when its scope ended, and somebody may yet return it."""
    accounted_for: bool = False
    """A session: one of its connections came to a finding of its own."""
    finding: ModelFinding | None = None
    """The one that its return resolves."""

    @property
    def out(self) -> bool:
        """Whether nobody has given it back."""
        return self.state is State.OUT

    @property
    def holder_runs(self) -> bool:
        """Whether another one than the scope's own acquired it, or its session, and still runs."""
        holders = [self.holder]
        if self.session is not None and self.session.scope is not None:
            holders.append(self.session.holder)
        return any(holder is not None and holder.alive for holder in holders)


class Model:
    """All holds in the order of their acquisition, and all findings that are due."""

    def __init__(self, *, nests: bool = True, patient: bool = False) -> None:
        """Take whether a second connection of a pool may have to wait while a scope has one.

        A `patient` guard waits for ever for those who might return something.
        """
        self.nests = nests
        self.patient = patient
        self.holds: list[ModelHold] = []
        self.findings: list[ModelFinding] = []
        self.others_running: Callable[[ModelScope], bool] = lambda _: False

    @property
    def open_holds(self) -> list[ModelHold]:
        """What is out, oldest first."""
        return [hold for hold in self.holds if hold.out]

    def opens(self, actor: ModelActor) -> ModelScope:
        """An actor opens a scope."""
        scope = ModelScope(actor, actor.scope)
        actor.scopes.append(scope)
        return scope

    def closes(self, actor: ModelActor) -> None:
        """An actor ends its innermost scope, which is judged."""
        scope = actor.scopes.pop()
        holds = scope.holds
        for hold in holds:
            if hold.resource == "connection":
                self._judge(hold)
        for hold in holds:
            if hold.resource == "session":
                self._judge_session(hold)
        scope.is_open = False

    def constructs(self, actor: ModelActor, *, allowed: bool = False) -> ModelHold:
        """An actor constructs a session."""
        scope = actor.scope
        return self._acquire(ModelHold("session", _holder(actor, scope), scope, allowed))

    def checks_out(
        self,
        actor: ModelActor,
        pool: object,
        session: ModelHold | None = None,
        *,
        allowed: bool = False,
    ) -> ModelHold:
        """An actor takes a connection, for itself or through a session."""
        scope = actor.scope
        if session is not None and session.scope is not None and session.scope.is_open:
            scope = session.scope
        allowed = allowed or (session is not None and session.allowed)
        holder = _holder(actor, scope)
        hold = ModelHold("connection", holder, scope, allowed, pool=pool, session=session)
        beside = [] if scope is None or not scope.is_open else scope.holds
        hold.nested = self.nests and any(_takes_room(one, pool) for one in beside)
        if scope is not None and not scope.is_open:
            hold.waiting = True
        return self._acquire(hold)

    def returns(self, hold: ModelHold) -> None:
        """A hold is given back."""
        if hold.out:
            hold.state = State.RETURNED
            self._resolve(hold)

    def collects(self, hold: ModelHold) -> None:
        """The garbage collector takes a hold that nobody gave back."""
        if not hold.out:
            return
        waiting = hold.waiting
        hold.state = State.COLLECTED
        if hold.resource == "connection":
            if hold.scope is None:
                self._find(hold, FindingKind.RECLAIMED)
            elif waiting:
                self._find(hold, FindingKind.LEAKED)
        self._resolve(hold)

    def ends(self, actor: ModelActor) -> None:
        """An actor ends; what it was trusted to return is lost."""
        actor.alive = False
        self.look_again()

    def look_again(self) -> None:
        """Decide on what was waited for, where nobody is left to return it."""
        for hold in self.open_holds:
            if hold.waiting and not hold.holder_runs and not self._waits_for_others(hold):
                hold.waiting = False
                self._find(hold, FindingKind.LEAKED)

    def _waits_for_others(self, hold: ModelHold) -> bool:
        if hold.scope is None:
            return False
        from_outside = hold.session is not None and hold.session.scope is None
        return self.others_running(hold.scope) or (self.patient and from_outside)

    def _acquire(self, hold: ModelHold) -> ModelHold:
        self.holds.append(hold)
        if hold.scope is not None and hold.scope.is_open:
            hold.scope.holds.append(hold)
        return hold

    def _judge(self, hold: ModelHold) -> None:
        if hold.session is not None and hold.state is not State.RETURNED:
            hold.session.accounted_for = True
        if hold.state is State.COLLECTED:
            self._find(hold, FindingKind.RECLAIMED)
        elif hold.state is State.RETURNED:
            if hold.nested:
                self._find(hold, FindingKind.NESTED_CHECKOUT)
        elif hold.holder_runs:
            hold.waiting = True
            self._find(hold, FindingKind.OUTLIVES_SCOPE)
        elif self._waits_for_others(hold):
            hold.waiting = True
        else:
            self._find(hold, FindingKind.LEAKED)

    def _judge_session(self, hold: ModelHold) -> None:
        clean = hold.state is State.RETURNED or hold.accounted_for or hold.holder_runs
        if not clean:
            self._find(hold, FindingKind.UNCLOSED_SESSION)

    def _find(self, hold: ModelHold, kind: FindingKind) -> None:
        if hold.allowed:
            return
        also = kind is not FindingKind.NESTED_CHECKOUT and hold.nested
        finding = ModelFinding(hold, kind, (FindingKind.NESTED_CHECKOUT,) if also else ())
        self.findings.append(finding)
        if kind in {FindingKind.LEAKED, FindingKind.OUTLIVES_SCOPE}:
            if hold.finding is not None:
                hold.finding.superseded = True
            hold.finding = finding

    def _resolve(self, hold: ModelHold) -> None:
        hold.waiting = False
        if hold.finding is not None:
            hold.finding.resolved = True


def _holder(actor: ModelActor, scope: ModelScope | None) -> ModelActor | None:
    """Return the actor, unless it is the one that has the scope open."""
    return None if scope is not None and scope.is_open and scope.owner is actor else actor


def _takes_room(hold: ModelHold, pool: object) -> bool:
    """Return whether a hold is a connection of `pool` that keeps others from having it."""
    return hold.resource == "connection" and hold.out and hold.pool is pool and not hold.detached
