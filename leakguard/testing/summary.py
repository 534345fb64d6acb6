"""What a run says of its leaks at its end: on the terminal, to machines, to GitHub."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from leakguard.core.callsite import relative_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from leakguard.testing.baseline import Known
    from leakguard.testing.leaks import Group, Leaks

_NAMED: Final = 3
"""How many tests of a leak are named on the terminal; the report for machines has all."""
_VERSION: Final = 1


def title(leaks: Leaks) -> str:
    """Say how many tests leak, and how many distinct leaks they have: of those that are new."""
    groups = leaks.of(known=False)
    distinct = _count(len(groups), "distinct leak")
    if not groups:
        return "no new leaks"
    made = _makers(leaks, groups)
    return f"{made}, {distinct}" if made else distinct


def lines(leaks: Leaks, gone: list[Known]) -> Iterator[str]:
    """Write the lines of the summary."""
    for group in leaks.of(known=False):
        leak = group.first
        yield leak["headline"]
        if leak["file"] is not None:
            yield f"  at   {relative_path(leak['file'])}:{leak['line']} in {leak['function']}"
        yield f"  fix  {leak['fix']}"
        yield f"  {_by(leaks, group)} [{leak['fingerprint']}]"
    known = leaks.of(known=True)
    if known:
        yield f"{_count(len(known), 'leak')} of the baseline, in {_makers(leaks, known)}"
    for one in gone:
        yield f"gone: {one.what} [{one.fingerprint}]"
    if gone:
        yield "--leakguard-update-baseline takes out of the baseline what is gone"


def write_report(path: Path, leaks: Leaks, reaction: str) -> None:
    """Write all there is for machines, as JSON."""
    groups: list[dict[str, Any]] = [
        {
            "fingerprint": fingerprint,
            "known": group.first["known"],
            "fails": group.fails,
            "count": group.count,
            "tests": list(group.stages),
            "finding": group.first["facts"],
        }
        for fingerprint, group in leaks.groups.items()
    ]
    content = {
        "leakguard_report": _VERSION,
        "reaction": reaction,
        "tests_run": len(leaks.tests),
        "leaks": groups,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def workflow_commands(leaks: Leaks) -> Iterator[str]:
    """Write the commands by which GitHub shows each leak at its line of the pull request."""
    for group in leaks.of(known=False):
        leak = group.first
        level = "error" if group.fails else "warning"
        place = ""
        if leak["file"] is not None and not leak["file"].startswith("<"):  # as of a doctest
            # As its runner wants it, wherever in the repository pytest runs.
            path = os.path.relpath(leak["file"], os.environ.get("GITHUB_WORKSPACE"))
            place = f"file={_property(path)},line={leak['line']},"
        text = f"{leak['headline']}\nfix: {leak['fix']}\n{_by(leaks, group)}"
        yield f"::{level} {place}title=connection leak::{_data(text)}"


def _by(leaks: Leaks, group: Group) -> str:
    stages = list(group.stages)
    if not stages:
        return "found when no test ran"
    more = "" if len(stages) <= _NAMED else f" and {len(stages) - _NAMED} more"
    return f"{_makers(leaks, [group])}: {', '.join(stages[:_NAMED])}{more}"


def _makers(leaks: Leaks, groups: list[Group]) -> str:
    """Count the tests and the wider fixtures that made these leaks."""
    stages = {stage for group in groups for stage in group.stages}
    tests = len(stages & leaks.tests)
    counts = [(tests, "test"), (len(stages) - tests, "fixture")]
    return " and ".join(_count(number, noun) for number, noun in counts if number)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
