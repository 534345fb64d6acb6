"""The two examples on one server, each loaded anew, with a leakguard of its own."""

import gc
import importlib
import inspect
import sys
from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from starlette.applications import Starlette
from starlette.routing import Mount

from examples.demo.server import PATIENCE
from leakguard import Finding, LeakGuard, LeakGuardMiddleware

HAS_FUNCTION_SCOPE = "scope" in inspect.signature(Depends).parameters
"""Whether this FastAPI knows `Depends(..., scope="function")`; it came with 0.121."""


class Example:
    """`examples/with_finally.py` or `examples/without_finally.py`, loaded as if for the first time.

    What leakguard said of an earlier run is forgotten, so that it says it in full again.
    """

    def __init__(self, *, with_finally: bool) -> None:
        self.word = "with" if with_finally else "without"
        name = f"examples.{self.word}_finally"
        sys.modules.pop(name, None)
        self.module: Any = importlib.import_module(name)
        self.app: FastAPI = self.module.app
        self.engine: Engine = self.module.engine
        self.prefix = f"/{self.word}-finally"
        if HAS_FUNCTION_SCOPE:
            add_function_scope(self.app, self.module)
        self.app.middleware_stack = self.app.build_middleware_stack()
        self.guard = find_guard(self.app)

    @property
    def title(self) -> str:
        """What the tables call it."""
        return f"{self.word} finally"

    def use(self, engine: Engine) -> None:
        """Have it take its connections from another engine than its own."""
        self.module.SessionLocal.configure(bind=engine)
        self.engine = engine

    def connections_out(self) -> int:
        """Ask the pool how many of its connections are out."""
        return cast(QueuePool, self.engine.pool).checkedout()

    def collect(self) -> None:
        """Run the garbage collector until every connection has come back.

        The server may be busy with the exception of the last request for a moment, and that
        exception holds what the request leaked.
        """
        patience = monotonic() + PATIENCE
        while gc.collect() >= 0 and self.connections_out() and monotonic() < patience:
            sleep(0.01)

    def findings(self) -> tuple[Finding, ...]:
        """Return what leakguard found so far, oldest first."""
        history = self.guard.history
        return () if history is None else history.findings

    def close(self) -> None:
        """Take leakguard out, and close the connections."""
        self.collect()
        self.guard.uninstall()
        self.engine.dispose()
        self.module.engine.dispose()


@contextmanager
def both() -> Generator[tuple[Example, Example]]:
    """Load both examples: first the one with `finally`."""
    examples = Example(with_finally=True), Example(with_finally=False)
    try:
        yield examples
    finally:
        for example in examples:
            example.close()


def mounted(*examples: Example) -> Starlette:
    """Put the examples under one roof, each at its prefix."""
    return Starlette(routes=[Mount(example.prefix, example.app) for example in examples])


def add_function_scope(app: FastAPI, example: Any) -> None:  # noqa: ANN401  (a module of examples)
    """Add the example's route once more, with a dependency that ends before the response."""
    db_of_function = Depends(example.get_db, scope="function")

    @app.get("/function-scope/items/{item_id}")
    def read_item(item_id: int, db: Annotated[Session, db_of_function]) -> dict[str, object]:
        answer: dict[str, object] = example.read_item(item_id, db)
        return answer


def find_guard(app: FastAPI) -> LeakGuard:
    """Find the guard that the example's one line installed."""
    layer: Any = app.middleware_stack
    while not isinstance(layer, LeakGuardMiddleware):
        layer = layer.app
    return layer.guard
