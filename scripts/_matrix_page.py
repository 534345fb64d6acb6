"""The table of support: what tox says of its environments, read and written down."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "support.md"
BEGIN: Final = "<!-- What follows is written by scripts/matrix. -->"
END: Final = "<!-- What precedes is written by scripts/matrix. -->"

_EXCUSE: Final = "cannot run in CI:"
"""How the reason of a test begins that may be skipped."""
_SUMMARY: Final = re.compile(r"^(?:=+ )?(\d+ .*) in [\d.]+s\b", re.MULTILINE)
_COUNT: Final = re.compile(r"(\d+) (passed|failed|errors?|skipped)")
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
_SKIPPED: Final = re.compile(r"^SKIPPED \[\d+\] (.+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of one environment."""

    name: str
    installed: Mapping[str, str]
    """The versions of the packages that were really installed, by their names in lower case."""
    cell: str
    """What the table says: how many tests passed, and what did not."""
    troubles: tuple[str, ...]
    """What must not be: tests that failed or were skipped, or that none were run."""

    @property
    def row(self) -> tuple[str, str]:
        """The factors of Python and of SQLAlchemy."""
        python, sqlalchemy, _ = self.name.split("-")
        return python, sqlalchemy

    @property
    def framework(self) -> str:
        """The factor of FastAPI, or `starlette`."""
        return self.name.split("-")[2]


# --- reading --------------------------------------------------------------------------------------


def read_results(results: Mapping[str, Any], names: Sequence[str]) -> list[Outcome]:
    """Read what `tox --result-json` has written of these environments."""
    return [_outcome(name, results["testenvs"].get(name, {})) for name in names]


def _outcome(name: str, result: Mapping[str, Any]) -> Outcome:
    pairs = (line.partition("==") for line in result.get("installed_packages", ()))
    installed = {package.lower(): version for package, _, version in pairs}
    output = "".join(run["output"] for run in result.get("test", ()))
    summaries = _SUMMARY.findall(output)
    if not summaries:
        cell = "no test ran" if installed else "not installed"
        return Outcome(name, installed, cell, (cell,))
    counts = [f"{n} {what}" for n, what in _COUNT.findall(summaries[-1])]
    found = [f"failed: {test}" for test in _FAILED.findall(output)]
    found += [f"skipped: {why}" for why in _SKIPPED.findall(output) if f": {_EXCUSE}" not in why]
    if not found and not result.get("result", {}).get("success"):
        found.append("tox says that it failed")
    return Outcome(name, installed, ", ".join(sorted(counts, key=_gravity)), tuple(found))


def _gravity(count: str) -> bool:
    return "passed" in count


def troubles(outcomes: Iterable[Outcome]) -> list[str]:
    """Return what must not be, a line each."""
    return [f"{one.name}: {trouble}" for one in outcomes for trouble in one.troubles]


# --- writing --------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome], factors: Sequence[Sequence[str]]) -> str:
    """Write the table: Python and SQLAlchemy downwards, FastAPI with its Starlette to the right."""
    pythons, sqlalchemys, frameworks = factors
    columns = {
        framework: [one for one in outcomes if one.framework == framework]
        for framework in frameworks
    }
    columns = {framework: column for framework, column in columns.items() if column}
    rows = [["Python", "SQLAlchemy", *map(_head, columns.values())], ["---"] * (2 + len(columns))]
    for python in pythons:
        for sqlalchemy in sqlalchemys:
            cells = [
                "".join(one.cell for one in column if one.row == (python, sqlalchemy))
                for column in columns.values()
            ]
            if any(cells):
                mine = [one for one in outcomes if one.row == (python, sqlalchemy)]
                rows.append([f"{python[2]}.{python[3:]}", _versions(mine, "sqlalchemy"), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _head(column: Sequence[Outcome]) -> str:
    starlette = f"Starlette {_versions(column, 'starlette')}"
    if column[0].framework == "starlette":
        return f"{starlette} alone"
    return f"FastAPI {_versions(column, 'fastapi')}, {starlette}"


def _versions(outcomes: Iterable[Outcome], package: str) -> str:
    found = {one.installed[package] for one in outcomes if package in one.installed}
    return " or ".join(sorted(found)) or "not installed"


def written(page: str, table: str) -> str:
    """Return the page with the table in place of the one that it has."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE.name} lacks the lines between which the table goes: {BEGIN} {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
