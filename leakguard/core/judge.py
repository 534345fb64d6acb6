"""The judge: applies the verdicts when a scope ends, and again when what it waited for ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from leakguard.core.clock import monotonic
from leakguard.core.endings import on_done
from leakguard.core.faults import apart
from leakguard.core.hold import ConnectionHold, SessionHold
from leakguard.core.session_judge import SessionJudge
from leakguard.core.task_scan import TaskScan
from leakguard.core.tasks import AnyTask, LoopRef, loop_ref, may_run, runs_elsewhere
from leakguard.core.verdict import Fate, Standing, Verdict, verdict_on
from leakguard.core.watch import WATCH

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from leakguard.core.hold import Hold
    from leakguard.core.holder import Holder
    from leakguard.core.scope import Scope
    from leakguard.core.task_scan import Scopes

_RECHECK_AFTER: Final = 1.0
"""Seconds until the first check of work whose end might pass unnoticed, as a thread's or a closed
loop's. From one check to the next it is twice as long."""
_LONGEST_PAUSE: Final = 60.0
"""Seconds between two such checks at most."""


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
    until_planned: bool = False
    """Whether it will be judged then."""
    over: bool = False
    """Whether nothing is waited for any more, whatever the clock says."""
    check_at: float | None = None
    """When work whose end might pass unnoticed is checked next, by the judge's clock."""
    postponed: bool = False
    """Whether it waits for the next scan of the tasks, which is for all who wait for it."""
    pause: float = _RECHECK_AFTER
    """Seconds until the check after that one."""


class Judge:
    """Decides on the holds of a guard's scopes.

    Each hold leads to one error at most. One in the hands of work that runs is judged again.
    """

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
        self.waits: dict[Hold, _Wait] = {}
        """What was out when its scope ended, and may yet be returned."""
        self._task_scan = TaskScan(clock)
        self._sessions = SessionJudge(late_after, found, self._task_scan, post_at, clock)
        self._scan_planned = False
        """Whether there will be a scan for those that are postponed."""
        self._round_at = inf
        """When there will be a check of the work whose end might pass unnoticed."""

    def close(self, scope: Scope) -> None:
        """Judge everything that `scope` still has; it has been marked closed."""
        holds = scope.take_all_out()
        for hold in holds:
            if isinstance(hold, ConnectionHold):
                apart(partial(self._close_connection, scope, hold))
        self.tell_notable(scope)
        # Last, because it depends on what became of their connections.
        scopes = self._task_scan.shared()
        for hold in holds:
            if isinstance(hold, SessionHold):
                apart(partial(self._sessions.close, scope, hold, scopes))

    def tell_notable(self, scope: Scope) -> None:
        """Tell what there is to say about connections of the scope that are out no more."""
        with suppress(IndexError):  # another thread may be at it, too
            while scope.notable:
                apart(partial(self._judge_gone, scope.notable.popleft()))

    def stop_waiting(self, hold: Hold) -> None:
        """Wait for a hold no more: it has come back, or belongs to another scope now."""
        self.waits.pop(hold, None)

    def outlived(self, scope: Scope, hold: ConnectionHold) -> None:
        """Follow a hold that was acquired by work that outlived its scope.

        It was not out when the scope ended, so there is nothing to say unless it is lost.
        """
        wait = _Wait(hold, scope, loop_ref(), announced=True)
        if hold.holder is None or hold.allowed is not None:
            self._decide(wait)
        else:  # who has acquired it at this moment runs
            hold.outlived_by = str(hold.holder)
            self._wait(wait)

    def collected(self, hold: ConnectionHold) -> None:
        """Decide on a hold that the garbage collector took while it was waited for."""
        self._again(hold)

    @property
    def undecided(self) -> bool:
        """Whether a verdict waits for other work of its scope, which goes on in another thread."""
        return any(
            wait.until is not None and not wait.hold.parked and runs_elsewhere(_loops(wait))
            for wait in self.waits.copy().values()
        )

    def judge_pending(self) -> None:
        """Judge at once what is waited for, as after the wait: nobody will be there by then.

        But for what is parked: its work goes on.
        """
        scopes = self._task_scan.shared()
        for wait in self.waits.copy().values():
            if not wait.hold.parked:
                apart(partial(self._judge_wait, wait, scopes))
        self._sessions.judge_pending()

    def forget(self) -> None:
        """Wait for nothing any more."""
        self.waits.clear()
        # The watch of whoever planned it may have gone, with the last guard or at a fork.
        self._scan_planned, self._round_at = False, inf
        self._sessions.forget()

    def _close_connection(self, scope: Scope, hold: ConnectionHold) -> None:
        hold.find_session()
        session = hold.session
        if hold.collected:
            self._judge_gone(hold)
        elif hold.came_back or not hold.open:
            self._gone(hold)
            self._judge_gone(hold)
        elif not (hold.ambiguous or _is_handed_on(hold)):
            if session is not None:
                session.connection_lost = True
            self._decide(_Wait(hold, hold.scope or scope, loop_ref()))

    def _judge_gone(self, hold: ConnectionHold) -> None:
        if hold.collected and hold.session is not None:
            hold.session.connection_lost = True
        fate = Fate.COLLECTED if hold.collected else Fate.RETURNED
        self._found(hold, verdict_on(_standing(hold, fate)))

    def _judge_wait(self, wait: _Wait, scopes: Scopes) -> None:
        # Of what is in the hands of work that runs it has been said that it outlives its scope.
        if wait.hold.collected or _running_holder(wait.hold) is None:
            wait.over = True
            self._again(wait.hold, scopes)

    def _decide(self, wait: _Wait, scopes: Scopes | None = None) -> None:
        """Judge a hold that was out when its scope ended, or have that done with others.

        `scopes` gives those whose tasks run, where one scan is for all.
        """
        hold = wait.hold
        if hold.allowed is not None:  # nothing will be said of it
            return
        running = None if hold.collected else _running_holder(hold)
        settled = running is not None or hold.collected
        loops = () if settled else _loops(wait)
        tasks: list[AnyTask] = []
        if not loops:
            others = False
        elif scopes is not None:
            others = any(wait.scope in scopes(loop) for loop in loops)
        elif self._task_scan.expensive:
            self._postpone(wait)
            return
        else:
            tasks = [task for loop in loops for task in self._task_scan.started(wait.scope, loop)]
            others = bool(tasks)
        # Whoever constructed the session before the scope began may be around it, as an outer
        # middleware is, and be about to close it; so may the handler of the scope's exception.
        outside = hold.session_from_outside or wait.scope.handled_outside
        expected = others or hold.parked or (outside and not settled)
        self._give_verdict(wait, running, expected=expected)
        if hold in self.waits:
            for task in tasks:
                on_done(task, hold, self._again)

    def _postpone(self, wait: _Wait) -> None:
        """Have the hold judged after the next scan of the tasks, with all that wait for it."""
        if wait.until is None:
            wait.until = self._clock() + self._late_after
        wait.postponed = True
        self.waits[wait.hold] = wait
        if not self._scan_planned:
            self._scan_planned = True
            self._post_at(self._task_scan.next_at, self._judge_postponed)

    def _judge_postponed(self) -> None:
        self._scan_planned = False
        scopes = self._task_scan.shared()
        for wait in self.waits.copy().values():
            if wait.postponed:
                wait.postponed = False
                apart(partial(self._again, wait.hold, scopes))

    def _give_verdict(self, wait: _Wait, running: Holder | None, *, expected: bool) -> None:
        """Judge by whether the holder runs, or somebody else is expected to return the hold."""
        hold = wait.hold
        hold.outlived_by = hold.outlived_by if running is None else str(running)
        now = self._clock()
        if expected and wait.until is None:
            wait.until = now + self._late_after
        waited = wait.until is not None and now >= wait.until and not hold.parked
        if expected and waited:
            hold.waited_for_return = self._late_after
        verdict = verdict_on(
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
        self.waits[hold] = wait
        if wait.until is None or wait.until <= self._clock():
            self._check_now_and_then(wait)
        elif not wait.until_planned:
            wait.until_planned = True
            self._post_at(wait.until, partial(self._again, hold))
        for holder in hold.holders:
            holder.on_end(hold, self._again)

    def _check_now_and_then(self, wait: _Wait) -> None:
        if wait.check_at is None:
            wait.check_at = self._clock() + wait.pause
            self._plan_round(wait.check_at)

    def _plan_round(self, when: float) -> None:
        # One for all: work that outlives its scope may take connections many times a second.
        if when < self._round_at:
            self._round_at = when
            self._post_at(when, self._check_all)

    def _check_all(self) -> None:
        now = self._clock()
        for wait in self.waits.copy().values():
            if wait.check_at is not None and wait.check_at <= now:
                apart(partial(self._recheck, wait))
        self._round_at = inf
        waits = self.waits.copy().values()
        times = [wait.check_at for wait in waits if wait.check_at is not None]
        if times:
            self._plan_round(max(min(times), now + _RECHECK_AFTER))

    def _recheck(self, wait: _Wait) -> None:
        wait.check_at = None
        wait.pause = min(2 * wait.pause, _LONGEST_PAUSE)
        self._again(wait.hold)

    def _again(self, hold: Hold, scopes: Scopes | None = None) -> None:
        # Taking it out is atomic: where the loop and the watch come at once, one of them decides.
        wait = self.waits.pop(hold, None)
        if wait is None or hold.came_back:
            return
        if hold.collected or hold.open:
            self._decide(wait, scopes)
        else:
            self._gone(hold)


def _is_handed_on(hold: ConnectionHold) -> bool:
    """Leave a connection to the scope of the session that has it by now; `True` if that goes on.

    Where several sessions share one, as in a `SingletonThreadPool`, that may be another request's.
    """
    session = hold.session
    if not hold.shared or session is None or session.guard is not hold.guard:
        return False
    scope = session.scope
    if scope is None:
        return False
    if scope.closed_at is None:
        hold.guard.hand_over(hold, hold.guard, scope)
        return True
    hold.scope = scope
    return False


def _loops(wait: _Wait) -> tuple[AbstractEventLoop, ...]:
    """Return the loops on which tasks of the scope may be about to give the hold back."""
    loops = [None if wait.loop is None else wait.loop()]
    loops += [holder.loop for holder in wait.hold.holders]
    return tuple({loop for loop in loops if loop is not None and may_run(loop)})


def _running_holder(hold: ConnectionHold) -> Holder | None:
    return next((holder for holder in hold.holders if holder.running()), None)


def _standing(
    hold: ConnectionHold,
    fate: Fate,
    *,
    holder_running: bool = False,
    others_running: bool = False,
    waited: bool = False,
) -> Standing:
    return Standing(
        fate,
        holder_running=holder_running,
        others_running=others_running,
        waited=waited,
        late=hold.late_by is not None,
        nested=hold.nested,
        sync_in_async=hold.sync_in_async,
    )
