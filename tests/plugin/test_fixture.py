"""The `leakguard` fixture: for tests that look for themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugin.conftest import Run, Write, ended


@pytest.mark.parametrize("reaction", ["off", "error"])
def test_it_tells_what_is_out(write: Write, run: Run, reaction: str) -> None:
    """Of the test, not of a wider fixture, also where the run looks for nothing."""
    write(
        "@pytest.fixture(scope='module')\n"
        "def wide():\n"
        "    with Session(engine) as session:\n"
        "        session.execute(text('select 1'))\n"
        "        yield session\n"
        "def test_holds(leakguard, wide):\n"
        "    assert leakguard.open_holds() == ()\n"
        "    take()\n"
        "    resources = [hold.resource for hold in leakguard.open_holds()]\n"
        "    assert resources == ['session', 'connection']\n"
        "    assert 'prelude.py:10' in str(leakguard.open_holds())\n"
        "    give_back()\n"
        "    assert leakguard.open_holds() == ()\n"
    )
    ended(run(f"--leakguard={reaction}"), passed=1)


def test_it_tells_what_was_found(write: Write, run: Run) -> None:
    """So far: of the requests of the test; and raises it where the test wants that."""
    write(
        "from starlette.applications import Starlette\n"
        "from starlette.routing import Route\n"
        "from starlette.responses import Response\n"
        "from starlette.testclient import TestClient\n"
        "from leakguard import ConnectionLeakError\n"
        "def endpoint(request):\n"
        "    take()\n"
        "    return Response()\n"
        "client = TestClient(Starlette(routes=[Route('/leak', endpoint)]))\n"
        "@pytest.mark.leakguard('off')\n"
        "def test_leaks(leakguard):\n"
        "    leakguard.check()\n"
        "    client.get('/leak')\n"
        "    assert [str(finding.kind) for finding in leakguard.findings] == ['leaked']\n"
        "    with pytest.raises(ConnectionLeakError, match='GET /leak') as caught:\n"
        "        leakguard.check()\n"
        "    assert caught.value.findings == leakguard.findings\n"
    )
    ended(run(), passed=1)


def test_it_allows_what_is_meant_to_be(write: Write, run: Run) -> None:
    """As `leakguard.allow` does, which a test that has the fixture cannot name so."""
    write(
        "def test_keeps(leakguard):\n"
        "    with leakguard.allow('the next test needs it'):\n"
        "        take()\n"
        "def test_leaks(leakguard):\n"
        "    with leakguard.allow('the next test needs it'):\n"
        "        behave()\n"
        "    take()\n"
    )
    ended(run("--leakguard=error"), passed=1, failed=1)


def test_notices_are_found_and_no_reason_to_fail(write: Write, run: Run) -> None:
    """They are legal, and worth knowing."""
    write(
        "def test_nests(leakguard):\n"
        "    def job():\n"
        "        with leakguard_guard.scope('job'), engine.connect(), engine.connect(): pass\n"
        "    from leakguard import LeakGuard\n"
        "    with LeakGuard(mode='testing', observers=[]) as leakguard_guard: job()\n"
        "    assert [str(finding.kind) for finding in leakguard.findings] == ['nested_checkout']\n"
        "    leakguard.check()\n"
        "def test_leaks(leakguard): take()\n"
    )
    ended(run("--leakguard=error"), passed=1, failed=1)


def test_a_suite_without_sqlalchemy_has_nothing_to_tell(
    pytester: pytest.Pytester, run_apart: Run
) -> None:
    """And does not import it for that, nor any of leakguard that does."""
    pytester.makepyfile(
        "import sys\n"
        "def test_one(): assert 'sqlalchemy' not in sys.modules\n"
        "def test_two(): assert 'leakguard.core.guard' not in sys.modules\n"
        "def test_leaks():\n"
        "    global connection\n"
        "    import sqlalchemy\n"
        "    connection = sqlalchemy.create_engine('sqlite:///late.db').connect()\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=2, failed=1)


def test_who_asks_for_it_too_late_is_told(write: Write, run: Run) -> None:
    """Nothing was watched by then."""
    write("def test_asks(request): request.getfixturevalue('leakguard')\n")
    result = run()
    ended(result, failed=1)
    result.stdout.fnmatch_lines(["the leakguard fixture has to be among the arguments of the *"])


def test_the_example_of_the_page(write: Write, run: Run) -> None:
    """It passes as it stands, beside what it is about."""
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    write(f"def write_report(session): session.execute(text('select 1'))\n{example}")
    ended(run(), passed=1)
    write(f"def write_report(session): kept.append(engine.connect())\n{example}")
    result = run()
    ended(result, failed=1)
    result.stdout.fnmatch_lines([">*assert leakguard.open_holds() == ()"])


def test_it_tells_what_a_request_has_out(write: Write, run_apart: Run) -> None:
    """As long as it is under way; as a table for whoever prints it."""
    write(
        "from starlette.applications import Starlette\n"
        "from starlette.routing import WebSocketRoute\n"
        "from starlette.testclient import TestClient\n"
        "async def endpoint(socket):\n"
        "    await socket.accept()\n"
        "    with engine.connect():\n"
        "        await socket.send_text('ready')\n"
        "        await socket.receive_text()\n"
        "client = TestClient(Starlette(routes=[WebSocketRoute('/ws', endpoint)]))\n"
        "def test_looks(leakguard):\n"
        "    with client.websocket_connect('/ws') as socket:\n"
        "        assert socket.receive_text() == 'ready'\n"
        "        [hold] = leakguard.open_holds()\n"
        "        assert hold.scope.name == 'WEBSOCKET /ws'\n"
        "        print(leakguard.open_holds())\n"
        "        socket.send_text('done')\n"
        "    assert leakguard.open_holds() == ()\n"
    )
    result = run_apart("-s")
    ended(result, passed=1)
    result.stdout.fnmatch_lines(
        ["*what *pool *checked out", "*WEBSOCKET /ws*test_suite.py:*in endpoint*"]
    )


def test_it_has_a_type(write: Write, run: Run) -> None:
    """For annotations: whoever looks for the name of the fixture finds it in the package."""
    write(
        "import leakguard as package\n"
        "def test_one(leakguard: package.LeakGuardFixture):\n"
        "    assert type(leakguard) is package.LeakGuardFixture\n"
    )
    ended(run(), passed=1)
