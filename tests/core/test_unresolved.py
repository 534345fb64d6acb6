"""Leaks are counted once up and once down, in whatever order and thread that is told."""

from __future__ import annotations

import threading

from leakguard import Finding, FindingKind
from leakguard.core.unresolved import UnresolvedLeaks
from tests.core.fakes import make_finding


def test_a_leak_counts_until_it_is_resolved_or_forgotten() -> None:
    """Of other kinds nothing is counted."""
    counted: list[tuple[Finding, int]] = []
    leaks = UnresolvedLeaks(lambda finding, change: counted.append((finding, change)))
    first, second, held = make_finding(), make_finding(), make_finding(FindingKind.HELD)
    for finding in (first, second, held):
        leaks.found(finding)
    for finding in (first, first, held):
        leaks.resolved(finding)
    leaks.forget()
    leaks.forget()
    assert counted == [(first, 1), (second, 1), (first, -1), (second, -1)]


def test_of_several_threads_one_counts_it_down() -> None:
    """A connection comes back while its guard is uninstalled."""
    counted: list[int] = []
    leaks = UnresolvedLeaks(lambda _, change: counted.append(change))
    turns = threading.Barrier(2)

    def forget() -> None:
        for _ in range(200):
            turns.wait()
            leaks.forget()
            turns.wait()

    thread = threading.Thread(target=forget)
    thread.start()
    for _ in range(200):
        finding = make_finding()
        leaks.found(finding)
        turns.wait()
        leaks.resolved(finding)
        turns.wait()
    thread.join()
    assert counted == [1, -1] * 200
