"""Run the tests with every supported version, and write down which passed: docs/support.md.

Started by `scripts/matrix`. tox makes the environments and runs the tests; which versions there are
is said in pyproject.toml: [tool.tox] lists them, and each is a dependency group.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

from scripts._matrix_page import PAGE, read_results, table, troubles, written

ROOT: Final = Path(__file__).resolve().parent.parent
CONSTRAINTS: Final = ROOT / ".ci" / "constraints.txt"
WORK: Final = ROOT / ".tox"
AT_ONCE: Final = 2
"""How many environments run at the same time."""

CORNERS: Final = (
    "py311-sqlalchemy2030-fastapi0105",  # the oldest of everything
    "py312-sqlalchemy2030-fastapi01171",  # dependencies exit before the response ...
    "py311-sqlalchemy21-fastapi0118",  # ... and after it, from here on
    "py313-sqlalchemy21-fastapi",  # the newest of everything
    "py313-sqlalchemy2030-starlette",
)
"""What continuous integration runs. None has `sqlalchemy20`, which nothing pins."""


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for, print the table, and give 1 where something is wrong."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    factors = factors_of(pyproject)
    asked = parsed(arguments, product(factors))
    names = asked.environments or chosen(factors, everything=asked.all, corners=asked.corners)
    pythons = [python_for(name) for name in sorted({name.split("-")[0] for name in names})]
    write_constraints(names, pyproject["dependency-groups"])
    outcomes = read_results(run(names, pythons), names)
    text = table(outcomes, factors)
    print(f"\n{text}")
    if not (asked.environments or asked.corners):
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    wrong = troubles(outcomes)
    print("\n".join(wrong) or "Everything passed, and nothing was skipped.")
    return int(bool(wrong))


def parsed(arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/matrix", description=__doc__)
    parser.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help="these only")
    few = parser.add_mutually_exclusive_group()
    few.add_argument("--all", action="store_true", help="every combination, not every pair")
    few.add_argument("--corners", action="store_true", help="what continuous integration runs")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.environments) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are:\n" + "\n".join(names))
    if asked.environments and (asked.all or asked.corners):
        parser.error("name environments, or ask for --all or --corners, not both")
    return asked


# --- which environments ---------------------------------------------------------------------------


def factors_of(pyproject: dict[str, Any]) -> list[list[str]]:
    """Return the versions of Python, of SQLAlchemy and of the framework, as tox calls them."""
    (listed,) = pyproject["tool"]["tox"]["env_list"]
    return [versions for labelled in listed["product"] for versions in labelled.values()]


def product(factors: list[list[str]]) -> list[str]:
    """Name every combination."""
    pythons, sqlalchemys, frameworks = factors
    return [f"{p}-{s}-{f}" for p in pythons for s in sqlalchemys for f in frameworks]


def pairs(factors: list[list[str]]) -> list[str]:
    """Name as few combinations as hold every two versions of different things together once.

    There are as many versions of Python as of SQLAlchemy, and the frameworks take turns: with each
    Python every framework runs, each with the SQLAlchemy that is next in line. The oldest of
    everything is among them.
    """
    pythons, sqlalchemys, frameworks = factors
    return [
        f"{python}-{sqlalchemy}-{framework}"
        for p, python in enumerate(pythons)
        for s, sqlalchemy in enumerate(sqlalchemys)
        for f, framework in enumerate(frameworks)
        if (f - p - s) % len(sqlalchemys) == 0
    ]


def chosen(factors: list[list[str]], *, everything: bool, corners: bool) -> list[str]:
    """Return the environments that nobody has named."""
    if corners:
        return list(CORNERS)
    return product(factors) if everything else pairs(factors)


# --- what they need -------------------------------------------------------------------------------


def python_for(factor: str) -> str:
    """Find the Python of a factor like `py312`, on PATH or among those of pyenv."""
    version = f"{factor[2]}.{factor[3:]}"
    for program in candidates(f"python{version}"):
        if runs(program, version):
            return program
    sys.exit(
        f"The matrix needs Python {version}, which is neither on PATH nor in ~/.pyenv/versions.\n"
        f"Install it, for example with: pyenv install {version}"
    )


def candidates(program: str) -> Iterator[str]:
    """Return the programs of that name."""
    for folder in os.get_exec_path():
        if found := shutil.which(program, path=folder):
            yield found
    for path in sorted((Path.home() / ".pyenv" / "versions").glob(f"*/bin/{program}")):
        yield str(path)


def runs(program: str, version: str) -> bool:
    """Return whether a program is what its name says; pyenv puts stand-ins on PATH that fail."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([program, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version


def write_constraints(names: Sequence[str], groups: dict[str, list[Any]]) -> None:
    """Write, for every environment, the pins of development that its versions do not rule out."""
    pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    folder = WORK / "constraints"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        _, sqlalchemy, framework = name.split("-")
        wanted = [Requirement(line) for line in (*groups[sqlalchemy], *groups[framework])]
        kept = constraints(pins, wanted)
        (folder / f"{name}.txt").write_text("\n".join([*kept, ""]), encoding="utf-8")


def constraints(pins: Sequence[str], wanted: Sequence[Requirement]) -> list[str]:
    """Return the pins that agree with what is wanted, and what is wanted in place of the others."""
    kept: list[str] = []
    for pin in pins:
        name, _, version = pin.partition("==")
        rivals = [one for one in wanted if normal(one.name) == normal(name)]
        ruled_out = not all(one.specifier.contains(version) for one in rivals)
        kept.extend(map(str, rivals) if ruled_out else [pin])
    return kept


def normal(name: str) -> str:
    """Return the one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


# --- running --------------------------------------------------------------------------------------


def run(names: Sequence[str], pythons: Sequence[str]) -> dict[str, Any]:
    """Have tox make the environments anew and run the tests; give what it writes of it."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "tox", "run-parallel"),
                *("--parallel", str(AT_ONCE), "--parallel-no-spinner", "--recreate"),
                *("--result-json", str(results), "--workdir", str(WORK)),
                *("--discover", *pythons),
                *("-e", ",".join(names)),
            ],
            cwd=ROOT,
            check=False,  # the results say what failed
        )
        if not results.exists():
            sys.exit("tox has not run, see above.")
        found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
