"""What the random programs have in common, whatever runs them: the comparison with the model."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test
from sqlalchemy.pool import Pool, QueuePool

from leakguard import FindingKind, LeakGuard, Scope
from leakguard.core.hold import Hold
from tests.model.model import Model, ModelFinding, ModelHold, ModelScope
from tests.support import Recorder, drain_watch

PROGRAMS = int(os.environ.get("LEAKGUARD_PROGRAMS", "250"))
"""How many random programs of threads run; of tasks, a third as many."""
LONG = "LEAKGUARD_PROGRAMS" in os.environ
"""Whether a long run looks for new programs, and for the shortest of those that fail."""


@dataclass(eq=False)
class Thing:
    """A connection or session that the program refers to, or did."""

    real: Any
    session: ModelHold | None = None
    hold: ModelHold | None = None
    """The connection that it has out."""
    proxy: weakref.ref[Any] | None = None
    """What dies when the collector takes its connection."""
    whole: weakref.ref[Any] | None = None


class Machine(RuleBasedStateMachine):
    """A random program, the model beside it, and what both must agree on at every step."""

    folder: Path
    unsaid: frozenset[FindingKind] = frozenset()
    """Kinds that are not compared."""
    guard: LeakGuard
    model: Model
    things: list[Any]
    """What the program refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.recorder = Recorder()
        self.things = []
        self.dropped: list[Any] = []
        self.hold_of: dict[ModelHold, Hold] = {}
        self.scope_of: dict[ModelScope, Scope] = {}
        self.pool_number: object = object()
        """What the model knows of the engine's pool."""

    @property
    def begun(self) -> bool:
        """Whether the program has its guard and its engine."""
        return hasattr(self, "guard")

    @property
    def pool(self) -> Pool:
        """The engine's pool."""
        raise NotImplementedError

    # --- what became of things --------------------------------------------------------------------

    def has_returned(self, thing: Thing) -> None:
        """Note that what a thing had out, if anything, came back."""
        if thing.hold is not None:
            self.model.returns(thing.hold)
            thing.hold = thing.proxy = None

    def see_what_went(self) -> None:
        """Note what the collector has taken of that which was dropped."""
        for thing in self.dropped:
            if thing.hold is not None and thing.proxy is not None and thing.proxy() is None:
                self.model.collects(thing.hold)
                thing.hold = None
            if thing.session is not None and thing.whole is not None and thing.whole() is None:
                self.model.collects(thing.session)
                thing.session = None
        self.dropped = [one for one in self.dropped if one.hold or one.session]

    # --- the two agree ----------------------------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        """The guard says what the model says."""
        if self.begun:
            drain_watch()
            self._pair()
            self._agree_on_holds()
            self._agree_with_the_pool()
            self._agree_on_findings()

    def _pair(self) -> None:
        """Note which real hold is which of the model: they were acquired in the same order."""
        acquired = self.recorder.holds_acquired
        assert [hold.resource for hold in acquired] == [one.resource for one in self.model.holds]
        self.hold_of = dict(zip(self.model.holds, acquired, strict=True))

    def _agree_on_holds(self) -> None:
        expected = [self.hold_of[hold] for hold in self.model.open_holds]
        assert list(self.guard.open_holds()) == expected
        for one, hold in self.hold_of.items():
            assert hold.scope is self._scope(one)
        released = {hold for one, hold in self.hold_of.items() if not one.out}
        assert len(self.recorder.holds_released) == len(released)
        assert set(self.recorder.holds_released) == released

    def _agree_with_the_pool(self) -> None:
        pool = self.pool
        if isinstance(pool, QueuePool):
            pooled = [hold for hold in self.connections_out() if not hold.detached]
            assert pool.checkedout() == sum(hold.pool is self.pool_number for hold in pooled)

    def connections_out(self) -> list[ModelHold]:
        """List the connections that are out, as the model has it."""
        return [hold for hold in self.model.open_holds if hold.resource == "connection"]

    def _agree_on_findings(self) -> None:
        due = {self._fact(one): one for one in self.model.findings if self._is_said(one)}
        findings = [finding for finding in self.recorder.findings if self._is_said(finding)]
        told = {(one.hold, one.kind, one.also): one for one in findings}
        assert set(told) == set(due), (set(told) - set(due), set(due) - set(told), self.pool)
        assert len(told) == len(findings)
        for fact, finding in told.items():
            model = due[fact]
            assert finding.scope is self._scope(model.hold)
            # Whether a notice that became a leak is resolved with it is another test's matter.
            assert model.superseded or finding.resolved == model.resolved
        resolved = [fact for fact, one in due.items() if one.resolved and not one.superseded]
        resolutions = [one for one in self.recorder.resolutions if self._is_said(one)]
        facts = [(one.hold, one.kind, one.also) for one in resolutions]
        facts = [fact for fact in facts if not due[fact].superseded]
        assert sorted(map(hash, facts)) == sorted(map(hash, resolved))

    def _is_said(self, finding: Any) -> bool:
        return finding.kind not in self.unsaid

    def _fact(self, finding: ModelFinding) -> tuple[Any, ...]:
        return self.hold_of[finding.hold], finding.kind, finding.also

    def _scope(self, hold: ModelHold) -> Scope | None:
        return None if hold.scope is None else self.scope_of[hold.scope]


def run_programs(machine: type[Machine], *, programs: int, steps: int) -> None:
    """Run so many random programs of at most so many steps.

    They are the same with every run of the tests, unless a long run was asked for.
    """
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=programs,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=list(Phase) if LONG else [Phase.explicit, Phase.generate],
            derandomize=not LONG,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
