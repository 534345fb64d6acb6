"""The watch over a run of tests: begins as soon as there is something to see."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from leakguard.sources.imports import when_imported

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from leakguard.core.finding import Finding
    from leakguard.core.hold import Hold
    from leakguard.testing.stages import Kind, Stage, Stages

    Refers = Callable[[Iterable[object]], set[int]]
    """Tells the `id()` of those objects that a fixture refers to."""

_SOURCE: Final = "leakguard.sources.sqlalchemy"
_STAGES: Final = "leakguard.testing.stages"


class Part:
    """What has a stage as soon as there is something to see: a test, or a wider fixture."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind: Kind = kind
        self.stage: Stage | None = None
        """`None` while SQLAlchemy is not imported."""


class TestWatch:
    """Follows which test or fixture is at work, and has it judged at its end.

    A suite that does not use SQLAlchemy does not pay for its import: nothing is watched until
    somebody else imports it, be it in the middle of a fixture.
    """

    __test__ = False

    def __init__(self) -> None:
        self._stages: Stages | None = None
        self._started = False
        self._waits: list[Callable[[], None]] = []
        self._at_work: list[Part] = []
        """Those that have begun and not ended, but for fixtures that wait; the innermost last."""

    def start(self) -> None:
        """Watch from now on, or from when SQLAlchemy is imported."""
        # Where leakguard itself is what imports it, that has to be through first: its source for
        # an application, or the stages of a run of tests within this one, or around it.
        self._waits = [
            when_imported("sqlalchemy", partial(self._start_unless_importing, _SOURCE, _STAGES)),
            when_imported(_SOURCE, partial(self._start_unless_importing, _STAGES)),
            when_imported(_STAGES, self._start),
        ]

    def stop(self) -> None:
        """Watch no more."""
        for give_up in self._waits:
            give_up()
        if self._stages is not None:
            self._stages.stop()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Watch nothing in the block, as where a guard is tested that wants to be the only one."""
        if self._stages is None:
            yield
            return
        with self._stages.paused():
            yield

    def begin(self, name: str, kind: Kind) -> Part:
        """Begin a part: it is at work."""
        part = Part(name, kind)
        if self._stages is not None:
            part.stage = self._stages.begin(name, kind)
        self._at_work.append(part)
        return part

    def leave(self, fixture: Part) -> None:
        """Go on with what the fixture interrupted; it waits until it is entered again."""
        self._at_work.remove(fixture)
        if fixture.stage is not None and self._stages is not None:
            self._stages.leave(fixture.stage)

    def enter(self, fixture: Part) -> None:
        """Go on with a fixture: it is about to be torn down."""
        self._at_work.append(fixture)
        if self._stages is None:
            return
        if fixture.stage is None:
            fixture.stage = self._stages.begin(fixture.name, fixture.kind)
        else:
            self._stages.enter(fixture.stage)

    def end(self, part: Part, keepers: Iterable[tuple[Part, Refers]] = ()) -> list[Finding]:
        """End a part, and return what was found of it.

        The fixtures among `keepers` are left, and judged for what they have of it.
        """
        self._at_work.remove(part)
        if part.stage is None or self._stages is None:
            return []
        return self._stages.end(part.stage, _stages_of(keepers, self._stages))

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found so far of the part that is at work."""
        stage = self._at_work[-1].stage
        if stage is None or self._stages is None:
            return ()
        return tuple(self._stages.findings(stage))

    def open_holds(self) -> list[Hold]:
        """Return what is out of the part that is at work, oldest first."""
        stage = self._at_work[-1].stage
        return [] if stage is None or self._stages is None else self._stages.open_holds(stage)

    def take_rest(self) -> list[tuple[str, Finding]]:
        """Return what was found when its part had ended, with that one's name, if any."""
        return [] if self._stages is None else self._stages.take_rest()

    def _start_unless_importing(self, *modules: str) -> None:
        if sys.modules.keys().isdisjoint(modules):
            self._start()

    def _start(self) -> None:
        if self._started:  # by another one of them
            return
        self._started = True
        from leakguard.testing.stages import Stages  # noqa: PLC0415  (it imports SQLAlchemy)

        self._stages = stages = Stages()
        stages.start()
        for part in self._at_work:
            part.stage = stages.begin(part.name, part.kind)


def _stages_of(
    keepers: Iterable[tuple[Part, Refers]], stages: Stages
) -> Iterator[tuple[Stage, Refers]]:
    for fixture, refers_to in keepers:
        stage = fixture.stage
        if stage is None:  # begun before SQLAlchemy was imported
            stage = fixture.stage = stages.begin(fixture.name, fixture.kind)
            stages.leave(stage)
        yield stage, refers_to
