"""The command that runs every supported version: what it chooses, installs and writes."""

from __future__ import annotations

import re
import tomllib
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from scripts import _matrix as matrix
from scripts import _matrix_page as page
from tests.conftest import NEED_FASTAPI

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
FACTORS = matrix.factors_of(PYPROJECT)
OLDEST = "py311-sqlalchemy2030-fastapi0105"
NEWEST = "py313-sqlalchemy21-fastapi"
ALONE = "py311-sqlalchemy21-starlette"


def test_every_supported_version_was_run() -> None:
    """The table is there, with a row for each version of Python, and nothing failed."""
    rows = [line.split("|")[1:-1] for line in page.PAGE.read_text().splitlines() if "|" in line]
    header, _, *cells = [[cell.strip() for cell in row] for row in rows]
    assert {row[0] for row in cells} == {factor_version(factor) for factor in FACTORS[0]}
    assert {cell for row in cells for cell in row[2:] if not re.fullmatch(r"\d+ passed", cell)} == {
        ""
    }
    assert len(header) == 2 + len(FACTORS[2])


def factor_version(factor: str) -> str:
    """Return the version of Python that a factor like `py312` stands for."""
    return f"{factor[2]}.{factor[3:]}"


def test_the_page_has_a_place_for_the_table() -> None:
    """Else a run of hours ends in an error."""
    assert "| the table |" in page.written(page.PAGE.read_text(), "| the table |")


# --- which environments ---------------------------------------------------------------------------


def test_every_pair_of_versions_is_run() -> None:
    """Without arguments, every two versions of different things meet, and no two meet in vain."""
    wanted = {pair for one, other in combinations(FACTORS, 2) for pair in product(one, other)}
    names = matrix.chosen(FACTORS, everything=False, corners=False)
    met = [frozenset(pair) for name in names for pair in combinations(name.split("-"), 2)]
    assert set(met) == {frozenset(pair) for pair in wanted}
    assert len(names) == 18


def test_all_is_every_combination() -> None:
    """It holds those that run without arguments, too."""
    names = matrix.chosen(FACTORS, everything=True, corners=False)
    assert len(names) == 54
    assert set(names) > set(matrix.pairs(FACTORS))


def test_the_corners_are_pinned_and_reach_from_the_oldest_to_the_newest() -> None:
    """All that nothing pins is `sqlalchemy20`; what passes today must pass tomorrow."""
    names = matrix.chosen(FACTORS, everything=False, corners=True)
    used = {factor for name in names for factor in name.split("-")}
    assert {OLDEST, NEWEST} <= set(names) <= set(matrix.pairs(FACTORS))
    assert {factor for factors in FACTORS for factor in factors} - used == {
        "fastapi0136",
        "sqlalchemy20",
    }


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["py39-sqlalchemy20-fastapi"], "there is no py39-sqlalchemy20-fastapi; there are:"),
        ([OLDEST, "--corners"], "not both"),
        (["--all", "--corners"], "not allowed with"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error says what is wrong with the command."""
    with pytest.raises(SystemExit):
        matrix.parsed(arguments, matrix.product(FACTORS))
    assert said in capsys.readouterr().err


def test_what_needs_fastapi_is_left_out_where_starlette_is_alone() -> None:
    """The list of such tests names files that are there, and all that import FastAPI themselves."""
    tests = ROOT / "tests"
    importing = {
        str(path.relative_to(tests))
        for folder in ("applications", "core", "observers", "scenarios", "sources")
        for path in (tests / folder).glob("test_*.py")
        if re.search(r"^(from|import) fastapi\b", path.read_text(), re.MULTILINE)
    }
    assert importing <= set(NEED_FASTAPI)
    assert [name for name in NEED_FASTAPI if not (tests / name).exists()] == []


# --- what they need -------------------------------------------------------------------------------


def program(folder: Path, prints: str) -> Path:
    """Make a Python 3.12 that only prints."""
    folder.mkdir(parents=True)
    path = folder / "python3.12"
    path.write_text(f"#!/bin/sh\necho {prints}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder; there is no Python in it, and none on PATH."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_a_missing_python_is_named(home: Path) -> None:
    """The error says which, where it was looked for, and how to get it."""
    with pytest.raises(SystemExit) as error:
        matrix.python_for("py312")
    assert "needs Python 3.12, which is neither on PATH nor in ~/.pyenv" in str(error.value)


def test_a_python_of_pyenv_is_found(home: Path) -> None:
    """Also behind a stand-in on PATH that runs another one, or none."""
    program(home / "bin", prints="3.11")
    right = program(home / ".pyenv" / "versions" / "3.12.1" / "bin", prints="3.12")
    assert matrix.python_for("py312") == str(right)


def test_a_python_on_path_is_found(home: Path) -> None:
    """It comes before those of pyenv."""
    right = program(home / "bin", prints="3.12")
    program(home / ".pyenv" / "versions" / "3.12.1" / "bin", prints="3.12")
    assert matrix.python_for("py312") == str(right)


def test_the_pins_hold_unless_they_are_ruled_out() -> None:
    """What is wanted takes the place of a pin that contradicts it, and of no other."""
    pins = ["anyio==4.16.0", "idna==3.20", "SQLAlchemy==2.1.9", "typing_extensions==4.16.0"]
    wanted = ["anyio<4", "sqlalchemy==2.1.*", "typing-extensions<4"]
    assert matrix.constraints(pins, [Requirement(one) for one in wanted]) == [
        "anyio<4",
        "idna==3.20",
        "SQLAlchemy==2.1.9",
        "typing-extensions<4",
    ]


def test_a_version_may_depend_on_python() -> None:
    """Both stand in for the pin; pip looks at what is said of Python."""
    wanted = ["sqlalchemy==2.0.30; python_version < '3.13'", "sqlalchemy==2.0.31"]
    assert matrix.constraints(["SQLAlchemy==2.1.9"], [Requirement(one) for one in wanted]) == [
        'sqlalchemy==2.0.30; python_version < "3.13"',
        "sqlalchemy==2.0.31",
    ]


def test_the_newest_is_what_development_has() -> None:
    """The newest of everything is pinned throughout; the oldest is what leakguard asks for."""
    pins = matrix.CONSTRAINTS.read_text().splitlines()
    groups = PYPROJECT["dependency-groups"]
    newest = [Requirement(one) for factor in NEWEST.split("-")[1:] for one in groups[factor]]
    assert matrix.constraints(pins, newest) == pins
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["fastapi"]]
    oldest = {Requirement(one).name: Requirement(one).specifier for one in asked}
    assert oldest["sqlalchemy"] == ">=2.0.30"
    assert groups["sqlalchemy2030"][0] == "sqlalchemy==2.0.30; python_version < '3.13'"
    assert oldest["fastapi"] == ">=0.105"
    assert groups["fastapi0105"][0] == "fastapi==0.105.*"


# --- what they came to ----------------------------------------------------------------------------


def ran(output: str, *, fastapi: str | None = "0.105.0", success: bool = True) -> dict[str, Any]:
    """Return what tox writes of an environment in which tests ran."""
    installed = ["SQLAlchemy==2.0.30", "starlette==0.27.0", "tzdata @ file:///somewhere"]
    installed += [f"fastapi=={fastapi}"] if fastapi else []
    result = {"success": success}
    return {"installed_packages": installed, "test": [{"output": output}], "result": result}


def outcome(output: str, **options: Any) -> page.Outcome:
    (one,) = page.read_results({"testenvs": {OLDEST: ran(output, **options)}}, [OLDEST])
    return one


def test_an_environment_that_passed_says_how_many() -> None:
    """Tests that are left out on purpose do not count."""
    one = outcome("....\n4 passed, 2 deselected in 3.21s\n")
    assert (one.cell, one.troubles) == ("4 passed", ())


def test_an_environment_that_failed_says_what() -> None:
    """What failed comes first, and is named."""
    output = (
        "FAILED tests/test_a.py::test_it[x y] - assert 1\nERROR tests/test_b.py - ImportError\n"
        "==== 1 failed, 7 passed, 1 error in 63.21s (0:01:03) ====\n"
    )
    one = outcome(output, success=False)
    assert one.cell == "1 failed, 1 error, 7 passed"
    assert one.troubles == ("failed: tests/test_a.py::test_it[x y]", "failed: tests/test_b.py")


def test_a_test_that_was_skipped_is_trouble() -> None:
    """Unless its reason says that it cannot be helped."""
    output = (
        "SKIPPED [1] tests/core/test_lock.py:16: cannot run in CI: this system does not fork\n"
        "SKIPPED [3] tests/test_a.py:1: needs PostgreSQL\n7 passed, 4 skipped in 1s\n"
    )
    one = outcome(output)
    assert one.cell == "4 skipped, 7 passed"
    assert one.troubles == ("skipped: tests/test_a.py:1: needs PostgreSQL",)


@pytest.mark.parametrize(
    "result, cell",
    [
        ({}, "not installed"),
        (ran("Timeout!", success=False), "no test ran"),
    ],
)
def test_an_environment_without_a_result_is_trouble(result: dict[str, Any], cell: str) -> None:
    """Its cell does not stay empty."""
    (one,) = page.read_results({"testenvs": {OLDEST: result}}, [OLDEST])
    assert (one.cell, one.troubles) == (cell, (cell,))


def test_a_failure_that_is_no_test_s_is_trouble() -> None:
    """As when what the run left behind does not come to an end."""
    assert outcome("4 passed in 1s", success=False).troubles == ("tox says that it failed",)


def test_troubles_say_where() -> None:
    """Each is a line with the name of its environment."""
    outcomes = page.read_results({"testenvs": {}}, [OLDEST, NEWEST])
    assert page.troubles(outcomes) == [f"{OLDEST}: not installed", f"{NEWEST}: not installed"]


# --- the page -------------------------------------------------------------------------------------


def test_the_table_has_the_installed_versions() -> None:
    """Python and SQLAlchemy downwards, FastAPI with its Starlette to the right."""
    results = {OLDEST: ran("4 passed in 1s"), ALONE: ran("3 passed in 1s", fastapi=None)}
    results[ALONE]["installed_packages"][:2] = ["SQLAlchemy==2.1.9", "starlette==1.10.0"]
    text = page.table(page.read_results({"testenvs": results}, [ALONE, OLDEST]), FACTORS)
    assert text.splitlines() == [
        "| Python | SQLAlchemy | FastAPI 0.105.0, Starlette 0.27.0 | Starlette 1.10.0 alone |",
        "| --- | --- | --- | --- |",
        "| 3.11 | 2.0.30 | 4 passed |  |",
        "| 3.11 | 2.1.9 |  | 3 passed |",
    ]


def test_the_rest_of_the_page_stays() -> None:
    """Only what is between the two lines is replaced, and writing it again changes nothing."""
    once = page.written(f"# Title\n\n{page.BEGIN}\nold\n{page.END}\n\nrest\n", "| new |")
    assert once == f"# Title\n\n{page.BEGIN}\n\n| new |\n\n{page.END}\n\nrest\n"
    assert page.written(once, "| new |") == once


def test_a_page_without_the_lines_is_refused() -> None:
    """Nothing is lost where the table has no place."""
    with pytest.raises(ValueError, match=r"support\.md lacks the lines"):
        page.written("# Title\n", "| new |")
