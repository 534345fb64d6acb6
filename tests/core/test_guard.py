"""The guard turns what sources see into findings, and never troubles the application."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leakguard import (
    Finding,
    FindingKind,
    Hold,
    LeakGuardError,
    Observer,
    Scope,
)
from leakguard.core.faults import Faults
from leakguard.core.guard import Guard
from leakguard.core.lock import LOCK
from leakguard.core.pool import PoolChange, Wait
from leakguard.core.process import forget_parent
from leakguard.core.register import Register
from leakguard.core.settings import build_settings
from leakguard.core.verdict import Verdict
from leakguard.core.watch import Watch
from tests.core.fakes import FakeConnection, construct, here, installed, make_guard, take
from tests.support import PATIENCE, Recorder, drain_watch


class FakeSource:
    """A source that notes who attaches and detaches."""

    def __init__(self, name: str, steps: list[str]) -> None:
        self.name = name
        self.steps = steps
        self.guards: list[Guard] = []

    def attach(self, guard: Guard) -> None:
        """Note it."""
        self.steps.append(f"{self.name} in")
        self.guards.append(guard)

    def detach(self, guard: Guard) -> None:
        """Note it."""
        self.steps.append(f"{self.name} out")
        self.guards.remove(guard)

    def dismiss(self, guard: Guard) -> None:
        """Note it."""
        self.steps.append(f"{self.name} dismissed")
        self.guards.remove(guard)


def test_installation_is_a_pair_and_idempotent() -> None:
    """Sources go in once, and out in the reverse order once."""
    steps: list[str] = []
    sources = [FakeSource("a", steps), FakeSource("b", steps)]
    guard = make_guard(sources=sources)
    installed = [guard.installed]
    assert guard.install() is guard
    guard.install()
    assert [source.guards for source in sources] == [[guard], [guard]]
    installed.append(guard.installed)
    guard.uninstall()
    guard.uninstall()
    assert [source.guards for source in sources] == [[], []]
    installed.append(guard.installed)
    assert installed == [False, True, False]
    assert steps == ["a in", "b in", "b out", "a out"]
    with guard as entered:
        assert entered is guard
        assert guard.installed
    assert not guard.installed


def test_a_block_leaves_a_guard_installed_that_was_installed_before() -> None:
    """Blocks nest, and none of them ends the watch of an application that has the same guard."""
    guard = make_guard()
    with guard:
        with guard:
            pass
        assert guard.installed
    assert not guard.installed
    guard.install()
    with guard, guard:
        pass
    assert guard.installed
    guard.uninstall()


@pytest.mark.parametrize("leave", [Guard.uninstall, Guard.abandon])
def test_what_is_taken_while_the_sources_leave_is_forgotten_too(
    leave: Callable[[Guard], None],
) -> None:
    """Other threads go on until the last source has left."""

    class Busy(FakeSource):
        def detach(self, guard: Guard) -> None:
            take(guard)

        dismiss = detach

    guard = make_guard(sources=[Busy("busy", [])]).install()
    leave(guard)
    assert guard.open_holds() == ()


def test_a_guard_that_is_abandoned_leaves_the_libraries_alone(recorder: Recorder) -> None:
    """It watches no more, and its sources are told so; an uninstallation has nothing to do then."""
    steps: list[str] = []
    guard = Guard(build_settings({}), [recorder], [FakeSource("a", steps)]).install()
    hold = take(guard)
    for leave in (guard.abandon, guard.abandon, guard.uninstall):
        leave()
        assert not guard.installed
        assert guard.open_holds() == ()
    hold.give_back()
    assert recorder.holds_released == []
    assert steps == ["a in", "a dismissed"]


@pytest.mark.parametrize("leave", [Guard.uninstall, Guard.abandon])
def test_nothing_keeps_a_guard_that_watches_no_more(leave: Callable[[Guard], None]) -> None:
    """An application may make any number of them, as tests do."""
    guard = make_guard().install()
    with guard.scope("job") as scope:
        take(guard, scope).give_back()
    leave(guard)
    kept = weakref.ref(guard)
    del guard, scope
    gc.collect()
    assert kept() is None


def test_mode_off_installs_nothing() -> None:
    """No source is told."""
    steps: list[str] = []
    guard = make_guard(mode="off", sources=[FakeSource("a", steps)])
    with guard, guard.scope("job") as scope:
        assert scope.name == "job"
    assert steps == []


def test_a_scope_notes_how_it_ended(recorder: Recorder) -> None:
    """The exception passes unchanged, and its type is kept."""
    guard = installed(recorder)
    error = KeyError("lost")
    with pytest.raises(KeyError) as raised, guard.scope("failing"):
        raise error
    assert raised.value is error

    class Cancelled(BaseException):
        """What trio raises."""

    with pytest.raises(Cancelled), guard.scope("cancelled by trio"):
        raise Cancelled

    async def main() -> None:
        async with guard.scope("cancelled"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert recorder.scopes_opened == recorder.scopes_closed
    assert [(scope.exception, scope.cancelled) for scope in recorder.scopes_closed] == [
        ("KeyError", False),
        ("Cancelled", True),
        ("CancelledError", True),
    ]
    guard.uninstall()


def test_leaving_a_block_that_is_not_open_is_nothing(recorder: Recorder) -> None:
    """There is no scope to end, or it has ended before."""
    guard = installed(recorder)
    block = guard.scope("job")
    block.__exit__(None, None, None)
    with block:
        pass
    block.__exit__(None, None, None)
    assert len(recorder.scopes_closed) == 1
    guard.uninstall()


def test_open_holds_are_a_snapshot_oldest_first(recorder: Recorder) -> None:
    """Sessions and connections; those that are closed or collected by now are not among them."""
    guard = installed(recorder)
    first, session, closed, collected, last = (
        take(guard),
        construct(guard),
        take(guard),
        take(guard),
        take(guard),
    )
    closed.is_open = False
    collected.is_open = False
    collected.collected = True
    assert guard.open_holds() == (first, session, last)
    assert recorder.holds_released == [closed]
    guard.uninstall()
    assert guard.open_holds() == ()


def test_a_return_is_told_once(recorder: Recorder) -> None:
    """However often a source says so."""
    guard = installed(recorder)
    hold = take(guard)
    guard.released(hold)
    guard.released(hold)
    assert recorder.holds_released == [hold]
    guard.uninstall()


def test_a_collected_session_is_told_too(recorder: Recorder) -> None:
    """A session outside of any scope that is collected was never closed; that is no finding."""
    guard = installed(recorder)
    hold = construct(guard)
    guard.collected(hold)
    recorder.wait_for(lambda: recorder.holds_released)
    assert recorder.findings == []
    guard.uninstall()


def test_an_observer_is_told_what_it_overrides() -> None:
    """It need not listen to more."""

    class Findings(Observer):
        """An observer of findings alone."""

        def __init__(self) -> None:
            self.kinds: list[FindingKind] = []

        def found(self, finding: Finding) -> None:
            self.kinds.append(finding.kind)

    told = Findings()
    guard = installed(told)
    with guard.scope("job") as scope:
        take(guard, scope)
    assert told.kinds == [FindingKind.LEAKED]
    guard.uninstall()


def test_observers_are_told_what_becomes_of_pools() -> None:
    """That their connections come and go, and how long a checkout took."""
    told: list[object] = []

    class Pools(Observer):
        def pool_changed(self, change: PoolChange) -> None:
            told.append(change)

        def waited(self, wait: Wait) -> None:
            told.append(wait)

    guard = installed(Pools())
    change, wait = PoolChange("main", 1, 0, 15), Wait("main", 0.2, timed_out=False)
    guard.observers.pool_changed(change)
    guard.observers.waited(wait)
    assert told == [change, wait]
    guard.uninstall()


def test_what_is_collected_after_an_uninstallation_is_nothing(recorder: Recorder) -> None:
    """The guard has forgotten it."""
    guard = installed(recorder)
    other = installed(recorder)  # keeps the watch
    hold = take(guard)
    guard.uninstall()
    guard.collected(hold)
    take(other)
    lost = take(other)
    other.collected(lost)
    recorder.wait_for(lambda: recorder.holds_released)
    assert recorder.holds_released == [lost]
    other.uninstall()


def test_what_was_collected_before_an_uninstallation_is_told(recorder: Recorder) -> None:
    """Also where the watch has yet to hear of it."""
    guard = installed(recorder)
    hold = FakeConnection(guard)
    guard._open[hold] = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no watch starts
    hold.collect()
    guard.uninstall()
    assert recorder.kinds == [FindingKind.RECLAIMED]
    assert recorder.holds_released == [hold]


def test_what_was_collected_is_told_while_nobody_has_the_lock() -> None:
    """An observer may wait for a thread that installs another guard."""
    free: list[bool] = []
    told = threading.Event()

    def look() -> None:
        free.append(LOCK.acquire(blocking=False))
        if free[-1]:
            LOCK.release()

    class Waiting(Observer):
        """Waits for a thread."""

        def found(self, finding: Finding) -> None:
            thread = threading.Thread(target=look)
            thread.start()
            thread.join(PATIENCE)
            told.set()

    with make_guard(Waiting()) as guard:
        hold = FakeConnection(guard)
        guard._open[hold] = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no watch starts
        hold.collect()
    assert told.wait(PATIENCE)  # by the watch, where it runs for another reason
    assert free == [True]


THE_END = """
from leakguard import Finding, Observer
from tests.core.fakes import installed, take

class Printing(Observer):
    def found(self, finding: Finding) -> None:
        print(finding.kind)

for guard in (installed(Printing(), late_after=100), installed(Printing(), late_after=100)):
    with guard.scope("job") as scope:
        take(guard, scope).by_older_session = True
print("the end")
"""


def test_what_is_waited_for_is_judged_at_the_end_of_the_process() -> None:
    """A script that ends soon after its job is told what the job left."""
    out = subprocess.run(  # noqa: S603  (our own code)
        [sys.executable, "-c", THE_END],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=PATIENCE,
    )
    assert (out.stdout.split(), out.stderr) == (["the", "end", "leaked", "leaked"], "")


def test_what_the_parent_of_a_fork_has_is_not_the_childs(recorder: Recorder) -> None:
    """What the child of a fork does first: whatever is out, waited for or unresolved is forgotten.

    What its own scopes take afterwards is judged as ever.
    """
    guard = installed(recorder)
    with guard.scope("leaky") as scope:
        leaked = take(guard, scope)
    with guard.scope("outer") as outer:
        copies = [take(guard), take(guard, outer)]
        with guard.scope("inner") as inner:
            for scope in (outer, inner):
                returned = take(guard, scope)
                returned.nested = True
                returned.give_back()
            collected = take(guard, inner)
            collected.collect()
            drain_watch()
            forget_parent()
            assert guard.open_holds() == ()
            own = take(guard, inner)
    for copy in (leaked, *copies):
        copy.give_back()
    drain_watch()
    assert [finding.hold for finding in recorder.findings] == [leaked, own]
    assert recorder.resolutions == []
    own.give_back()
    recorder.wait_for(lambda: recorder.resolutions)
    guard.uninstall()


def test_what_is_forgotten_after_a_fork_may_take_a_guard_along(recorder: Recorder) -> None:
    """An application's finalizer that uninstalls a guard does not end the forgetting half way."""
    guard = installed()
    weakref.finalize(take(guard), guard.uninstall)
    other = installed(recorder)
    with other.scope("job") as scope:
        returned = take(other, scope)
        returned.nested = True
        returned.give_back()
        forget_parent()
        assert not guard.installed
    assert recorder.findings == []
    other.uninstall()


def test_a_connection_that_comes_back_while_it_is_judged_is_resolved(recorder: Recorder) -> None:
    """Whoever comes first, the finding is resolved exactly once."""

    class ReturnsWhenFound(Recorder):
        """An observer that gives the connection back in the middle of the judgement."""

        def found(self, finding: Any) -> None:
            finding.hold.give_back()

    racing = installed(ReturnsWhenFound(), recorder)
    with racing.scope("job") as scope:
        take(racing, scope)
    recorder.wait_for(lambda: recorder.resolutions)
    assert recorder.resolutions == recorder.findings
    assert len(recorder.findings) == 1
    racing.uninstall()


def test_notices_are_not_resolved(recorder: Recorder) -> None:
    """An unclosed session that is closed later was untidy all the same."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        session = construct(guard, scope)
    guard.released(session)
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]
    assert not recorder.findings[0].resolved
    guard.uninstall()


def message(place: str, remedy: str) -> str:
    """Return what is logged of a fault at `place`."""
    return f"{place} raised RuntimeError; the application is not affected. {remedy}"


def test_a_fault_of_the_judge_does_not_reach_the_application(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """A library that raises when it is asked is logged once; the scope ends like any other."""

    class Broken(FakeConnection):
        """A connection that cannot even be asked."""

        @property
        def open(self) -> bool:
            raise RuntimeError("no answer")

    guard = installed(recorder)
    for _ in range(2):
        with guard.scope("job") as scope:
            guard.acquired(Broken(guard, scope))
    assert len(recorder.scopes_closed) == 2
    assert [record.getMessage() for record in caplog.records] == [
        message("leakguard's judge", "A verdict is lost. Please report it.")
    ]
    guard.uninstall()


def test_a_finding_that_cannot_be_made_takes_no_other_with_it(
    recorder: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other connections of the scope are found."""
    guard = installed(recorder)
    enter = Register.enter
    failures = [RuntimeError("a fault")]

    def fail_once(self: Register, hold: Hold, verdict: Verdict) -> Any:
        if failures and hold.guard is guard:  # the watch may still be at work for another test
            raise failures.pop()
        return enter(self, hold, verdict)

    monkeypatch.setattr(Register, "enter", fail_once)
    with guard.scope("job") as scope:
        take(guard, scope)
        second = take(guard, scope)
    assert [finding.hold for finding in recorder.findings] == [second]
    assert [record.getMessage() for record in caplog.records] == [
        message("leakguard's register", "A finding is lost. Please report it.")
    ]
    guard.uninstall()


def test_a_guard_that_was_never_installed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A scope of it finds nothing, which somebody should know; once."""
    guard = make_guard()
    for _ in range(2):
        with guard.scope("job"):
            pass
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            (
                "scope 'job' is opened, but its guard was never installed, so that nothing is "
                "watched: call install(), or use the guard in a with block"
            ),
        )
    ]
    caplog.clear()
    off = make_guard(mode="off")
    with off.install().scope("job"):
        pass
    after = installed()
    after.uninstall()
    with after.scope("job"):
        pass
    assert caplog.records == []


def test_a_hold_may_be_handed_over_within_a_guard(recorder: Recorder) -> None:
    """The scope of its session answers for it, and its acquisition is told once."""
    guard = installed(recorder)
    with guard.scope("test") as outer:
        with guard.scope("request") as inner:
            hold = take(guard, inner)
            guard.hand_over(hold, guard, outer)
        assert recorder.findings == []
    assert [finding.scope for finding in recorder.findings] == [outer]
    assert recorder.holds_acquired == [hold]
    assert recorder.holds_released == []
    guard.uninstall()


def test_a_hold_may_be_handed_over_to_a_scope_that_ends_at_this_moment(recorder: Recorder) -> None:
    """Nobody is left who could give it back."""
    guard = installed(recorder, events=False)
    with guard.scope("test") as outer:
        pass
    with guard.scope("request") as inner:
        guard.hand_over(take(guard, inner), guard, outer)
    (finding,) = recorder.findings
    assert (finding.scope, finding.kind) == (outer, FindingKind.LEAKED)
    guard.uninstall()


def test_a_hold_may_be_handed_over_to_another_guard(recorder: Recorder) -> None:
    """For the observers of the first it is gone, for those of the second it came."""
    guard, theirs = installed(recorder), Recorder()
    other = installed(theirs)
    with other.scope("test") as outer:
        hold = take(guard)
        guard.hand_over(hold, other, outer)
        assert guard.open_holds() == ()
        assert other.open_holds() == (hold,)
        assert (guard.has(hold), other.has(hold)) == (False, True)
        hold.give_back()
    assert not other.has(hold)
    assert recorder.holds_acquired == recorder.holds_released == [hold]
    assert theirs.holds_acquired == theirs.holds_released == [hold]
    assert recorder.findings == theirs.findings == []
    guard.uninstall()
    other.uninstall()


def test_what_a_guard_has_forgotten_may_be_handed_over() -> None:
    """It may be taken out between the checkout and the look at whose session it is for."""
    guard, other = installed(), installed()
    with other.scope("test") as outer:
        hold = take(guard)
        guard.uninstall()
        guard.hand_over(hold, other, outer)
        assert other.open_holds() == (hold,)
        hold.give_back()
    other.uninstall()


def test_the_new_scope_keeps_what_was_handed_over_in_its_events() -> None:
    """With the line of the checkout, as of one that it checked out itself."""
    guard = installed()
    with guard.scope("test") as outer, guard.scope("request") as inner:
        hold = take(guard, inner, here())
        guard.hand_over(hold, guard, outer)
    assert [(event.what, event.where) for event in outer.events] == [
        ("connection checked out", hold.site),
        ("scope closed", None),
    ]
    guard.uninstall()


def test_who_took_what_was_handed_over_is_waited_for_no_more(recorder: Recorder) -> None:
    """Also where their scope had ended before the checkout: the new scope's end decides."""
    guard = installed(recorder)
    taken: list[FakeConnection] = []

    async def main() -> None:
        async with guard.scope("test") as outer:
            async with guard.scope("request") as inner:
                ended = asyncio.Event()
                task = asyncio.create_task(work(inner, ended))
            ended.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            guard.hand_over(taken[0], guard, outer)
            await task
            await asyncio.sleep(0)
            assert recorder.findings == []
        assert [(one.scope, one.kind) for one in recorder.findings] == [(outer, FindingKind.LEAKED)]

    async def work(scope: Scope, ended: asyncio.Event) -> None:
        await ended.wait()
        taken.append(take(guard, scope))
        await asyncio.sleep(0)

    asyncio.run(main())
    guard.uninstall()


class Mute(FakeConnection):
    """A connection that raises when it is asked."""

    __slots__ = ()

    @property
    def open(self) -> bool:
        raise RuntimeError("no answer")


def test_a_hold_that_cannot_be_judged_takes_no_other_with_it(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """The connections before and behind it, and the sessions, get their verdicts."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        before = take(guard, scope)
        guard.acquired(Mute(guard, scope))
        behind = take(guard, scope)
        returned = take(guard, scope)
        returned.sync_in_async = True
        returned.give_back()
        session = construct(guard, scope)
    assert [finding.hold for finding in recorder.findings] == [before, behind, returned, session]
    assert [record.getMessage() for record in caplog.records] == [
        message("leakguard's judge", "A verdict is lost. Please report it.")
    ]
    guard.uninstall()


def test_a_fault_of_the_judge_itself_ends_no_request(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """The scope is told as closed whatever happens while it is judged."""

    class NoHolds(dict[Any, None]):
        """The holds of a scope that cannot be listed."""

        def copy(self) -> dict[Any, None]:
            raise RuntimeError("no list")

    guard = installed(recorder)
    with guard.scope("job") as scope:
        scope.open_connections = NoHolds()
        take(guard, scope)
    assert recorder.scopes_closed == [scope]
    assert [record.getMessage() for record in caplog.records] == [
        message("leakguard's judge", "Please report it.")
    ]
    guard.uninstall()


def test_a_late_return_is_counted_from_the_response(recorder: Recorder) -> None:
    """It is said when the scope ends, and by how much it was late."""
    guard = installed(recorder, late_after=1.0)
    with guard.scope("job") as scope:
        hold = take(guard, scope)
        hold.acquired_monotonic -= 10.0
        scope.responded_at = hold.acquired_monotonic + 5.0
        hold.give_back()
    assert recorder.kinds == [FindingKind.RETURNED_LATE]
    late_by = recorder.findings[0].evidence.late_by
    assert late_by is not None
    assert late_by >= 5.0
    guard.uninstall()


def test_what_was_taken_after_the_response_is_not_late(recorder: Recorder) -> None:
    """A background task that has a connection of its own keeps nobody's."""
    guard = installed(recorder, late_after=1.0)
    with guard.scope("job") as scope:
        hold = take(guard, scope)
        scope.responded_at = hold.acquired_monotonic - 5.0
        hold.give_back()
    assert recorder.findings == []
    guard.uninstall()


def test_a_return_soon_after_the_response_is_in_time(recorder: Recorder) -> None:
    """Dependencies close what they yielded after the response: that is no finding."""
    guard = installed(recorder, late_after=1000.0)
    with guard.scope("job") as scope:
        hold = take(guard, scope)
        scope.responded_at = hold.acquired_monotonic + 0.001
        hold.give_back()
    assert recorder.findings == []
    guard.uninstall()


@pytest.mark.parametrize(
    "taken, responded, kinds",
    [
        (10.0, 20.0, []),
        (10.0, 19.5, [FindingKind.RETURNED_LATE]),
        (19.5, 19.5, []),
    ],
    ids=["in time", "late", "taken after the response"],
)
def test_the_limits_of_lateness_themselves_are_allowed(
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    taken: float,
    responded: float,
    kinds: list[FindingKind],
) -> None:
    """More than `late_after` seconds is late, for what was taken before the last byte."""
    guard = installed(recorder, late_after=1.0)
    with guard.scope("job") as scope:
        hold = take(guard, scope)
        hold.acquired_monotonic, scope.responded_at = taken, responded
        monkeypatch.setattr("leakguard.core.guard.monotonic", lambda: 21.0)
        hold.give_back()
    assert recorder.kinds == kinds
    guard.uninstall()


def test_a_leak_that_is_collected_later_is_resolved_and_no_second_finding(
    recorder: Recorder,
) -> None:
    """The verdict has fallen; how the connection came back is said once."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        hold = take(guard, scope)
    hold.collect()
    recorder.wait_for(lambda: recorder.resolutions)
    assert recorder.kinds == [FindingKind.LEAKED]
    assert recorder.resolutions == recorder.findings
    assert recorder.findings[0].resolution is not None
    assert "by the garbage collector" in recorder.findings[0].resolution
    guard.uninstall()


def test_two_that_resolve_at_once_resolve_it_once(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """A return that falls between a finding and the look at it is told once."""

    class Racing(FakeConnection):
        """A connection that another thread gives back just when it is looked at."""

        __slots__ = ("_released", "armed")
        armed: bool

        @property
        def released_monotonic(self) -> float | None:
            if self.armed:
                self.armed = False
                self.give_back()
            return self._released

        @released_monotonic.setter
        def released_monotonic(self, value: float | None) -> None:
            self.armed = False
            self._released: float | None = value

    class Arming(Recorder):
        """An observer after which the race begins."""

        def found(self, finding: Finding) -> None:
            assert isinstance(finding.hold, Racing)
            finding.hold.armed = True

    guard = installed(recorder, Arming())
    with guard.scope("job") as scope:
        hold = Racing(guard, scope)
        guard.acquired(hold)
    recorder.wait_for(lambda: recorder.resolutions)
    assert recorder.resolutions == recorder.findings
    assert recorder.holds_released == [hold]
    assert caplog.records == []
    guard.uninstall()


def test_a_block_is_entered_once() -> None:
    """A second entry would lose the first scope."""
    block = make_guard().scope("nightly import")
    with block:
        pass
    with pytest.raises(LeakGuardError) as raised, block:
        raise AssertionError
    assert str(raised.value) == (
        "the block of scope 'nightly import' was entered before, and stands for one scope only: "
        "call guard.scope() for each"
    )


@pytest.mark.parametrize(
    "mark, kind",
    [
        ("nested", FindingKind.NESTED_CHECKOUT),
        ("sync_in_async", FindingKind.SYNC_IN_ASYNC),
    ],
)
def test_a_notice_waits_for_the_end_of_its_scope(
    recorder: Recorder, mark: str, kind: FindingKind
) -> None:
    """Then it is known whether something worse has happened to the connection."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        returned, kept = take(guard, scope), take(guard, scope)
        for hold in (returned, kept):
            setattr(hold, mark, True)
        returned.give_back()
        assert recorder.findings == []
    assert [(finding.hold, finding.kind, finding.also) for finding in recorder.findings] == [
        (kept, FindingKind.LEAKED, (kind,)),
        (returned, kind, ()),
    ]
    guard.uninstall()


def test_what_is_collected_outside_of_any_scope_is_reclaimed(recorder: Recorder) -> None:
    """There is no end of a scope to wait for."""
    guard = installed(recorder)
    hold = take(guard)
    hold.collect()
    recorder.wait_for(lambda: recorder.holds_released)
    assert [(finding.hold, finding.kind) for finding in recorder.findings] == [
        (hold, FindingKind.RECLAIMED)
    ]
    guard.uninstall()


@pytest.mark.parametrize("again", [True, False])
def test_a_scope_of_a_guard_that_is_gone_is_not_judged(recorder: Recorder, again: bool) -> None:
    """Whoever takes the guard out in the middle of a request wants to hear no more of it."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        take(guard, scope)
        if not again:
            returned = take(guard, scope)
            returned.nested = True
            returned.give_back()
        guard.uninstall()
        if again:
            guard.install()
    assert recorder.findings == []
    assert recorder.scopes_closed == [scope]
    guard.uninstall()


def test_the_watch_is_started_when_there_is_something_to_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a finalizer, which needs it, it could not be."""
    watch = Watch(Faults())
    monkeypatch.setattr("leakguard.core.guard.WATCH", watch)
    with make_guard() as guard:
        started = [watch.started]
        take(guard)
        started.append(watch.started)
    assert started == [False, True]


def test_the_lifecycle_of_a_scope_is_kept(recorder: Recorder) -> None:
    """What happened in the order in which it did, with the user's lines."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        session = construct(guard, scope, here())
        hold = take(guard, scope, here())
        hold.give_back()
        guard.released(session)
    assert [(event.what, event.where) for event in scope.events] == [
        ("session constructed", session.site),
        ("connection checked out", hold.site),
        ("connection given back", None),
        ("session closed", None),
        ("scope closed", None),
    ]
    guard.uninstall()


def test_what_came_back_is_resolved_although_nobody_is_told() -> None:
    """Whoever asks the finding later sees it."""

    class Findings(Observer):
        """An observer of findings alone."""

        def __init__(self) -> None:
            self.findings: list[Finding] = []

        def found(self, finding: Finding) -> None:
            self.findings.append(finding)

    told = Findings()
    guard = installed(told)
    with guard.scope("job") as scope:
        hold = take(guard, scope)
    hold.give_back()
    drain_watch()
    assert [finding.resolution is not None for finding in told.findings] == [True]
    guard.uninstall()


@pytest.mark.parametrize("stop", [Guard.uninstall, Guard.abandon, Guard.__exit__])
def test_observers_are_told_without_the_lock(stop: Callable[[Guard], None]) -> None:
    """Who logs may wait for a lock of somebody who waits for this one."""
    free: list[bool] = []

    def take_lock() -> None:
        free.append(LOCK.acquire(blocking=False))
        if free[-1]:
            LOCK.release()

    class Asks(Observer):
        def uninstalled(self, guard: Guard) -> None:
            thread = threading.Thread(target=take_lock)
            thread.start()
            thread.join()

    stop(make_guard(Asks()).__enter__())
    assert free == [True]


def test_a_scope_that_has_ended_has_nothing_any_more() -> None:
    """What its work takes afterwards is followed elsewhere: the scope would keep it."""
    guard = installed()
    with guard.scope("job") as scope:
        pass
    take(guard, scope)
    construct(guard, scope)
    assert not scope.open_connections
    assert not scope.open_sessions
    guard.uninstall()


@pytest.mark.parametrize("stop", [Guard.uninstall, Guard.abandon, Guard.__exit__])
def test_observers_are_told_which_guard_watches_no_more(stop: Callable[[Guard], None]) -> None:
    """One may hear of several."""
    told: list[Guard] = []

    class Hears(Observer):
        def uninstalled(self, guard: Guard) -> None:
            told.append(guard)

    guards = [make_guard(Hears()).__enter__() for _ in range(2)]
    for guard in guards:
        stop(guard)
    assert told == guards
