"""Requests that a test makes are judged with it: by any client, with or without middleware."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run, Write, ended

APPLICATION = """
import threading, httpx, uvicorn
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from leakguard import LeakGuard, LeakGuardMiddleware
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

async_engine = create_async_engine("sqlite+aiosqlite:///async.db", pool_logging_name="async")


def get_db():
    session = Session(engine)
    yield session
    if not leaks:
        session.close()
    kept.append(session)


leaks = False
app = FastAPI()


@app.get("/sync/{leaky}")
def sync(leaky: bool, db=Depends(get_db)):
    global leaks
    leaks = leaky
    db.execute(text("select 1"))


@app.get("/async/{leaky}")
async def asynchronous(leaky: bool):
    session = AsyncSession(async_engine)
    await session.execute(text("select 1"))
    if not leaky:
        await session.close()


protected = FastAPI()
protected.add_middleware(LeakGuardMiddleware, mode="production", observers=[])
protected.mount("/", app)
paths = pytest.mark.parametrize("path", ["sync", "async"])
apps = pytest.mark.parametrize("app", [app, protected], ids=["bare", "protected"])
leaky = pytest.mark.parametrize("leaky", [True, False], ids=["leaks", "behaves"])
"""


def check(result: pytest.RunResult, expected: int) -> None:
    """Check that as many tests failed as passed, and that each names its request and its line."""
    ended(result, failed=expected, passed=expected)
    report = result.stdout.str()
    assert report.count("\nleaked: GET /") >= expected


def test_the_test_client(write: Write, run_apart: Run) -> None:
    """Starlette's, with its own event loop in a thread of its own."""
    write(
        APPLICATION + "@leaky\n@paths\n@apps\n"
        "def test_client(app, path, leaky):\n"
        "    with TestClient(app) as client:\n"
        "        assert client.get(f'/{path}/{leaky}').status_code == 200\n"
    )
    result = run_apart("--leakguard=error")
    check(result, 4)
    result.stdout.fnmatch_lines(
        [
            "leaked: GET /sync/{leaky} (200 *",
            "  session created   test_suite.py:* in get_db",
            "  checked out       test_suite.py:* in sync",
        ]
    )


def test_a_server_in_a_thread(write: Write, run_apart: Run) -> None:
    """It serves the whole run, and knows nothing of tests; the client may be ahead of it."""
    write(
        APPLICATION + "@pytest.fixture(scope='session', params=[app, protected])\n"
        "def url(request):\n"
        "    config = uvicorn.Config(request.param, port=0, log_level='error')\n"
        "    started = threading.Event()\n"
        "    class Server(uvicorn.Server):\n"
        "        async def startup(self, sockets=None):\n"
        "            await super().startup(sockets)\n"
        "            started.set()\n"
        "    server = Server(config)\n"
        "    thread = threading.Thread(target=server.run)\n"
        "    thread.start()\n"
        "    assert started.wait(10)\n"
        "    host, port = server.servers[0].sockets[0].getsockname()\n"
        "    yield f'http://{host}:{port}'\n"
        "    server.should_exit = True\n"
        "    thread.join()\n"
        "@leaky\n@paths\n"
        "def test_server(url, path, leaky):\n"
        "    assert httpx.get(f'{url}/{path}/{leaky}').status_code == 200\n"
    )
    check(run_apart("--leakguard=error"), 4)


@pytest.mark.parametrize("scope", ["function", "session"])
def test_asynchronous_tests_of_pytest_asyncio(
    write: Write, run_apart: Run, pytester: pytest.Pytester, scope: str
) -> None:
    """With a loop for each test, or one for all: which has a context from the first one."""
    pytester.makeini(
        f"[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = {scope}\n"
        f"asyncio_default_test_loop_scope = {scope}"
    )
    write(
        APPLICATION + "@leaky\n@paths\n@apps\n"
        "async def test_requests(app, path, leaky):\n"
        "    transport = httpx.ASGITransport(app)\n"
        "    async with httpx.AsyncClient(transport=transport, base_url='http://t') as client:\n"
        "        assert (await client.get(f'/{path}/{leaky}')).status_code == 200\n"
        "@pytest.fixture\n"
        "async def db():\n"
        "    async with AsyncSession(async_engine) as session: yield session\n"
        "@leaky\n"
        "async def test_sessions(leaky, db):\n"
        "    await db.execute(text('select 1'))\n"
        "    if leaky:\n"
        "        await AsyncSession(async_engine).execute(text('select 1'))\n"
    )
    result = run_apart("--leakguard=error", "-p", "asyncio", "-Wignore")
    ended(result, failed=5, passed=5)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_sessions[[]leaks[]] *"])


def test_asynchronous_tests_of_anyio(write: Write, run_apart: Run) -> None:
    """On asyncio, and on trio, where SQLAlchemy is used synchronously."""
    write(
        "import anyio\n"
        "pytestmark = pytest.mark.anyio\n"
        "@pytest.fixture\n"
        "async def db():\n"
        "    with Session(engine) as session: yield session\n"
        "async def test_behaves(db):\n"
        "    db.execute(text('select 1'))\n"
        "    await anyio.to_thread.run_sync(behave)\n"
        "async def test_leaks(db): take()\n"
        "async def test_leaks_in_a_thread(db): await anyio.to_thread.run_sync(take)\n"
    )
    ended(run_apart("--leakguard=error"), failed=4, passed=2)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_task_of_anyio_runs_all_tests_of_a_wider_fixture(
    write: Write, run_apart: Run, backend: str
) -> None:
    """It goes on when they end, and is not who has their connections."""
    write(
        "@pytest.fixture(scope='module')\n"
        f"def anyio_backend(): return '{backend}'\n"
        "@pytest.fixture(scope='module', autouse=True)\n"
        "async def leaky(anyio_backend):\n"
        "    take()\n"
        "    yield\n"
        "@pytest.fixture\n"
        "async def lent(): return Session(engine)\n"
        "@pytest.mark.anyio\n"
        "async def test_leaks(): take()\n"
        "@pytest.mark.anyio\n"
        "async def test_behaves(): behave()\n"
        "def test_leaks_what_a_fixture_lent(lent): lent.execute(text('select 1'))\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "leaked: test_suite.py::test_leaks *",
            "*: test_suite.py::test_leaks_what_a_fixture_lent *",
            "*leakguard: 2 tests and 1 fixture, 2 distinct leaks*",
        ],
    )


def test_a_session_that_the_test_lends_is_the_test_s(write: Write, run_apart: Run) -> None:
    """By an override of the dependency: the request has nothing to give back."""
    write(
        APPLICATION + "@pytest.fixture\n"
        "def db():\n"
        "    with Session(engine) as session:\n"
        "        app.dependency_overrides[get_db] = lambda: session\n"
        "        yield session\n"
        "@pytest.fixture\n"
        "def lost():\n"
        "    session = Session(engine)\n"
        "    kept.append(session)\n"
        "    app.dependency_overrides[get_db] = lambda: session\n"
        "@apps\n"
        "def test_lends(app, db):\n"
        "    assert TestClient(app).get('/sync/false').status_code == 200\n"
        "@apps\n"
        "def test_loses(app, lost):\n"
        "    assert TestClient(app).get('/sync/false').status_code == 200\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=2, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "leaked: test_suite.py::test_loses[[]bare[]] *",
            "leaked: test_suite.py::test_loses[[]protected[]] *",
        ]
    )
    result.stdout.no_fnmatch_line("leaked: GET *")


def test_what_the_guard_of_the_application_ignores_is_ignored(write: Write, run_apart: Run) -> None:
    """Whoever said so in production means it in tests."""
    write(
        "from fastapi import FastAPI\n"
        "from fastapi.testclient import TestClient\n"
        "from leakguard import LeakGuardMiddleware, ignore_route\n"
        "app = FastAPI()\n"
        "app.add_middleware(LeakGuardMiddleware, observers=[], ignore=[ignore_route('/leak')])\n"
        "@app.get('/leak')\n"
        "def leak(): take()\n"
        "@app.get('/other')\n"
        "def other(): take()\n"
        "@pytest.mark.parametrize('path', ['/leak', '/other'])\n"
        "def test_one(path): TestClient(app).get(path)\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: GET /other *"])


def test_websockets_end_with_the_test(write: Write, run_apart: Run) -> None:
    """What one has while it is open is no reason to fail; what it does not give back is."""
    write(
        APPLICATION + "from fastapi import WebSocket\n"
        "@app.websocket('/ws/{leaky}')\n"
        "async def ws(socket: WebSocket, leaky: bool):\n"
        "    await socket.accept()\n"
        "    session = Session(engine)\n"
        "    session.execute(text('select 1'))\n"
        "    await socket.send_text('ready')\n"
        "    await socket.receive_text()\n"
        "    if not leaky: session.close()\n"
        "    kept.append(session)\n"
        "@leaky\n"
        "def test_socket(leaky):\n"
        "    with TestClient(app).websocket_connect(f'/ws/{leaky}') as socket:\n"
        "        assert socket.receive_text() == 'ready'\n"
        "        socket.send_text('done')\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: WEBSOCKET /ws/{leaky} *"])


HELD = """
import threading
from fastapi import FastAPI
from fastapi.testclient import TestClient
from leakguard import ConnectionLeakError, LeakGuardMiddleware, Observer
told = threading.Event()


class Told(Observer):
    def found(self, finding): told.set()


app = FastAPI()
app.add_middleware(LeakGuardMiddleware, held_after=0.01, observers=[Told()])


@app.get("/idle/{held}")
def idle(held: bool):
    with Session(engine) as session:
        session.execute(text("select 1"))
        if held: assert told.wait(10)


def test_behaves():
    assert TestClient(app).get("/idle/false").status_code == 200
@pytest.mark.leakguard(ignore=["held"])
def test_ignores():
    assert TestClient(app).get("/idle/true").status_code == 200
def test_holds():
    told.clear()
    assert TestClient(app).get("/idle/true").status_code == 200
@pytest.mark.leakguard("off")
def test_looks(leakguard):
    told.clear()
    TestClient(app).get("/idle/true")
    with pytest.raises(ConnectionLeakError, match="held: GET /idle/{held}"):
        leakguard.check()
"""


def test_a_connection_that_is_held_too_long(write: Write, run_apart: Run) -> None:
    """It fails the test where the guard of the application looks for it, though it came back."""
    write(HELD)
    result = run_apart("--leakguard=error")
    ended(result, passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["held: GET /idle/{held} *", "  1 test: test_suite.py::test_holds *"]
    )
    result.stdout.no_fnmatch_line("leaked: *")


def test_a_route_may_be_ignored_by_a_marker(write: Write, run_apart: Run) -> None:
    """As the page says: one that streams for minutes, on purpose."""
    write(
        APPLICATION + "from leakguard import ignore_route\n"
        "@pytest.mark.leakguard(ignore=[ignore_route('/sync/{leaky}')])\n"
        "@paths\n"
        "def test_requests(path):\n"
        "    assert TestClient(app).get(f'/{path}/true').status_code == 200\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["  1 test: test_suite.py::test_requests[[]async[]] *"])
