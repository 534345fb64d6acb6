"""The judge of sessions: decides on those that were open when their scope ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from leakguard.core.faults import apart
from leakguard.core.scope import Scope, Tally
from leakguard.core.tasks import LoopRef, loop_ref, running_loop
from leakguard.core.verdict import Verdict, verdict_on_session

if TYPE_CHECKING:
    from leakguard.core.hold import SessionHold
    from leakguard.core.task_scan import Scopes, TaskScan

_LIMIT: Final = 10_000
"""How many sessions are judged later, at most; of those beyond that nothing is said."""


class _Unclosed(NamedTuple):
    """A session that was open when its scope ended, and that somebody may yet close."""

    hold: SessionHold
    scope: Scope
    loop: LoopRef | None
    check_at: float
    """When there has been time enough to close it, by the judge's clock."""


class SessionJudge:
    """Decides on the sessions of a guard's scopes, after the connections of the same scope."""

    def __init__(
        self,
        late_after: float,
        found: Callable[[SessionHold, Verdict], None],
        task_scan: TaskScan,
        post_at: Callable[[float, Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        self._late_after = late_after
        self._found = found
        self._task_scan = task_scan
        self._post_at = post_at
        self._clock = clock
        self._later: deque[_Unclosed] = deque()
        self._check_planned = False
        """Whether there will be a check of the sessions that are judged later."""

    def close(self, scope: Scope, hold: SessionHold, scopes: Scopes) -> None:
        """Decide on one that its scope had when it ended, or do so later, with others."""
        if hold.allowed is not None or not (hold.collected or hold.open):
            return
        holder_running = hold.holder is not None and hold.holder.running()
        # Of a collected one it is clear what becomes of it, and of one with a lost connection
        # there is nothing more to say.
        if hold.connection_lost or holder_running or hold.collected:
            self._judge(scope, hold, holder_running=holder_running, others_running=False)
        elif scope.handled_outside:
            self._judge(scope, hold, holder_running=False, others_running=True)
        elif (loop := running_loop()) is not None and self._task_scan.expensive:
            self._defer(scope, hold)
        else:
            running = loop is not None and scope in scopes(loop)
            self._judge(scope, hold, holder_running=False, others_running=running)

    def judge_pending(self) -> None:
        """Decide at once on those that are judged later."""
        apart(partial(self._judge_due, inf))

    def forget(self) -> None:
        """Judge none later."""
        self._later.clear()
        self._check_planned = False  # as the watch may have gone that would have had it done

    def _judge(
        self, scope: Scope, hold: SessionHold, *, holder_running: bool, others_running: bool
    ) -> None:
        verdict = verdict_on_session(
            holder_running=holder_running,
            others_running=others_running,
            with_connection=hold.connection_lost,
        )
        # Collected ones beyond some are forgotten: to keep them must make no difference.
        if verdict.kind is None or not _told_enough(scope, hold):
            self._found(hold, verdict)

    def _defer(self, scope: Scope, hold: SessionHold) -> None:
        if len(self._later) < _LIMIT:
            check_at = self._clock() + self._late_after
            self._later.append(_Unclosed(hold, scope, loop_ref(), check_at))
            self._plan_check()

    def _plan_check(self) -> None:
        later = None if self._check_planned else next(iter(self._later.copy()), None)
        if later is not None:
            self._check_planned = True
            self._post_at(max(later.check_at, self._task_scan.next_at), self._check)

    def _check(self) -> None:
        """Judge the sessions whose time has come, with one scan of the tasks of each loop."""
        self._check_planned = False
        self._judge_due(self._clock())
        self._plan_check()

    def _judge_due(self, now: float) -> None:
        scopes = self._task_scan.shared()
        while unclosed := self._take_due(now):
            hold, scope, ref, _ = unclosed
            loop = None if ref is None else ref()
            others = not hold.collected and loop is not None and scope in scopes(loop)
            if hold.collected or (hold.open and not hold.came_back):
                holder = hold.holder is not None and hold.holder.running()
                judge_it = partial(self._judge, scope, hold, holder_running=holder)
                apart(partial(judge_it, others_running=others))

    def _take_due(self, now: float) -> _Unclosed | None:
        """Take out the first session if its time has come; another thread may be at it, too."""
        with suppress(IndexError):
            if self._later[0].check_at <= now:
                return self._later.popleft()
        return None


def _told_enough(scope: Scope, session: SessionHold) -> bool:
    tally = scope.sessions_unclosed = scope.sessions_unclosed or Tally()
    return tally.too_many(session)
