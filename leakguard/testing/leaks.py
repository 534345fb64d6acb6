"""The leaks of a run, grouped: what the summary, the report and the baseline are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leakguard.testing.describe import Leak


class Group:
    """Equal leaks."""

    def __init__(self, first: Leak) -> None:
        self.first = first
        self.fails = False
        """Whether one of them is reason to fail."""
        self.count = 0
        self.stages: dict[str, None] = {}
        """The tests and fixtures that made it, in their order; a dict as an ordered set."""


class Leaks:
    """All leaks of a run by fingerprint, and what ran."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.tests: set[str] = set()
        self.ran: set[str] = set()
        """The tests that have passed, and the wider fixtures that have ended: they would have
        made their leaks again."""

    def add(self, stage: str, leaks: Iterable[Leak]) -> None:
        """Add what was found of a test or fixture; of none of them where the name is empty."""
        for leak in leaks:
            group = self.groups.setdefault(leak["fingerprint"], Group(leak))
            group.count += 1
            group.fails = group.fails or leak["fails"]
            if stage:
                group.stages[stage] = None

    def note(self, test: str, found: dict[str, list[Leak]], *, passed: bool) -> None:
        """Note that a test has run, and what was found of it and of fixtures that ended with it."""
        self.tests.add(test)
        if passed:
            self.ran.add(test)
        for name, leaks in found.items():
            self.ran.add(name)
            self.add(name, leaks)

    def of(self, *, known: bool) -> list[Group]:
        """Return the groups that the baseline has, or those that it has not."""
        return [group for group in self.groups.values() if group.first["known"] is known]
