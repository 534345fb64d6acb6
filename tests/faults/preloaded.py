"""An application of which everything is made before gunicorn forks: its workers have copies of it.

`gunicorn --preload "tests.faults.preloaded:preload('FOLDER')"` calls `preload` in the master.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from fastapi import FastAPI
from sqlalchemy import Connection, TextClause, create_engine, text
from sqlalchemy.orm import Session

from leakguard import (
    Finding,
    Hold,
    LeakGuard,
    LeakGuardMiddleware,
    Observer,
    Prometheus,
    metrics_app,
)
from tests.support import drain_watch


class Entry(NamedTuple):
    """What a process says of one hold."""

    pid: int
    what: Literal["found", "resolved", "still out"]
    kind: str | None
    scope: str | None
    line: int | None
    """Where the session was constructed, else where the connection was checked out."""
    statement: str | None
    """The last one: here every hold has a statement of its own, so that it is its name."""


class Diary(Observer):
    """Writes down what each process finds, all of them in one file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> list[Entry]:
        """Return what was written so far, apart from a line that is being written."""
        lines = self._file.read_text().splitlines(keepends=True) if self._file.exists() else []
        return [Entry(*json.loads(line)) for line in lines if line.endswith("\n")]

    def found(self, finding: Finding) -> None:
        self._write("found", finding.hold, finding)

    def resolved(self, finding: Finding) -> None:
        self._write("resolved", finding.hold, finding)

    def still_out(self, hold: Hold) -> None:
        self._write("still out", hold, None)

    def _write(
        self,
        what: Literal["found", "resolved", "still out"],
        hold: Hold | None,
        finding: Finding | None,
    ) -> None:
        assert hold is not None
        site = hold.created_at or hold.acquired_at
        entry = Entry(
            pid=os.getpid(),
            what=what,
            kind=None if finding is None else str(finding.kind),
            scope=None if hold.scope is None else hold.scope.name,
            line=None if site is None else site.line,
            statement=hold.statement,
        )
        # Opened anew for each: threads and processes append whole lines without a lock, which
        # would have to be looked after at the fork.
        with self._file.open("ab", buffering=0) as file:
            file.write(json.dumps(entry).encode() + b"\n")


class Site:
    """The engine, the guard, and a connection that is the master's; their copies in a worker."""

    def __init__(self, folder: Path) -> None:
        gc.disable()  # who is collected, and when, is up to `dropped` and `elsewhere`
        gc.freeze()  # a look at all that was imported takes longer than the rest of a request
        self.diary = Diary(folder / "diary")
        self.guard = LeakGuard(mode="testing", observers=[self.diary, Prometheus()]).install()
        self.engine = create_engine(
            f"sqlite:///{folder / 'preloaded.db'}",
            pool_logging_name="main",
            max_overflow=-1,
            connect_args={"check_same_thread": False},
        )
        self._kept: list[Session] = []
        self._dropping = threading.Lock()
        self._migration: Connection | None = self.engine.connect()  # migration
        self._migration.execute(query(0))
        atexit.register(self._at_exit, os.getpid())

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncGenerator[None, None]:
        """Leave the parent's connections to the parent, as SQLAlchemy asks the child of a fork."""
        self.engine.dispose(close=False)
        self._migration = None
        gc.collect()
        yield

    def pid(self) -> int:
        """Return which worker answers."""
        return os.getpid()

    def healthy(self, number: int) -> int:
        """Return back."""
        with Session(self.engine) as session:
            session.execute(query(number))
        return os.getpid()

    def kept(self, number: int) -> int:
        """Return back only when asked to."""
        session = Session(self.engine)  # kept
        self._kept.append(session)
        session.execute(query(number))
        return os.getpid()

    def give_back(self) -> int:
        """Return back what was kept."""
        while self._kept:
            self._kept.pop().close()
        return os.getpid()

    def dropped(self, number: int) -> int:
        """Leave a session to the garbage collector while the request goes on."""
        session = Session(self.engine)  # dropped
        session.execute(query(number))
        del session
        self._collect()
        return os.getpid()

    def elsewhere(self, number: int) -> int:
        """Leave a connection to the garbage collector in a thread that belongs to no request."""

        def drop() -> None:
            connection = self.engine.connect()  # elsewhere
            connection.execute(query(number))

        thread = threading.Thread(target=drop)
        thread.start()
        thread.join()
        self._collect()
        return os.getpid()

    def out(self) -> list[str]:
        """List what is out, once everything is told."""
        drain_watch()
        return [str(hold) for hold in self.guard.open_holds()]

    def _collect(self) -> None:
        with self._dropping:  # a second collection at once would end at once, and collect nothing
            gc.collect()

    def _at_exit(self, master: int) -> None:
        if os.getpid() == master:  # the workers have a copy of this, too
            for hold in self.guard.open_holds():
                self.diary.still_out(hold)


def preload(folder: str) -> FastAPI:
    """Make all of it."""
    site = Site(Path(folder))
    app = FastAPI(lifespan=site.lifespan)
    app.add_middleware(LeakGuardMiddleware, guard=site.guard)
    app.mount("/metrics", metrics_app())
    for endpoint in (site.pid, site.give_back, site.out):
        app.get(f"/{endpoint.__name__}")(endpoint)
    for planted in (site.healthy, site.kept, site.dropped, site.elsewhere):
        app.get(f"/{planted.__name__}/{{number}}")(planted)
    return app


def query(number: int) -> TextClause:
    """Return the statement with a number."""
    return text(f"SELECT {number}")
