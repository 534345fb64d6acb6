"""Fixtures of several modules here."""

from __future__ import annotations

import pytest


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have any number of tasks count as many."""
    monkeypatch.setattr("leakguard.core.task_scan.MANY", -1)
