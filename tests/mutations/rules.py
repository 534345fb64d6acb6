"""The rules, and a change to the code that breaks each."""

from __future__ import annotations

from typing import Final, NamedTuple


class Mutation(NamedTuple):
    """A change to one place in the code that breaks a rule."""

    breaks: str
    """What the broken program does."""
    file: str
    """The module, below `leakguard/`."""
    code: str
    """The code that follows the rule. It is there once."""
    broken: str
    """What stands in its place."""


_VERDICT: Final = "core/verdict.py"
_JUDGE: Final = "core/judge.py"
_SESSION_JUDGE: Final = "core/session_judge.py"
_HELD_JUDGE: Final = "core/held_judge.py"
_ANNOUNCER: Final = "core/announcer.py"
_GUARD: Final = "core/guard.py"
_REGISTER: Final = "core/register.py"
_SCOPE: Final = "core/scope.py"
_HOLD: Final = "core/hold.py"
_HOLDER: Final = "core/holder.py"
_REQUEST: Final = "sources/request.py"
_GUARDS: Final = "sources/sqlalchemy/guards.py"
_CHECKOUT: Final = "sources/sqlalchemy/checkout.py"
_CHECKOUTS: Final = "sources/sqlalchemy/checkouts.py"
_SESSIONS: Final = "sources/sqlalchemy/sessions.py"
_WAITS: Final = "sources/sqlalchemy/waits.py"

MUTATIONS: Final = (
    # --- when the verdict falls, and for whom it waits --------------------------------------------
    Mutation(
        "judges at the last byte of the response",
        _REQUEST,
        "self.responded_at = monotonic()",
        "self.responded_at = monotonic(); self.guard.close_scope(self)",
    ),
    Mutation(
        "does not see that the one who took it still runs",
        _JUDGE,
        "running = None if hold.collected else _running_holder(hold)",
        "running = None",
    ),
    Mutation(
        "does not see the other tasks of the scope",
        _JUDGE,
        "others = bool(tasks)",
        "others = False",
    ),
    Mutation(
        "does not see them where there are many tasks",
        _JUDGE,
        "others = any(wait.scope in scopes(loop) for loop in loops)",
        "others = False",
    ),
    Mutation(
        "waits for other tasks without end",
        _VERDICT,
        "if standing.others_running and not standing.waited:",
        "if standing.others_running:",
    ),
    Mutation(
        "does not wait for other tasks",
        _VERDICT,
        "if standing.others_running and not standing.waited:",
        "if False:",
    ),
    Mutation(
        "does not wait for who made the session outside of the scope",
        _JUDGE,
        "outside = hold.session_from_outside or wait.scope.handled_outside",
        "outside = wait.scope.handled_outside",
    ),
    Mutation(
        "does not wait for the handler of every exception",
        _JUDGE,
        "outside = hold.session_from_outside or wait.scope.handled_outside",
        "outside = hold.session_from_outside",
    ),
    Mutation(
        "never judges again what outlived its scope",
        _VERDICT,
        "_named(FindingKind.OUTLIVES_SCOPE, standing, wait=True)",
        "_named(FindingKind.OUTLIVES_SCOPE, standing)",
    ),
    Mutation(
        "calls it leaked where it merely outlives its scope",
        _VERDICT,
        "_named(FindingKind.OUTLIVES_SCOPE, standing, wait=True)",
        "_named(FindingKind.LEAKED, standing, wait=True)",
    ),
    Mutation(
        "does not follow what is taken after the end of the scope",
        _GUARD,
        "self._judge.outlived(scope, hold)",
        "pass",
    ),
    Mutation(
        "takes a thread for running as long as its context is kept",
        _HOLDER,
        "if is_on_stack(self.frame, self.code, thread_stack(self.number)):",
        "if True:",
    ),
    Mutation(
        "takes a thread for ended while it runs",
        _HOLDER,
        "if is_on_stack(self.frame, self.code, thread_stack(self.number)):",
        "if False:",
    ),
    Mutation(
        "does not count the constructor of the session among those who may give it back",
        _HOLD,
        "for hold in (self, self.session):",
        "for hold in (self,):",
    ),
    # --- whether a connection is out --------------------------------------------------------------
    Mutation(
        "goes by events only: the proxy is not asked",
        _CHECKOUT,
        "return proxy.is_valid",
        "return self.released_monotonic is None",
    ),
    Mutation(
        "does not hear of the collector",
        _CHECKOUTS,
        "weakref.ref(proxy, partial(self._proxy_gone, number))",
        "weakref.ref(proxy)",
    ),
    Mutation(
        "takes a collected connection for one that was given back",
        _GUARD,
        "hold.collected = True  #",
        "hold.collected = False  #",
    ),
    Mutation(
        "tells the checkouts of a shared connection apart by the entry of the pool",
        _CHECKOUTS,
        "if facts.shares:  # the record does not tell which of them is meant",
        "if False:",
    ),
    Mutation(
        "ends any checkout of a shared connection instead of the one that is closed",
        _CHECKOUTS,
        "if record is None:  # a detached one\n            return\n"
        "        try:\n            hold = self._handled_by_caller()",
        "if record is None:\n            return\n"
        "        try:\n            hold = next(iter(self._of_shared(id(record))), None)",
    ),
    Mutation(
        "takes a second checkout event for a second checkout",
        _CHECKOUTS,
        "if known is not None:  # of this proxy: an entry goes before its number is free",
        "if False:",
    ),
    Mutation(
        "does not see that a shared connection is invalidated",
        _CHECKOUTS,
        "for hold in self._of_shared(id(record)):\n            self._came_back(hold)",
        "pass",
    ),
    Mutation(
        "forgets a connection that is detached",
        _CHECKOUTS,
        "if hold is not None and not hold.collected:\n                self.end_of_detached.place()",
        "if False:\n                self.end_of_detached.place()",
    ),
    Mutation(
        "does not see that a detached connection is closed",
        _CHECKOUTS,
        "if left_its_pool:",
        "if False:",
    ),
    Mutation(
        "only lets the work that took a connection give it back",
        _CHECKOUTS,
        "if hold is not None and not hold.collected:\n            self._came_back(hold)",
        "if hold is not None and not hold.collected and (\n"
        "            str(current_holder(hold.scope)) == str(hold.holder)\n"
        "        ):\n            self._came_back(hold)",
    ),
    # --- one mistake, one finding -----------------------------------------------------------------
    Mutation(
        "makes a second finding of a leak that is collected later",
        _GUARD,
        "self._judge.collected(hold)",
        "self._announcer.found(hold, Verdict(FindingKind.RECLAIMED))",
    ),
    Mutation(
        "depends on when the collector runs: what it takes while others are waited for is clean",
        _JUDGE,
        "if wait is None or hold.came_back:",
        "if wait is None or hold.released_monotonic is not None:",
    ),
    Mutation(
        "calls it leaked what the collector took before the end of the scope",
        _VERDICT,
        "return _named(FindingKind.RECLAIMED, standing)",
        "return _named(FindingKind.LEAKED, standing)",
    ),
    Mutation(
        "says nothing of what the collector took outside of any scope",
        _GUARD,
        "self._announcer.found(hold, Verdict(FindingKind.RECLAIMED))",
        "pass",
    ),
    Mutation(
        "does not call a leak resolved that comes back",
        _GUARD,
        "if self._unresolved and hold in self._unresolved:",
        "if False:",
    ),
    Mutation(
        "does not call a leak resolved that is collected",
        _GUARD,
        "if hold in self._unresolved:\n            self._announcer.resolve(hold)\n"
        "        self.observers",
        "self.observers",
    ),
    Mutation(
        "names the finding by the least severe kind",
        _VERDICT,
        "Verdict(fitting[0], tuple(fitting[1:]), wait)",
        "Verdict(fitting[-1], tuple(fitting[:-1]), wait)",
    ),
    Mutation(
        "reports the session of a leaked connection, too",
        _JUDGE,
        "if session is not None:\n                session.connection_lost = True",
        "pass",
    ),
    Mutation(
        "reports the session of a collected connection, too",
        _JUDGE,
        "if hold.collected and hold.session is not None:\n"
        "            hold.session.connection_lost = True",
        "pass",
    ),
    Mutation(
        "reports that a closed session is used again",
        _SESSIONS,
        "hold.taken_after_close = True",
        "hold.taken_after_close = hold.sync_in_async = True",
    ),
    Mutation(
        "tells every guard of a leak",
        _CHECKOUTS,
        "        guard.checked_out(hold)\n",
        "        for one in self._guards.all():\n            one.checked_out(hold)\n",
    ),
    # --- whose it is ------------------------------------------------------------------------------
    Mutation(
        "guesses the scope of what is taken outside of any",
        _GUARDS,
        "if self.watches(guard, pool):\n                return guard, None",
        "if self.watches(guard, pool):\n"
        "                open_ones = (hold.scope for hold in guard.open_holds())\n"
        "                return guard, next((one for one in open_ones if one), None)",
    ),
    Mutation(
        "gives everything to the outermost scope",
        _GUARDS,
        "            return scope.guard, scope\n        scope = _at_work(scope)\n",
        "            while scope.parent is not None:\n                scope = scope.parent\n",
    ),
    Mutation(
        "does not know the scope of a run of tests",
        _GUARDS,
        "return AMBIENT.scope if scope is None else scope",
        "return scope",
    ),
    Mutation(
        "gives what is taken between two steps of a generator to the scope within it",
        _GUARDS,
        "while scope is not None and scope.iterated and _is_suspended(scope):",
        "while False:",
    ),
    Mutation(
        "loses which session took a connection",
        _SESSIONS,
        "        hold.session = session_hold\n",
        "",
    ),
    Mutation(
        "makes a session answer for a connection that was handed to it",
        _SESSIONS,
        "if hold is None or _was_handed(connection, transaction):",
        "if hold is None:",
    ),
    Mutation(
        "leaves a connection with the scope of its checkout, not of its session",
        _SESSIONS,
        "if scope is not None and scope is not hold.scope and scope.closed_at is None:",
        "if False:",
    ),
    Mutation(
        "gives it to the scope of its session although that has ended",
        _SESSIONS,
        "if scope is not None and scope is not hold.scope and scope.closed_at is None:",
        "if scope is not None and scope is not hold.scope:",
    ),
    # --- notices ----------------------------------------------------------------------------------
    Mutation(
        "calls every return after the response late",
        _GUARD,
        "late = responded_at is not None and now - responded_at > self.settings.late_after",
        "late = responded_at is not None",
    ),
    Mutation(
        "calls it late what was taken after the response",
        _GUARD,
        "late = late and hold.acquired_monotonic < responded_at",
        "pass",
    ),
    Mutation(
        "takes connections of two pools for nested",
        _CHECKOUT,
        "            and other.facts is self.facts\n",
        "",
    ),
    Mutation(
        "takes two checkouts of one shared connection for nested",
        _CHECKOUT,
        "if self.facts.shares or not self.facts.waits:",
        "if not self.facts.waits:",
    ),
    Mutation(
        "takes two connections of a pool that never waits for nested",
        _CHECKOUT,
        "if self.facts.shares or not self.facts.waits:",
        "if self.facts.shares:",
    ),
    Mutation(
        "calls the checkouts of async drivers synchronous",
        _CHECKOUTS,
        "hold.sync_in_async = not facts.is_async and running_loop() is not None",
        "hold.sync_in_async = running_loop() is not None",
    ),
    Mutation(
        "calls a session unclosed although the work that made it runs",
        _VERDICT,
        "if with_connection or holder_running or others_running:",
        "if with_connection or others_running:",
    ),
    Mutation(
        "calls a session unclosed although others may close it",
        _VERDICT,
        "if with_connection or holder_running or others_running:",
        "if with_connection or holder_running:",
    ),
    Mutation(
        "reports without end the sessions of one line that nobody closed",
        _SCOPE,
        "return count > self.LIMIT",
        "return False",
    ),
    Mutation(
        "does not take a reset session for closed",
        _SESSIONS,
        "if hold.released_monotonic is None:\n",
        'if hold.released_monotonic is None and not (resets or kwargs.get("is_reset")):\n',
    ),
    # --- exemptions -------------------------------------------------------------------------------
    Mutation(
        "does not heed allow()",
        _HOLD,
        "return block.reason if scope is None or block is not scope.foreign_block else None",
        "return None",
    ),
    Mutation(
        "heeds the allow() of another request",
        _HOLD,
        "return block.reason if scope is None or block is not scope.foreign_block else None",
        "return block.reason",
    ),
    Mutation(
        "does not heed an allow() around the session",
        _SESSIONS,
        "if session_hold.allowed is not None:",
        "if False:",
    ),
    Mutation(
        "does not ask the predicates of ignore",
        _REGISTER,
        "if predicate(finding):\n                    return True",
        "predicate(finding)",
    ),
    # --- held -------------------------------------------------------------------------------------
    Mutation(
        "takes a connection with a long statement for idle",
        _HELD_JUDGE,
        "if hold.executing:",
        "if False:",
    ),
    Mutation(
        "takes a connection in a commit for idle",
        _HELD_JUDGE,
        "elif any(map(hold.occupied_by, stacks)):",
        "elif False:",
    ),
    Mutation(
        "takes a connection for idle that another thread works on",
        _HELD_JUDGE,
        "if not hold.tells_idleness or hold.used_elsewhere(workers):",
        "if not hold.tells_idleness:",
    ),
    Mutation(
        "takes a connection for idle whose use cannot be seen",
        _HELD_JUDGE,
        "if not hold.tells_idleness or hold.used_elsewhere(workers):",
        "if hold.used_elsewhere(workers):",
    ),
    Mutation(
        "calls it held before held_after",
        _HELD_JUDGE,
        "elif idle >= self._held_after:",
        "else:",
    ),
    Mutation(
        "calls it held at every look",
        _HELD_JUDGE,
        "hold.held_reported = True",
        "pass",
    ),
    Mutation(
        "calls it held although its scope has ended",
        _HELD_JUDGE,
        "return ended is None or hold.acquired_monotonic > ended",
        "return True",
    ),
    Mutation(
        "says nothing of what is held by work that outlives its scope",
        _HELD_JUDGE,
        "return ended is None or hold.acquired_monotonic > ended",
        "return ended is None",
    ),
    Mutation(
        "calls it held what allow() exempts",
        _HELD_JUDGE,
        "hold.lifelong or hold.allowed is not None",
        "hold.lifelong",
    ),
    Mutation(
        "calls it held what the application keeps for its whole life",
        _CHECKOUTS,
        "hold.lifelong = in_lifespan()",
        "pass",
    ),
    # --- the exhausted pool, and what is noted for the diagnosis ----------------------------------
    Mutation(
        "adds nothing to the error of a checkout that timed out",
        _WAITS,
        "error.add_note(str(finding))",
        "pass",
    ),
    Mutation(
        "tells no observer of a checkout that timed out",
        _ANNOUNCER,
        "if told:",
        "if False:",
    ),
    Mutation(
        "takes a client that goes away for nothing",
        _REQUEST,
        "self.cancelled = True",
        "pass",
    ),
    Mutation(
        "does not note the exception that ended a scope",
        _SCOPE,
        "self.exception = type(error).__name__",
        "pass",
    ),
)
