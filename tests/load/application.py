"""An application with healthy routes and leaking ones, each of them on a line of its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from leakguard import LeakGuard, LeakGuardMiddleware, Scope
from leakguard.core.scope import current_scope

VARIANTS = 5
"""How many routes there are for every way to leak."""
WAYS = (
    "sync_session",
    "sync_dependency",
    "sync_raw",
    "async_session",
    "async_dependency",
    "async_core",
)
HEALTHY = ("sync_ok", "sync_error", "sync_twice", "async_ok", "async_error", "async_stream")

_HEAD = """
from fastapi import Depends
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

QUERY = text("SELECT 1")


def install(app, site):
    def sync_db():
        with Session(site.engine) as db:
            yield db

    async def async_db():
        async with AsyncSession(site.async_engine) as db:
            yield db

    @app.get("/sync_ok/{number}")
    def sync_ok(number: int, db: Session = Depends(sync_db)):
        return db.scalar(QUERY)

    @app.get("/sync_error/{number}")
    def sync_error(number: int, db: Session = Depends(sync_db)):
        db.scalar(QUERY)
        raise KeyError(number)

    @app.get("/sync_twice/{number}")
    def sync_twice(number: int, db: Session = Depends(sync_db)):
        db.scalar(QUERY)
        db.commit()
        return db.scalar(QUERY)

    @app.get("/async_ok/{number}")
    async def async_ok(number: int, db: AsyncSession = Depends(async_db)):
        return await db.scalar(QUERY)

    @app.get("/async_error/{number}")
    async def async_error(number: int, db: AsyncSession = Depends(async_db)):
        await db.scalar(QUERY)
        raise KeyError(number)

    @app.get("/async_stream/{number}")
    async def async_stream(number: int, db: AsyncSession = Depends(async_db)):
        async def rows():
            for _ in range(3):
                yield str(await db.scalar(QUERY))

        return StreamingResponse(rows())
"""

_LEAKS = """
    @app.get("/sync_session_{v}/{{number}}")
    def sync_session_{v}(number: int):
        db = site.plant(number, Session(site.engine))  # created sync_session_{v}
        return db.scalar(QUERY)  # taken sync_session_{v}

    def sync_db_{v}(number: int):
        db = site.plant(number, Session(site.engine))  # created sync_dependency_{v}
        yield db
        db.close()

    @app.get("/sync_dependency_{v}/{{number}}")
    def sync_dependency_{v}(number: int, db: Session = Depends(sync_db_{v})):
        db.scalar(QUERY)  # taken sync_dependency_{v}
        raise KeyError(number)

    @app.get("/sync_raw_{v}/{{number}}")
    def sync_raw_{v}(number: int):
        site.plant(number, site.engine.raw_connection())  # taken sync_raw_{v}

    @app.get("/async_session_{v}/{{number}}")
    async def async_session_{v}(number: int):
        db = site.plant(number, AsyncSession(site.async_engine))  # created async_session_{v}
        return await db.scalar(QUERY)  # taken async_session_{v}

    async def async_db_{v}(number: int):
        db = site.plant(number, AsyncSession(site.async_engine))  # created async_dependency_{v}
        yield db
        await db.close()

    @app.get("/async_dependency_{v}/{{number}}")
    async def async_dependency_{v}(number: int, db: AsyncSession = Depends(async_db_{v})):
        await db.scalar(QUERY)  # taken async_dependency_{v}
        raise KeyError(number)

    @app.get("/async_core_{v}/{{number}}")
    async def async_core_{v}(number: int):
        site.plant(number, await site.async_engine.connect())  # taken async_core_{v}
"""


@dataclass
class Site:
    """The application, its engines, and what was planted: the leaks by number."""

    folder: Path
    guard: LeakGuard
    engine: Engine = field(init=False)
    async_engine: AsyncEngine = field(init=False)
    planted: dict[int, tuple[Scope | None, Any]] = field(default_factory=dict[int, Any])
    """Which scope the request with a number had, and what it did not give back."""
    lines: dict[str, int] = field(default_factory=dict[str, int])
    """The marked lines of the generated source."""

    def __post_init__(self) -> None:
        file = self.folder / "load.db"
        self.engine = create_engine(
            f"sqlite:///{file}", max_overflow=-1, connect_args={"check_same_thread": False}
        )
        self.async_engine = create_async_engine(f"sqlite+aiosqlite:///{file}", max_overflow=-1)

    def plant(self, number: int, what: Any) -> Any:
        """Keep `what` so that nobody gives it back, and note whose it is."""
        assert number not in self.planted
        self.planted[number] = current_scope.get(), what
        return what

    def application(self) -> FastAPI:
        """Make the application from source that is written to a file, so that it has lines."""
        app = FastAPI()
        leaks = (_LEAKS.format(v=variant) for variant in range(VARIANTS))
        source = "".join((_HEAD, *leaks))
        self.lines = dict(_marked(source))
        module = _load(self.folder / "generated_load_routes.py", source)
        module.install(app, self)
        app.add_middleware(LeakGuardMiddleware, guard=self.guard)
        return app

    def out(self) -> int:
        """Count what the pools say is out."""
        pools = self.engine.pool, self.async_engine.sync_engine.pool
        return sum(pool.checkedout() for pool in pools if isinstance(pool, QueuePool))

    async def clean_up(self) -> None:
        """Give everything back; to be run on the loop that the application ran on."""
        for _, what in self.planted.values():
            closed = what.close()
            if closed is not None:
                await closed
        await self.async_engine.dispose()
        self.engine.dispose()


def leaking_paths() -> list[str]:
    """List the names of the leaking routes."""
    return [f"{way}_{variant}" for way in WAYS for variant in range(VARIANTS)]


def _marked(source: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(source.splitlines(), 1):
        _, found, marker = line.partition("  # ")
        if found:
            yield marker, number


def _load(file: Path, source: str) -> ModuleType:
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
