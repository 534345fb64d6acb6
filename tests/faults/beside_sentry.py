"""A process in which Sentry's SDK and a guard watch the same application.

`python -m tests.faults.beside_sentry FOLDER FIRST`: what the SDK puts into other libraries stays
there until the process ends, so that each order needs a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import sentry_sdk
from fastapi import Depends, FastAPI, HTTPException, Request
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware, Log
from tests.faults.neighbours import come_together, finds_leaks
from tests.support import Recorder, fetch, line_marked

STATEMENTS = {
    "/healthy/{number}": ["SELECT 1"],
    "/refused/{number}": ["SELECT 2"],
    "/leaky/{number}": ["SELECT 3"],
}


class Drop(Transport):
    """Sends nothing; what it would have sent can be taken, once."""

    def __init__(self) -> None:
        super().__init__()
        self._envelopes: list[Envelope] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self._envelopes.append(envelope)

    def take(self) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
        """Return the SQL of each transaction, and kind and scope of each finding from the log."""
        statements: dict[str, list[str]] = {}
        findings: list[tuple[str, str]] = []
        for envelope in self._envelopes:
            event: Any = envelope.get_transaction_event() or envelope.get_event()
            if event is None:  # how many requests there were, once a minute and in the end
                continue
            if event.get("type") == "transaction":
                spans = [span for span in event["spans"] if span["op"] == "db"]
                statements[event["transaction"]] = [span["description"] for span in spans]
            else:
                facts = event["extra"]  # the first ones: it takes no more than ten
                findings.append((facts["leakguard_kind"], facts["leakguard_first_scope"]))
        self._envelopes.clear()
        return statements, findings


def get_db(request: Request) -> Iterator[Session]:
    with Session(request.app.state.engine) as session:
        yield session


Db = Annotated[Session, Depends(get_db)]


def healthy(number: int, session: Db) -> None:
    session.execute(text("SELECT 1"))


def refused(number: int, session: Db) -> None:
    session.execute(text("SELECT 2"))
    raise HTTPException(404)


def leaky(number: int, request: Request) -> None:
    session = Session(request.app.state.engine)  # leak
    request.app.state.kept = session
    session.execute(text("SELECT 3"))


def make_app(engine: Engine, guard: LeakGuard) -> FastAPI:
    """Make an application with healthy routes and a leaking one."""
    app = FastAPI()
    app.state.engine = engine
    app.add_middleware(LeakGuardMiddleware, guard=guard)
    for endpoint in (healthy, refused, leaky):
        app.get(f"/{endpoint.__name__}/{{number}}")(endpoint)
    return app


def visit(app: FastAPI) -> None:
    """Ask for everything; what leaked comes back in the end."""
    answers = [fetch(app, path).status_code for path in ("/healthy/7", "/refused/7", "/leaky/7")]
    assert answers == [200, 404, 200]
    app.state.kept.close()


def finds_the_leak(recorder: Recorder, app: FastAPI) -> None:
    """Assert that of all requests the leaky one is found, exactly."""
    so_far = len(recorder.findings)
    visit(app)
    (finding,) = recorder.findings[so_far:]
    assert finding.kind is FindingKind.LEAKED
    assert finding.scope is not None
    assert finding.scope.name == "GET /leaky/{number}"
    assert finding.hold is not None
    assert finding.hold.created_at is not None
    assert finding.hold.created_at.line == line_marked(sys.modules[__name__], "leak")
    recorder.wait_for(lambda: finding in recorder.resolutions)


def main(folder: Path, first: str) -> None:
    """Have both watch, then Sentry alone, then both again, and in the end the guard alone."""
    recorder, transport = Recorder(), Drop()
    guard = LeakGuard(mode="testing", observers=[recorder, Log()])
    # With everything that the SDK has for what is installed here, as it is by default.
    start = partial(sentry_sdk.init, "http://key@localhost/1", transport=transport)
    come_together(guard, partial(start, traces_sample_rate=1.0), first)
    assert {"fastapi", "sqlalchemy", "starlette"} <= set(sentry_sdk.get_client().integrations)

    engine = create_engine(
        f"sqlite:///{folder / 'both.db'}", connect_args={"check_same_thread": False}
    )
    app = make_app(engine, guard)
    finds_the_leak(recorder, app)
    assert transport.take() == (STATEMENTS, [("leaked", "GET /leaky/{number}")])
    finds_leaks(guard, recorder, engine)

    guard.uninstall()
    transport.take()
    so_far = len(recorder.findings)
    visit(app)
    assert transport.take() == (STATEMENTS, [])
    assert recorder.findings[so_far:] == []

    guard.install()
    finds_the_leak(recorder, app)
    assert transport.take() == (STATEMENTS, [])  # the log has told of this leak already

    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)
    finds_the_leak(recorder, app)
    finds_leaks(guard, recorder, engine)
    assert transport.take() == ({}, [])
    guard.uninstall()
    engine.dispose()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
