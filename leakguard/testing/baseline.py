"""The baseline: a file of the leaks that are known, so that only new ones count."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from leakguard.testing.leaks import Leaks

_VERSION: Final = 1


class Known(NamedTuple):
    """A leak that is known."""

    fingerprint: str
    what: str
    """The first line of its report when it was written down, for those who read the file."""
    tests: tuple[str, ...]
    """The tests that made it."""


class Baseline:
    """What a file says is known; nothing where there is no such file yet."""

    def __init__(self, path: Path, known: Iterable[Known] = ()) -> None:
        self._path = path
        self._known: dict[str, Known] = {one.fingerprint: one for one in known}

    def __str__(self) -> str:
        number = len(self._known)
        return f"{self._path}: {number} known leak" + "s" * (number != 1)

    def __contains__(self, fingerprint: str) -> bool:
        return fingerprint in self._known

    def gone(self, leaks: Leaks) -> list[Known]:
        """Return what nobody made, though a test ran that used to."""
        return [
            one
            for one in self._known.values()
            if one.fingerprint not in leaks.groups and not leaks.ran.isdisjoint(one.tests)
        ]

    def updated(self, leaks: Leaks) -> Baseline:
        """Return what is known after a run: what it found, and what its tests could not tell."""
        gone = {one.fingerprint for one in self.gone(leaks)}
        known = {name: one for name, one in self._known.items() if name not in gone}
        for fingerprint, group in leaks.groups.items():
            before = known.get(fingerprint)
            # Tests that did not run may make it as before.
            others = () if before is None else set(before.tests) - leaks.ran
            tests = tuple(sorted({*others, *group.stages}))
            known[fingerprint] = Known(fingerprint, group.first["headline"], tests)
        return Baseline(self._path, sorted(known.values(), key=lambda one: one.fingerprint))

    def write(self) -> None:
        """Write the file."""
        leaks = [
            {"fingerprint": one.fingerprint, "what": one.what, "tests": list(one.tests)}
            for one in self._known.values()
        ]
        text = json.dumps({"leakguard_baseline": _VERSION, "leaks": leaks}, indent=2)
        self._path.write_text(text + "\n", encoding="utf-8")


def read_baseline(path: Path, *, may_be_missing: bool) -> Baseline:
    """Read a baseline.

    Raises `pytest.UsageError` where there is no such file, or it is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if may_be_missing:
            return Baseline(path)
        raise pytest.UsageError(
            f"there is no baseline {path}; add --leakguard-update-baseline to have it written"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise pytest.UsageError(f"cannot read the baseline {path}: {error}") from error
    try:
        return Baseline(path, _parse(json.loads(text)))
    except (ValueError, TypeError, KeyError) as error:
        raise pytest.UsageError(
            f"{path} is no baseline of leakguard's ({error}); write it with "
            "--leakguard-update-baseline"
        ) from error


def _parse(content: Any) -> list[Known]:  # noqa: ANN401  (what a file says)
    if not isinstance(content, dict) or content.get("leakguard_baseline") != _VERSION:  # pyright: ignore[reportUnknownMemberType]
        raise ValueError(f'it does not begin with "leakguard_baseline": {_VERSION}')
    return [
        Known(str(one["fingerprint"]), str(one["what"]), tuple(one["tests"]))
        for one in cast("list[dict[str, Any]]", content["leaks"])
    ]
