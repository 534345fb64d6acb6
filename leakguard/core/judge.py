"""The judge: applies the verdicts when a scope ends, and again when what it waited for ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from leakguard.core.faults import FAULTS
from leakguard.core.hold import ConnectionHold, SessionHold
from leakguard.core.holder import (
    AnyTask,
    LoopRef,
    loop_ref,
    on_done,
    running_loop,
)
from leakguard.core.looks import Looks
from leakguard.core.scope import Scope, Tally
from leakguard.core.verdict import Fate, Standing, Verdict, judge
from leakguard.core.watch import WATCH

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from leakguard.core.hold import Hold
    from leakguard.core.holder import Holder

_LATER_LIMIT: Final = 10_000
"""How many sessions are looked at later, at most; of those beyond that nothing is said."""
_LOOK_AGAIN_AFTER: Final = 1.0
"""Seconds until the first look at work whose end might pass unnoticed: a thread's, a closed loop's.
From one look to the next it is twice as long."""
_LONGEST_PAUSE: Final = 60.0
"""Seconds between two such looks at most."""


_Scopes = Callable[["AbstractEventLoop"], set[Scope]]
"""Gives the scopes whose tasks run in a loop, with one look however often it is asked."""


@dataclass(slots=True, eq=False)
class _Wait:
    """A hold that was out when its scope ended and that somebody may yet return."""

    hold: ConnectionHold
    scope: Scope
    loop: LoopRef | None
    announced: bool = False
    """Whether the notice that it outlives its scope was given, or is not due."""
    until: float | None = None
    """When the wait for the other work of the scope ends, by the judge's clock."""
    over: bool = False
    """Whether nothing is waited for any more, whatever the clock says."""
    look_at: float | None = None
    """When the next look is due, by the judge's clock."""
    postponed: bool = False
    """Whether it waits for the next look at the tasks, which is for all who wait for it."""
    pause: float = _LOOK_AGAIN_AFTER
    """Seconds until the next look at work whose end might pass unnoticed."""


class _Unclosed(NamedTuple):
    """A session that was open when its scope ended, and that somebody may yet close."""

    hold: SessionHold
    scope: Scope
    loop: LoopRef | None
    look_at: float
    """When there has been time enough to close it, by the judge's clock."""


class Judge:
    """Decides on the holds of a guard's scopes, each exactly once."""

    def __init__(
        self,
        late_after: float,
        found: Callable[[Hold, Verdict], None],
        gone: Callable[[Hold], None],
        post_at: Callable[[float, Callable[[], None]], None] = WATCH.post_at,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Take what to do with a verdict, and with a hold that is closed without anybody's word.

        `post_at` has something done when the clock has reached a time.
        """
        self._late_after = late_after
        self._found = found
        self._gone = gone
        self._post_at = post_at
        self._clock = clock
        self._waits: dict[Hold, _Wait] = {}
        self._looks = Looks(clock)
        self._look_planned = False
        """Whether there will be a look for those that are postponed."""
        self._later: deque[_Unclosed] = deque()
        self._later_planned = False
        """Whether there will be a look for the sessions that are looked at later."""

    def close(self, scope: Scope) -> None:
        """Judge everything that `scope` still has; it has been marked closed."""
        holds = _take_all(scope)
        for hold in holds:
            if isinstance(hold, ConnectionHold):
                _apart(partial(self._close_connection, scope, hold))
        self.tell_notable(scope)
        # Last, because it depends on what became of their connections.
        scopes = cache(self._looks.scopes)
        for hold in holds:
            if isinstance(hold, SessionHold):
                _apart(partial(self._close_session, scope, hold, scopes))

    def tell_notable(self, scope: Scope) -> None:
        """Tell what there is to say about connections of the scope that came back."""
        notable, scope.notable = scope.notable, []
        for hold in notable:
            _apart(partial(self._found, hold, judge(_standing(hold, Fate.RETURNED))))

    def dismiss(self, hold: Hold) -> None:
        """Wait for a hold no more: it has come back, or belongs to another scope now."""
        if self._waits:
            self._waits.pop(hold, None)

    def outlived(self, scope: Scope, hold: ConnectionHold) -> None:
        """Follow a hold that was acquired by work that outlived its scope.

        It was not out when the scope ended, so there is nothing to say unless it is lost.
        """
        self._decide(_Wait(hold, scope, loop_ref(), announced=True))

    def collected(self, hold: ConnectionHold) -> None:
        """Decide on a hold that the garbage collector took while it was waited for."""
        self._again(hold)

    def settle(self) -> None:
        """Judge at once what is waited for, as after the wait: nobody will be there by then."""
        scopes = cache(self._looks.scopes)
        for wait in self._waits.copy().values():
            _apart(partial(self._settle, wait, scopes))
        _apart(partial(self._judge_sessions, inf))

    def forget(self) -> None:
        """Wait for nothing any more."""
        self._waits.clear()
        self._later.clear()
        # The watch of whoever planned it may have gone, with the last guard or at a fork.
        self._look_planned = self._later_planned = False

    def _close_connection(self, scope: Scope, hold: ConnectionHold) -> None:
        hold.settle()
        session = hold.session
        if hold.collected:
            if session is not None:
                session.connection_lost = True
            self._found(hold, judge(_standing(hold, Fate.COLLECTED)))
        elif _came_back(hold) or not hold.open:
            self._gone(hold)
            self._found(hold, judge(_standing(hold, Fate.RETURNED)))
        else:
            if session is not None:
                session.connection_lost = True
            self._decide(_Wait(hold, scope, loop_ref()))

    def _close_session(self, scope: Scope, hold: SessionHold, scopes: _Scopes) -> None:
        if hold.allowed is not None or not (hold.collected or hold.open):
            return
        holder_running = hold.holder is not None and hold.holder.running()
        # Of a collected one it is clear what becomes of it, and of one with a lost connection
        # there is nothing more to say.
        if hold.connection_lost or holder_running or hold.collected:
            self._judge_session(scope, hold, holder_running=holder_running, others_running=False)
        elif (loop := running_loop()) is not None and self._looks.dear:
            self._look_later_at(scope, hold)
        else:
            running = loop is not None and scope in scopes(loop)
            self._judge_session(scope, hold, holder_running=False, others_running=running)

    def _judge_session(
        self, scope: Scope, hold: SessionHold, *, holder_running: bool, others_running: bool
    ) -> None:
        standing = Standing(
            "session",
            Fate.OUT,
            holder_running=holder_running,
            others_running=others_running,
            with_connection=hold.connection_lost,
        )
        verdict = judge(standing)
        # Collected ones beyond some are forgotten: to keep them must make no difference.
        if verdict.kind is None or not _told_enough(scope, hold):
            self._found(hold, verdict)

    def _look_later_at(self, scope: Scope, hold: SessionHold) -> None:
        if len(self._later) < _LATER_LIMIT:
            look_at = self._clock() + self._late_after
            self._later.append(_Unclosed(hold, scope, loop_ref(), look_at))
            self._plan_look()

    def _plan_look(self) -> None:
        later = None if self._later_planned else next(iter(self._later.copy()), None)
        if later is not None:
            self._later_planned = True
            self._post_at(max(later.look_at, self._looks.next_at), self._look_at_sessions)

    def _look_at_sessions(self) -> None:
        """Judge the sessions whose time has come, with one look at the tasks of each loop."""
        self._later_planned = False
        self._judge_sessions(self._clock())
        self._plan_look()

    def _judge_sessions(self, now: float) -> None:
        scopes = cache(self._looks.scopes)
        while unclosed := self._take_unclosed(now):
            hold, scope, ref, _ = unclosed
            loop = None if ref is None else ref()
            others = not hold.collected and loop is not None and scope in scopes(loop)
            if hold.collected or (hold.open and not _came_back(hold)):
                holder = hold.holder is not None and hold.holder.running()
                judge_it = partial(self._judge_session, scope, hold, holder_running=holder)
                _apart(partial(judge_it, others_running=others))

    def _settle(self, wait: _Wait, scopes: _Scopes) -> None:
        # Of what is in the hands of work that runs it has been said that it outlives its scope.
        if wait.hold.collected or _running_holder(wait.hold) is None:
            wait.over = True
            self._again(wait.hold, scopes)

    def _take_unclosed(self, now: float) -> _Unclosed | None:
        """Take out the first session if its time has come; another thread may be at it, too."""
        with suppress(IndexError):
            if self._later[0].look_at <= now:
                return self._later.popleft()
        return None

    def _decide(self, wait: _Wait, scopes: _Scopes | None = None) -> None:
        """Judge a hold that was out when its scope ended, or have that done with others.

        `scopes` gives those whose tasks run, where somebody looks for all.
        """
        hold = wait.hold
        if hold.allowed is not None:  # nothing will be said of it
            return
        running = None if hold.collected else _running_holder(hold)
        settled = running is not None or hold.collected
        loop = None if settled or wait.loop is None else wait.loop()
        tasks: list[AnyTask] = []
        if loop is None:
            others = False
        elif scopes is not None:
            others = wait.scope in scopes(loop)
        elif self._looks.dear:
            self._postpone(wait)
            return
        else:
            tasks = self._looks.started(wait.scope, loop)
            others = bool(tasks)
        # Whoever constructed the session before the scope began may be around it, as an outer
        # middleware is, and be about to close it.
        expected = others or (hold.session_from_outside and not settled)
        self._give_verdict(wait, running, expected=expected)
        if hold in self._waits:
            for task in tasks:
                on_done(task, hold, self._again)

    def _postpone(self, wait: _Wait) -> None:
        """Have the hold judged after the next look at the tasks, with all that wait for it."""
        if wait.until is None:
            wait.until = self._clock() + self._late_after
        wait.postponed = True
        self._waits[wait.hold] = wait
        if not self._look_planned:
            self._look_planned = True
            self._post_at(self._looks.next_at, self._look_for_all)

    def _look_for_all(self) -> None:
        self._look_planned = False
        scopes = cache(self._looks.scopes)
        for wait in self._waits.copy().values():
            if wait.postponed:
                wait.postponed = False
                _apart(partial(self._again, wait.hold, scopes))

    def _give_verdict(self, wait: _Wait, running: Holder | None, *, expected: bool) -> None:
        """Judge by whether the holder runs, or somebody else is expected to return the hold."""
        hold = wait.hold
        hold.outlived_by = hold.outlived_by if running is None else str(running)
        now = self._clock()
        if expected and wait.until is None:
            wait.until = now + self._late_after
        waited = wait.until is not None and now >= wait.until
        if expected and waited:
            hold.waited = self._late_after
        verdict = judge(
            _standing(
                hold,
                Fate.OUT,
                holder_running=running is not None,
                others_running=expected,
                waited=waited or wait.over,
            )
        )
        if not (verdict.wait and wait.announced):
            wait.announced = True
            self._found(hold, verdict)
        if verdict.wait:
            self._wait(wait)

    def _wait(self, wait: _Wait) -> None:
        """Have the hold judged again when the work that may return it has ended."""
        hold = wait.hold
        self._waits[hold] = wait
        when = self._clock() + wait.pause if wait.until is None else wait.until
        if wait.look_at is None or when < wait.look_at:
            wait.look_at = when
            self._post_at(when, partial(self._look, wait))
        for holder in hold.holders:
            holder.on_end(hold, self._again)

    def _look(self, wait: _Wait) -> None:
        wait.look_at = None
        wait.pause = min(2 * wait.pause, _LONGEST_PAUSE)
        self._again(wait.hold)

    def _again(self, hold: Hold, scopes: _Scopes | None = None) -> None:
        # Taking it out is atomic: where the loop and the watch come at once, one of them decides.
        wait = self._waits.pop(hold, None)
        if wait is None or _came_back(hold):
            return
        if hold.collected or hold.open:
            self._decide(wait, scopes)
        else:
            self._gone(hold)


def _apart(decide: Callable[[], None]) -> None:
    """Decide on one hold; a fault in it takes no other hold's verdict with it."""
    try:
        decide()
    except Exception as error:  # noqa: BLE001  (the other holds' verdicts are due all the same)
        FAULTS.report("leakguard's judge", error, "A verdict is lost. Please report it.")


def _told_enough(scope: Scope, session: SessionHold) -> bool:
    tally = scope.sessions_unclosed = scope.sessions_unclosed or Tally()
    return tally.too_many(session)


def _running_holder(hold: ConnectionHold) -> Holder | None:
    return next((holder for holder in hold.holders if holder.running()), None)


def _came_back(hold: Hold) -> bool:
    return hold.released_monotonic is not None and not hold.collected


def _take_all(scope: Scope) -> list[Hold]:
    """Take the holds out of the scope, each unless somebody returns it at this moment."""
    holds = list(scope.open_holds.copy())
    return [hold for hold in holds if scope.take_out(hold)]


def _standing(
    hold: ConnectionHold,
    fate: Fate,
    *,
    holder_running: bool = False,
    others_running: bool = False,
    waited: bool = False,
) -> Standing:
    return Standing(
        "connection",
        fate,
        holder_running=holder_running,
        others_running=others_running,
        waited=waited,
        late=hold.late_by is not None,
        nested=hold.nested,
        sync_in_async=hold.sync_in_async,
    )
