"""Leaks are counted once up and once down, in whatever order and thread that is told."""

from __future__ import annotations

import os
import threading

import pytest

from leakguard import Finding, FindingKind
from leakguard.core.guard import Guard
from leakguard.core.unresolved import UnresolvedLeaks
from tests.core.fakes import make_finding
from tests.support import PATIENCE


def guard_of(finding: Finding) -> Guard:
    """Return the guard whose finding it is."""
    assert finding.hold is not None
    return finding.hold.guard


def test_a_leak_counts_until_it_is_resolved_or_forgotten() -> None:
    """Of other kinds, and of other guards, nothing is counted."""
    counted: list[tuple[Finding, int]] = []
    leaks = UnresolvedLeaks(lambda finding, change: counted.append((finding, change)))
    first, second, held = make_finding(), make_finding(), make_finding(FindingKind.HELD)
    for finding in (first, second, held):
        leaks.found(finding)
    for finding in (first, first, held):
        leaks.resolved(finding)
    leaks.forget(guard_of(first))
    assert counted == [(first, 1), (second, 1), (first, -1)]
    leaks.forget(guard_of(second))
    leaks.forget(guard_of(second))
    assert counted == [(first, 1), (second, 1), (first, -1), (second, -1)]


def test_the_child_of_a_fork_counts_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its parent counted is not counted down in the child."""
    counted: list[int] = []
    leaks = UnresolvedLeaks(lambda _, change: counted.append(change))
    finding = make_finding()
    leaks.found(finding)
    monkeypatch.setattr(os, "getpid", lambda: 0)
    leaks.resolved(finding)
    assert counted == [1]


def test_of_several_threads_one_counts_it_down() -> None:
    """A connection comes back while its guard is uninstalled."""
    counted: list[int] = []
    leaks = UnresolvedLeaks(lambda _, change: counted.append(change))
    findings = [make_finding() for _ in range(200)]
    turns = threading.Barrier(2, timeout=PATIENCE)

    def forget() -> None:
        for finding in findings:
            turns.wait()
            leaks.forget(guard_of(finding))
            turns.wait()

    thread = threading.Thread(target=forget)
    thread.start()
    for finding in findings:
        leaks.found(finding)
        turns.wait()
        leaks.resolved(finding)
        turns.wait()
    thread.join()
    assert counted == [1, -1] * 200
