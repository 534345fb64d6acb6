"""Logs for machines: the formatters that write JSON show every fact, and no leak is a flood."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from leakguard import LeakGuard, LeakGuardMiddleware, Log
from leakguard.core.facts import flat_facts
from tests.core.fakes import make_finding
from tests.load.client import call
from tests.support import PATIENCE, drain_watch

QUERY = text("SELECT 1")
ROOT = Path(__file__).parents[2]
RECIPES = re.findall(
    r"^### (.+?)\n.*?```python\n(.*?)```",
    (ROOT / "docs/logs.md").read_text(),
    flags=re.DOTALL | re.MULTILINE,
)
LEAK = """
from sqlalchemy import create_engine, text
from leakguard import LeakGuard

engine = create_engine("sqlite://", pool_logging_name="main")
with LeakGuard(mode="production") as guard, guard.scope("nightly"):
    kept = engine.connect()
    kept.execute(text("SELECT 'secret'"))
"""


@pytest.mark.parametrize("name, recipe", RECIPES, ids=[name for name, _ in RECIPES])
def test_a_formatter_for_json_shows_every_fact(name: str, recipe: str) -> None:
    """As the page on logs sets it up, in a program of its own."""
    assert name
    done = subprocess.run(  # noqa: S603  (our own program)
        [sys.executable, "-c", recipe + LEAK],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        cwd=ROOT,
    )
    record: dict[str, Any] = json.loads(done.stderr)
    fields = {name for name in record if name.startswith("leakguard_")}
    assert fields == {f"leakguard_{name}" for name in flat_facts(make_finding())}
    assert record["leakguard_kind"] == "leaked"
    assert record["leakguard_pool"] == "main"
    assert record["leakguard_scope"] == "nightly"
    assert record["leakguard_acquired_at_function"] == "<module>"
    message = record.get("message", record.get("event"))
    assert isinstance(message, str)
    assert message.startswith("leaked: nightly (in ")
    assert "secret" not in done.stderr


def test_there_is_a_recipe_for_each_of_them() -> None:
    """Those that the page names."""
    assert [name for name, _ in RECIPES] == ["python-json-logger", "structlog"]


def test_a_thousand_leaking_requests_are_a_handful_of_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One for each of the two mistakes, though one of them is rare, and when they are resolved.

    At the end there is one more of each kind, for those that were counted.
    """
    engine = create_engine("sqlite://", poolclass=NullPool)
    kept: list[Session] = []

    async def often(_: Request) -> PlainTextResponse:
        kept.append(Session(engine))
        kept[-1].execute(QUERY)
        return PlainTextResponse("leaked")

    async def seldom(_: Request) -> PlainTextResponse:
        kept.append(Session(engine))
        kept[-1].execute(QUERY)
        return PlainTextResponse("leaked, too")

    async def requests() -> None:
        for number in range(1000):
            assert await call(app, "/seldom" if number == 500 else "/often") == 200

    with caplog.at_level(logging.INFO, "leakguard"), LeakGuard(observers=[Log()]) as guard:
        app = Starlette(
            routes=[Route("/often", often), Route("/seldom", seldom)],
            middleware=[Middleware(LeakGuardMiddleware, guard=guard)],
        )
        asyncio.run(requests())
        for session in kept:
            session.close()
        drain_watch()
    lines = [record.getMessage() for record in caplog.records]
    assert [re.split(r" \(| from", line)[0] for line in lines if line.startswith("leaked")] == [
        "leaked: GET /often",
        "leaked: GET /seldom",
        "leaked: 998 more times",
    ]
    resolved = [line for line in lines if line.startswith("resolved")]
    assert ["and 997 more like it [" in line for line in resolved] == [False, False, True]
    assert len(lines) == 6
