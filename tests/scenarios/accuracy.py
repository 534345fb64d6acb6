"""The table of accuracy: every scenario by driver, what it must come to and what it came to."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import indent
from typing import Final

from tests.scenarios.databases import DRIVERS, Databases, Driver, Unavailable
from tests.scenarios.rows import SCENARIOS
from tests.scenarios.suite import Scenario, observe, verdict

TABLE: Final = Path(__file__).parents[2] / "docs" / "accuracy.md"
_LIMITS: Final = Path(__file__).with_name("test_limits.py")
Observed = Callable[[Scenario, Driver], Collection[str]]
"""Returns what a scenario came to with a driver: one verdict, unless it differs at times."""

_HEAD: Final = """\
# Accuracy

What people really run into, leaks and look-alikes, on real databases: the findings that each
scenario must come to, and those that it came to with every driver, **bold** where they differ.
`clean` stands for no finding at all. A cell is empty where a scenario is for other drivers.

The scenarios are in `tests/scenarios/rows/`. The tests compare the lines, the route and the status
of every finding, too, and run what is clean in every mode and 32 times at once. They hold every
driver to this table: a cell in bold would be a failing test, and be explained below.
`python -m tests.scenarios` runs each once and writes this file; with `--times 20` each runs twenty
times, in random order, and a cell says everything that a scenario came to.
"""


def render(observed: Observed) -> str:
    """Write the document, with what was observed in the cells."""
    drivers = [f"{driver.name} ({driver.database})" for driver in DRIVERS]
    lines = [_HEAD, _row(["#", "scenario", "expected", *drivers]), _row(["---"] * 10)]
    for (number, title, expected), group in groupby(SCENARIOS_BY_TITLE, key=_group):
        forms = list(group)
        cells = [_cell(forms, driver, observed) for driver in DRIVERS]
        lines.append(_row([str(number), title, expected, *cells]))
    return "\n".join([*lines, "", *_exits_first(), "", *_limits(), ""])


def expected(one: Scenario, driver: Driver) -> Collection[str]:
    """Return what a scenario must come to, as if it had."""
    return {one.verdict}


def run(
    databases: Databases, say: Callable[[str], None], *, times: int, seed: int
) -> Mapping[tuple[str, str], Collection[str]]:
    """Run every scenario with every driver, and give what each came to.

    Each runs once in each of so many rounds, in an order that depends on `seed`.
    """
    cases = [(one, driver) for one in SCENARIOS for driver in one.drivers]
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    order = random.Random(seed)  # noqa: S311  (not a secret)
    for number in range(1, times + 1):
        order.shuffle(cases)
        for one, driver in cases:
            came_to = _run_one(databases, one, driver, say)
            found[one.name, driver.name].add(came_to)
            say(f"{number}/{times} {one.name} with {driver.name}: {came_to}")
    return found


def _run_one(
    databases: Databases, one: Scenario, driver: Driver, say: Callable[[str], None]
) -> str:
    try:
        seen = observe(one, driver, databases.of(driver))
    except Unavailable as reason:
        say(str(reason))
        return "not run"
    except (AssertionError, TimeoutError) as error:
        say(repr(error))
        return "failed"
    came_to = verdict(finding.kind for finding in seen)
    elsewhere = came_to == one.verdict and seen != one.all_expected()
    return f"{came_to}, elsewhere" if elsewhere else came_to


def _group(one: Scenario) -> tuple[int, str, str]:
    return one.number, one.title, one.verdict


SCENARIOS_BY_TITLE: Final = sorted(SCENARIOS, key=_group)


def _cell(forms: list[Scenario], driver: Driver, observed: Observed) -> str:
    came_to = {one for form in forms if driver in form.drivers for one in observed(form, driver)}
    if not came_to:
        return ""
    right = forms[0].verdict
    return "; ".join(one if one == right else f"**{one}**" for one in sorted(came_to))


def _exits_first() -> Iterator[str]:
    yield "With FastAPI 0.106 to 0.117, where dependencies exit before the response, and background"
    yield "tasks take a connection for a session that has been closed:"
    yield ""
    for number, title, verdict_then in dict.fromkeys(
        (one.number, one.title, one.verdict_if_exits_first) for one in SCENARIOS_BY_TITLE
    ):
        if verdict_then is not None:
            yield f"- {number}, {title}: {verdict_then}"


def _limits() -> Iterator[str]:
    """Write what the tests of the limits say of themselves."""
    yield "## What leakguard cannot know"
    yield ""
    yield f"Each is shown by the test that is named after it, in `tests/scenarios/{_LIMITS.name}`."
    yield ""
    for node in ast.parse(_LIMITS.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            said = ast.get_docstring(node) or ""
            limit, _, consequence = said.partition("\n\n")
            assert consequence, f"{node.name} does not say what follows"
            yield f"- **{limit}**"
            yield indent(consequence, "  ")
            yield f"  (`{node.name}`)"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
