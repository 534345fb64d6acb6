"""The benchmark measures what it says, and the page shows what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.application import Workload
from benchmarks.children import BASE, Way, compare, measure

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("work", ["nothing", "sync", "async", "leaking", "without session"])
def test_each_way_answers_the_requests_that_are_asked_for(work: str) -> None:
    """And every round is compared with the bare one of the same round."""
    ways = {way: Way((way, *Workload(work))) for way in (BASE, "leakguard, production")}
    figures = measure("application", ways, rounds=2, number=2)
    assert [len(of_way) for of_way in figures.values()] == [2, 2]
    compared = compare(figures, "micros")
    assert compared[BASE].ratio == 1.0
    assert compared["leakguard, production"].value > 0.0


def test_what_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """With what its process said last."""
    ways = {BASE: Way((BASE, *Workload("nothing"))), "no such": Way(("no such", 1))}
    assert list(measure("application", ways, rounds=2, number=1)) == [BASE]
    assert "no such is left out: " in capsys.readouterr().err


def test_figures_are_compared_by_round() -> None:
    """A machine that drifts hits all alike."""
    figures = {
        BASE: [{"micros": 100.0}, {"micros": 200.0}, {"micros": 400.0}],
        "way": [{"micros": 110.0}, {"micros": 220.0}, {"micros": 440.0}],
    }
    way = compare(figures, "micros")["way"]
    assert (way.value, way.added, way.ratio) == (220.0, 20.0, 1.1)
    assert (way.added_low, way.added_high) == (15.0, 30.0)


def test_the_page_shows_the_figures() -> None:
    """Whoever measures anew writes both."""
    content = json.loads((DOCS / "performance.json").read_text(encoding="utf-8"))
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert page.filled(text, content) == text
