"""The guard: what sources see goes in, findings for observers come out."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, Self

from leakguard.core.announcer import Announcer
from leakguard.core.block import ScopeBlock
from leakguard.core.clock import monotonic
from leakguard.core.collector import COLLECTOR
from leakguard.core.faults import FAULTS, LOGGER
from leakguard.core.finding import FindingKind
from leakguard.core.held_judge import HeldJudge
from leakguard.core.hold import ConnectionHold, Hold, take_out
from leakguard.core.judge import Judge
from leakguard.core.lock import LOCK
from leakguard.core.observer import Observers, tell_nobody
from leakguard.core.process import EVERYWHERE, INSTALLED
from leakguard.core.register import Register
from leakguard.core.scope import Scope, Tally, current_scope, nearest_open
from leakguard.core.settings import Mode
from leakguard.core.signals import handle_signal
from leakguard.core.table import OpenHolds, headed
from leakguard.core.verdict import Verdict
from leakguard.core.watch import WATCH
from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leakguard.core.exhaustion import Exhaustion
    from leakguard.core.finding import Finding
    from leakguard.core.observer import Observer
    from leakguard.core.settings import Settings
    from leakguard.core.source import Source


class Guard:
    """What does the work of a `LeakGuard`, whose docstrings say what users may count on.

    Sources call `acquired`, `released` and `collected`, and open and close its scopes.
    """

    def __init__(
        self, settings: Settings, observers: Iterable[Observer], sources: Iterable[Source]
    ) -> None:
        self.settings = settings
        self.installed = False
        self.installed_at = inf
        """When it began to watch, by `time.monotonic()`; what is older is not known to it."""
        self.watches_all = False
        """Whether it is installed, and watches every engine."""
        self.follows_statements = settings.follow_statements
        """Whether it wants to know of statements; looked up at each, unlike the other settings."""
        self._warns_uninstalled = settings.mode is not Mode.OFF
        self._blocks = 0
        """How many `with` blocks of the guard are open."""
        self._was_installed = False
        """Whether it was installed before the first of them."""
        self.observers = Observers(observers, FAULTS)
        self._sources = tuple(sources)
        register = Register(settings.ignore, FAULTS)
        self._announcer = Announcer(register, self.observers, FAULTS)
        found = self._announcer.found
        self._judge = Judge(settings.late_after, found, self.released)
        self._open: dict[Hold, None] = {}
        held_after = settings.held_after
        self._held = None if held_after is None else HeldJudge(held_after, self._open.copy, found)
        self._unresolved = self._announcer.unresolved  # looked up at every return

    def install(self) -> Self:
        """Begin to watch. Does nothing where it is installed, or where the mode is "off"."""
        # The watch may be taking out the guard of a middleware that is gone.
        with LOCK:
            if not self.installed and self.settings.mode is not Mode.OFF:
                for source in self._sources:
                    source.attach(self)
                self.installed = True
                self.installed_at = monotonic()
                self.watches_all = self.settings.engines is None
                self._warns_uninstalled = False
                for observer in EVERYWHERE:
                    self.observers.add(observer)
                INSTALLED.add(self)
                COLLECTOR.add_user()
                WATCH.add_user()
        return self

    def uninstall(self) -> None:
        """Stop watching and forget every open hold. Does nothing where it is not installed."""
        self._hear_collected()
        if self._stop(_detach):
            self.observers.uninstalled(self)

    def abandon(self) -> None:
        """Stop watching beside requests that go on: nobody who has the guard is left.

        What the sources put into their libraries does nothing from then on, and is taken out
        when the next guard is uninstalled.
        """
        self._hear_collected()
        if self._stop(_dismiss):
            self.observers.uninstalled(self)

    def _stop(self, leave: Callable[[Source, Guard], None]) -> bool:
        """Return whether it was installed until now; observers are told without the lock."""
        with LOCK:
            installed, self.installed = self.installed, False
            self.installed_at, self.watches_all = inf, False
            if installed:
                INSTALLED.discard(self)
                for source in reversed(self._sources):
                    leave(source, self)
                self.forget()  # after that: until then a thread may take one more
                for observer in EVERYWHERE:
                    self.observers.remove(observer)
                COLLECTOR.remove_user()
                WATCH.remove_user()
        return installed

    def judge_pending(self) -> None:
        """Say what there is to say: nobody is left who could give a hold back."""
        self._hear_collected()
        self._judge.judge_pending()

    @property
    def undecided(self) -> bool:
        """Whether a verdict waits for work of another thread, for `late_after` seconds at most."""
        return self._judge.undecided

    def _hear_collected(self) -> None:
        for hold in self._open.copy():
            if hold.collected:  # and the watch has yet to hear of it
                self._after_collection(hold)

    def forget(self) -> None:
        """Forget every open hold, and every finding that is not resolved."""
        self._judge.forget()
        if self._held is not None:
            self._held.forget()
        self._forget_open()
        self._announcer.forget()

    def __enter__(self) -> Self:
        with LOCK:
            if self._blocks == 0:
                self._was_installed = self.installed
            self._blocks += 1
            return self.install()

    def __exit__(self, *_: object) -> None:
        if self._blocks == 1 and not self._was_installed:
            self._hear_collected()
        with LOCK:
            self._blocks -= 1
            # An application that has the same guard goes on to be watched.
            last = self._blocks == 0 and not self._was_installed
            stopped = last and self._stop(_detach)
        if stopped:
            self.observers.uninstalled(self)

    def open_holds(self) -> OpenHolds:
        """Return a snapshot of every open hold, oldest first."""
        for hold in self._open.copy():
            if not hold.collected and not hold.open:
                self.released(hold)
            hold.find_session()
        return OpenHolds(hold for hold in self._open.copy() if not hold.collected)

    def log_on_signal(self, signalnum: int) -> None:
        """Write the table of open holds to the log whenever a signal comes."""
        handle_signal(signalnum, self._log_open_holds)

    def _log_open_holds(self) -> None:
        if not self.installed:  # the handler stays
            return
        # Not where the signal comes, which may be in the middle of a logging handler.
        WATCH.start()
        WATCH.post(lambda: LOGGER.warning("%s", headed(self.open_holds())))

    def has(self, hold: Hold) -> bool:
        """Return whether a hold is among the open ones, as far as events told."""
        return hold in self._open

    def scope(self, name: str, type: str = "job") -> ScopeBlock:  # noqa: A002  (the field's name for it)
        """Open a scope by hand; the block's value is the scope."""
        for setting, value in (("name", name), ("type", type)):
            if not isinstance(value, str) or not value:
                raise SettingsError(setting, value, "must be a string of at least one character")
        if self._warns_uninstalled:
            self._warns_uninstalled = False  # once
            LOGGER.warning(
                "scope %r is opened, but its guard was never installed, so that nothing is "
                "watched: call install(), or use the guard in a with block",
                name,
            )
        return ScopeBlock(self, name, type)

    def open_scope(self, scope: Scope) -> None:
        """Begin `scope`: it is the current one from now on."""
        before = current_scope.get()
        if before is not None:
            scope.before = before
        current_scope.set(scope)
        self.observers.scope_opened(scope)

    def close_scope(self, scope: Scope) -> None:
        """End `scope` and judge what it did not give back. Never raises.

        The scope before it is the current one again. Scopes in generators need not end in the
        reverse order, and fixtures may end in another context than they began in: there this one
        may not be the current one.
        """
        scope.closed_at = monotonic()
        before = scope.before
        if before is not None:
            # It would keep all those before it. Whoever began with it will look at its parent.
            scope.before = None
        if current_scope.get() is scope:
            # It was open then, and may have ended in the meantime. Where other work had opened it,
            # this one was started in it, and belongs to it for good.
            parent = scope.parent
            if parent is not None and parent is before and parent.opened_by == scope.opened_by:
                before = nearest_open(parent)
            current_scope.set(before)
        if scope.event_log is not None:
            scope.event_log.add("scope closed")
        if (scope.open_connections or scope.open_sessions or scope.notable) and self.installed:
            try:
                self._judge.close(scope)
            except Exception as error:  # noqa: BLE001  (the request must not notice)
                FAULTS.report("leakguard's judge", error, "Please report it.")
        self.observers.scope_closed(scope)

    def acquired(self, hold: Hold) -> None:
        """Take note of a new hold; its scope, holder and evidence are set."""
        if isinstance(hold, ConnectionHold):
            self.checked_out(hold)
        else:
            self.constructed(hold)

    # Each of the two kinds has methods of its own, which every request runs: to ask which it is, in
    # lines that both run by turns, costs more than all that is done for it.

    def constructed(self, session: Hold) -> None:
        """Take note of a new session; as `acquired`."""
        self._open[session] = None
        scope = session.scope
        if scope is not None:
            if scope.event_log is not None:
                scope.event_log.add(_ACQUIRED["session"], session.site)
            scope.open_sessions[session] = None
            # Looked at after the entry: the scope may end in between, in another thread.
            if scope.closed_at is not None:
                self._too_late(session, scope)
        if not WATCH.started:
            WATCH.start()
        tell = self.observers.acquired
        if tell is not tell_nobody:  # a call that does nothing costs as much as a dozen bytecodes
            tell(session)

    def checked_out(self, hold: ConnectionHold) -> None:
        """Take note of a new connection; as `acquired`."""
        self._open[hold] = None
        scope = hold.scope
        if scope is not None:
            if scope.event_log is not None:
                scope.event_log.add(_ACQUIRED["connection"], hold.site)
            scope.open_connections[hold] = None
            # Looked at after the entry: the scope may end in between, in another thread.
            if scope.closed_at is not None:
                self._too_late(hold, scope)
        if not WATCH.started:
            WATCH.start()
        held = self._held
        if held is not None and not held.planned:
            held.plan()
        tell = self.observers.acquired
        if tell is not tell_nobody:
            tell(hold)

    def hand_over(self, hold: Hold, guard: Guard, scope: Scope) -> None:
        """Hand a hold over to a scope, which may be another guard's.

        As a connection to that of its session.
        """
        if hold.scope is not None:
            hold.scope.take_out(hold)
        self._judge.stop_waiting(hold)  # that scope may have ended before the checkout
        hold.guard, hold.scope = guard, scope
        if guard is self:
            self._enter_scope(hold, scope)
            return
        self._open.pop(hold, None)
        # To its observers the hold is gone: who counts must come out even.
        self.observers.released(hold)
        guard.acquired(hold)

    def released(self, hold: Hold) -> None:
        """Take note that a session was closed or a connection came back; once is enough."""
        if isinstance(hold, ConnectionHold):
            self.came_back(hold)
        else:
            self.closed(hold)

    def closed(self, session: Hold) -> None:
        """Take note that a session was closed; as `released`."""
        scope = session.scope
        if scope is not None:  # first: where the scope ends at this moment, it is closed
            scope.open_sessions.pop(session, None)
        if self._open.pop(session, session) is not None:  # as `take_out`
            return
        session.released_monotonic = monotonic()
        if scope is not None and scope.event_log is not None:
            scope.event_log.add("session closed")
        tell = self.observers.closed
        if tell is not tell_nobody:
            tell(session)

    def came_back(self, hold: ConnectionHold) -> None:
        """Take note that a connection came back; as `released`."""
        scope = hold.scope
        if scope is not None:  # first: where the scope ends at this moment, it has come back
            scope.open_connections.pop(hold, None)
        if self._open.pop(hold, hold) is not None:  # as `take_out`
            return
        hold.released_monotonic = now = monotonic()
        if scope is not None:
            if scope.event_log is not None:
                scope.event_log.add("connection given back")
            responded_at = scope.responded_at
            late = responded_at is not None and now - responded_at > self.settings.late_after
            if late or hold.nested or hold.sync_in_async:
                self._note(scope, hold, now, late=late)
        if self._judge.waits:
            self._judge.stop_waiting(hold)
        if self._unresolved and hold in self._unresolved:
            self._announcer.resolve(hold)
        self.observers.released(hold)

    def collected(self, hold: Hold) -> None:
        """Take note that the garbage collector took what nobody had closed.

        Called from finalizers, that is, at any point of any code: it takes no lock and leaves
        everything that might to the watch.
        """
        hold.collected = True  # first: released and not collected would mean that it was given back
        hold.released_monotonic = monotonic()
        WATCH.post(partial(self._after_collection, hold))

    def has_leaked(self, hold: Hold) -> bool:
        """Return whether `hold` was reported as leaked, and has not come back."""
        return self._announcer.has_leaked(hold)

    def exhausted(
        self, exhaustion: Exhaustion, scope: Scope | None, pool: str, waited: float
    ) -> Finding:
        """Take note that a checkout timed out, and return what there is to say of it."""
        return self._announcer.exhausted(exhaustion, scope, pool, waited)

    def _forget_open(self) -> None:
        for hold in self._open.copy():
            # Its scope may still be open, and be judged by a guard that is installed again.
            if hold.scope is not None:
                hold.scope.take_out(hold)
        self._open.clear()

    def _enter_scope(self, hold: Hold, scope: Scope) -> None:
        """Enter it in another scope, as `constructed` and `checked_out` do in the first one."""
        if scope.event_log is not None:
            scope.event_log.add(_ACQUIRED[hold.resource], hold.site)
        if isinstance(hold, ConnectionHold):
            scope.open_connections[hold] = None
        else:
            scope.open_sessions[hold] = None
        if scope.closed_at is not None:
            self._too_late(hold, scope)

    def _too_late(self, hold: Hold, scope: Scope) -> None:
        """Follow what entered a scope that has ended, unless that has dealt with it."""
        if scope.take_out(hold) and isinstance(hold, ConnectionHold):
            self._judge.outlived(scope, hold)

    def _note(self, scope: Scope, hold: ConnectionHold, now: float, *, late: bool) -> None:
        """Keep a hold that came back for the end of its scope, if there is something to say.

        `late` says that it came back long after the response.
        """
        if scope.closed_at is not None:
            return
        responded_at = scope.responded_at or inf
        late = late and hold.acquired_monotonic < responded_at
        if late:
            hold.late_by = now - responded_at
        if late or hold.nested or hold.sync_in_async:
            self._note_for_the_end(scope, hold)

    def _note_for_the_end(self, scope: Scope, hold: ConnectionHold) -> None:
        too_many = scope.note(hold) >= _NOTABLE_LIMIT  # as in a WebSocket that is open for days
        if too_many or scope.closed_at is not None:
            self._judge.tell_notable(scope)

    def _note_collected(self, hold: ConnectionHold) -> None:
        if hold.scope is not None and hold.scope.take_out(hold):
            self._note_for_the_end(hold.scope, hold)
        else:  # its scope has ended, and it was waited for
            self._judge.collected(hold)

    def _after_collection(self, hold: Hold) -> None:
        if not take_out(self._open, hold):
            return
        if hold.scope is None and isinstance(hold, ConnectionHold):
            self._announcer.found(hold, Verdict(FindingKind.RECLAIMED))
        elif isinstance(hold, ConnectionHold):
            self._note_collected(hold)
        else:
            self._forget_surplus(hold)
        if hold in self._unresolved:
            self._announcer.resolve(hold)
        self.observers.released(hold)

    def _forget_surplus(self, session: Hold) -> None:
        """Keep for the end of its scope no more of a line's sessions than are told of then."""
        scope = session.scope
        if scope is not None:
            tally = scope.sessions_collected = scope.sessions_collected or Tally()
            if session.allowed is not None or tally.too_many(session):
                scope.take_out(session)


def _detach(source: Source, guard: Guard) -> None:
    source.detach(guard)


def _dismiss(source: Source, guard: Guard) -> None:
    source.dismiss(guard)


_NOTABLE_LIMIT: Final = 100
"""How many connections that are out no more a scope remembers for its end."""

_ACQUIRED: Final = {"session": "session constructed", "connection": "connection checked out"}
