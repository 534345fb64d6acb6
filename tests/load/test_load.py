"""Leaks hidden at random among many requests: each found once, on its request and line."""

from __future__ import annotations

import pytest

from tests.load.plan import SERVERS, Plan
from tests.load.run import run


@pytest.mark.parametrize("server", SERVERS)
def test_every_hidden_leak_is_found_once_and_nothing_else(server: str) -> None:
    """60 leaks of 1,500 requests are found on their requests, routes and lines, and resolved."""
    outcome = run(Plan(requests=1500, leaks=60, clients=16, seed=1, server=server))
    assert outcome.wrong == []
    assert outcome.found == outcome.resolved == outcome.open_then == 60
    assert outcome.open_now == 0
    assert all(result.planted for result in outcome.results), "a process had nothing to do"
