"""What a wider fixture has is judged at its own end, whichever test made it take it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from sqlalchemy import MetaData, orm
from sqlalchemy import create_engine as create
from starlette.applications import Starlette

from leakguard.testing import keeping
from leakguard.testing.keeping import kept
from tests.plugin.conftest import Run, Write, ended

REGISTRY = """
from sqlalchemy.orm import scoped_session, sessionmaker
Sessions = scoped_session(sessionmaker(engine))
def remove(): Sessions.remove()
"""
USES = """
def test_one(): Sessions.execute(text("select 1"))
def test_two(): Sessions.execute(text("select 1"))
"""
LEAKS = """
def test_leaks(): kept.append(engine.connect())
def test_last(): pass
"""
"""What no fixture has; not in the last test, at whose end no fixture is left that might."""
REGISTRIES = {
    "value of the fixture": """
@pytest.fixture(scope="module")
def sessions():
    return scoped_session(sessionmaker(engine))
@pytest.fixture(scope="module")
def tidy(sessions):
    yield
    sessions.remove()
def test_one(tidy, sessions): sessions.execute(text("select 1"))
def test_two(tidy, sessions): sessions.execute(text("select 1"))
""",
    "local variable": """
@pytest.fixture(scope="module")
def execute():
    mine = scoped_session(sessionmaker(engine))
    yield lambda: mine.execute(text("select 1"))
    mine.remove()
def test_one(execute): execute()
def test_two(execute): execute()
""",
    "global variable": """
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    Sessions.remove()
""",
    "variable of another module": """
import database
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    database.Sessions.remove()
def test_one(): database.Sessions.execute(text("select 1"))
""",
    "function that the teardown calls": """
def tidy_up(): Sessions.remove()
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    tidy_up()
""",
    "class that the teardown names": """
class Database:
    registry = scoped_session(sessionmaker(engine))
    @classmethod
    def close(cls): cls.registry.remove()
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    Database.close()
def test_one(): Database.registry.execute(text("select 1"))
""",
    "finalizer": """
@pytest.fixture(scope="module", autouse=True)
def tidy(request):
    request.addfinalizer(lambda: Sessions.remove())
""",
    "bound method as a finalizer": """
@pytest.fixture(scope="module", autouse=True)
def tidy(request):
    request.addfinalizer(Sessions.remove)
""",
    "teardown of the module": """
def teardown_module():
    Sessions.remove()
""",
    "class of a TestCase": """
import unittest
class TestIt(unittest.TestCase):
    @classmethod
    def setUpClass(cls): cls.registry = scoped_session(sessionmaker(engine))
    @classmethod
    def tearDownClass(cls): cls.registry.remove()
    def test_one(self): self.registry.execute(text("select 1"))
    def test_two(self): self.registry.execute(text("select 1"))
""",
    "client that connects when it is used": """
class Client:
    connection = None
    def get(self):
        self.connection = self.connection or engine.connect()
        return self.connection.execute(text("select 1"))
    def close(self): self.connection.close()
@pytest.fixture(scope="session")
def client():
    client = Client()
    yield client
    client.close()
def test_one(client): client.get()
def test_two(client): client.get()
""",
    "function of a module that the teardown imports": """
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    from database import remove
    remove()
def test_one():
    import database
    database.Sessions.execute(text("select 1"))
""",
    "module that the teardown imports": """
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    import database
    database.remove()
""",
    "method of an object that uses a global variable": """
class Database:
    def close(self): Sessions.remove()
database = Database()
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    database.close()
""",
    "class of the object that closes it": """
class Database:
    session = None
    @classmethod
    def get(cls):
        cls.session = cls.session or Session(engine)
        return cls.session
    def close(self): self.session.close()
@pytest.fixture(scope="module")
def database():
    database = Database()
    yield database
    database.close()
def test_one(database): database.get().execute(text("select 1"))
def test_two(database): database.get().execute(text("select 1"))
""",
    "class of the tests": """
@pytest.fixture(scope="class")
def tidy(request):
    yield
    request.cls.session.close()
@pytest.mark.usefixtures("tidy")
class TestIt:
    def test_one(self):
        type(self).session = Session(engine)
        self.session.execute(text("select 1"))
    def test_two(self): self.session.execute(text("select 1"))
""",
    "whoever has a session": """
from sqlalchemy.orm import close_all_sessions
@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    close_all_sessions()
mine = []
def test_one():
    mine.append(Session(engine))
    mine[0].execute(text("select 1"))
def test_two(): mine[0].execute(text("select 1"))
""",
    "asynchronous generator": """
@pytest.fixture(scope="module")
def anyio_backend(): return "asyncio"
@pytest.fixture(scope="module")
async def execute(anyio_backend):
    mine = scoped_session(sessionmaker(engine))
    yield lambda: mine.execute(text("select 1"))
    mine.remove()
@pytest.mark.anyio
async def test_one(execute): execute()
@pytest.mark.anyio
async def test_two(execute): execute()
""",
}


@pytest.fixture
def suite(pytester: pytest.Pytester, write: Write) -> Callable[[str], None]:
    """Return what writes a suite whose tests use a registry of sessions."""

    def suite(tests: str) -> None:
        pytester.makepyfile(database="from prelude import *" + REGISTRY)
        own = "def test_one" in tests
        write("from database import *\n" + (tests if own else USES + tests))

    return suite


@pytest.mark.parametrize("tests", REGISTRIES.values(), ids=REGISTRIES)
def test_a_session_that_a_wider_fixture_closes(
    suite: Callable[[str], None], run_apart: Run, tests: str
) -> None:
    """However the fixture knows it, the test that took it is not accused, and nobody else is."""
    suite(tests + LEAKS)
    result = run_apart("--leakguard=error")
    ended(result, passed=1 + (tests.count("def test_") or 2), failed=1)
    result.stdout.fnmatch_lines(["*leakguard: 1 test, 1 distinct leak*"])
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_leaks *"])


def test_a_fixture_that_has_too_much_to_look_through(
    suite: Callable[[str], None], run_apart: Run
) -> None:
    """What it gives back it has at hand: of the rest no test is spared, and none accused."""
    suite(
        """
@pytest.fixture(scope="module")
def context():
    context = {"data": [object() for _ in range(60_000)], "more": [[] for _ in range(60_000)]}
    yield context
    context["session"].close()
def test_one(context):
    context["session"] = Session(engine)
    context["session"].execute(text("select 1"))
def test_two(context): context["session"].execute(text("select 1"))
"""
        + LEAKS
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=3, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_leaks *"])


SCHEMA = """
from sqlalchemy import Column, Integer, MetaData, Table
metadata = MetaData()
for number in range(60):
    columns = [Column(f"c{n}", Integer, primary_key=not n) for n in range(14)]
    Table(f"t{number}", metadata, *columns)


@pytest.fixture(scope="module", autouse=True)
def tables():
    metadata.create_all(engine)
    yield
    metadata.drop_all(engine)
"""
"""As most suites have it."""


def test_a_fixture_with_a_schema(write: Write, run_apart: Run) -> None:
    """However many tables there are, it is no place to keep a connection in."""
    write(SCHEMA + LEAKS)
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_leaks *"])


APPLICATION = """
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient


def get_db(): raise LookupError


@pytest.fixture(scope="module")
def app():
    app = FastAPI()

    @app.get("/")
    def read(db=Depends(get_db)): db.execute(text("select 1"))

    app.state.session = Session(engine)
    yield app
    app.state.session.close()


@pytest.fixture
def db():
    session = Session(engine)
    {}
    kept.append(session)


def test_state(app): app.state.session.execute(text("select 1"))


def test_one(app, db):
    app.dependency_overrides[get_db] = lambda: db
    assert TestClient(app).get("/").status_code == 200
"""


@pytest.mark.parametrize("ends, failed", [("yield session", 1), ("with session: yield session", 0)])
def test_a_wider_application_to_which_a_test_lends_a_session(
    suite: Callable[[str], None], run_apart: Run, ends: str, failed: int
) -> None:
    """An application closes nothing by referring to it; what its code has is in its state."""
    suite(APPLICATION.format(ends))
    result = run_apart("--leakguard=error")
    ended(result, passed=2 - failed, failed=failed)
    if failed:
        result.stdout.fnmatch_lines(["leaked: test_suite.py::test_one *"])


def test_one_that_it_does_not_close(suite: Callable[[str], None], run_apart: Run) -> None:
    """It is told at the end of the fixture, once, with the line of the test."""
    suite(
        "@pytest.fixture(scope='module', autouse=True)\n"
        "def untidy():\n"
        "    yield\n"
        "    print(Sessions)\n" + USES
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "module fixture untidy of test_suite.py leaks, which has ended here",
            "*checked out * test_suite.py:* in test_one",
        ]
    )
    result.stdout.fnmatch_lines(["*= leakguard: 1 fixture, 1 distinct leak =*"])


@pytest.mark.parametrize(
    "fixture",
    [
        "Sessions.configure(bind=engine)\n    yield\n",
        "yield\n    give_back()\n",
    ],
    ids=["set-up", "teardown of something else"],
)
def test_one_that_no_fixture_is_to_close(
    suite: Callable[[str], None], run_apart: Run, fixture: str
) -> None:
    """What only the set-up names, or somebody else would close, is up to the test."""
    suite(f"@pytest.fixture(scope='module', autouse=True)\ndef wide():\n    {fixture}{USES}")
    result = run_apart("--leakguard=error")
    ended(result, passed=1, failed=1)
    result.stdout.fnmatch_lines(["leaked: test_suite.py::test_one *"])


def test_a_fixture_from_before_sqlalchemy(pytester: pytest.Pytester, run_apart: Run) -> None:
    """Which has no stage of its own until it is found to have something."""
    pytester.makepyfile(
        "import pytest\n"
        "class Client:\n"
        "    def get(self):\n"
        "        import sqlalchemy\n"
        "        self.connection = sqlalchemy.create_engine('sqlite://').connect()\n"
        "@pytest.fixture(scope='module')\n"
        "def tidy():\n"
        "    client = Client()\n"
        "    yield client\n"
        "    client.connection.close()\n"
        "@pytest.fixture(scope='module')\n"
        "def untidy(): return Client()\n"
        "def test_one(tidy): tidy.get()\n"
        "def test_two(untidy): untidy.get()\n"
        "def test_three(): pass\n"
    )
    result = run_apart("--leakguard=error")
    ended(result, passed=3, errors=1)
    result.stdout.fnmatch_lines(["module fixture untidy of * leaks, which has ended here"])


# --- what is referred to --------------------------------------------------------------------------


class Thing:
    """Something that is looked for."""


class Owner:
    """An object of the user's that a teardown may name: what its class has, and does."""

    thing = Thing()

    def close(self) -> Thing:
        return MODULE_THING

    @classmethod
    def close_class(cls) -> None:
        deal_with_it()


class Heir(Owner):
    """One that has it all from its base."""


MODULE_THING = Thing()
OWNER, HEIR = Owner(), Heir()
QUEUE = asyncio.Queue[None]()


def close_all_sessions() -> None:
    """Be of the same name as SQLAlchemy's."""


def deal_with_it(*_: object) -> Thing:
    """Use it, as a fixture's teardown may."""
    return MODULE_THING


def refers(value: object, *finalizers: object, to: object) -> bool:
    """Return whether a fixture refers to something."""
    return kept(value, finalizers, [to]) == {id(to)}


def test_the_value_and_what_it_is_made_of() -> None:
    thing = Thing()
    assert refers(thing, to=thing)
    assert refers({"a": [SimpleNamespace(b=(thing,))]}, to=thing)
    assert refers(lambda: thing, to=thing)
    assert refers(lambda one=thing: one, to=thing)
    function = lambda: None  # noqa: E731  (it has a variable of its own)
    vars(function)["thing"] = thing
    assert refers(function, to=thing)
    assert not refers([Thing()], to=thing)


def test_the_code_of_a_value_is_nothing_that_it_has() -> None:
    """A function names much of its module; a finalizer that does is about to deal with it."""
    assert not refers(lambda: MODULE_THING, to=MODULE_THING)
    assert refers(None, lambda: MODULE_THING, to=MODULE_THING)
    assert refers(None, lambda: [MODULE_THING for _ in "a"], to=MODULE_THING)
    assert refers(None, functools.partial(deal_with_it, 1), to=MODULE_THING)
    assert not refers(None, SimpleNamespace(call=lambda: MODULE_THING), to=MODULE_THING)


def test_a_module_that_is_named_is_asked_for_what_is_named_of_it() -> None:
    assert refers(None, lambda: orm.Session, to=orm.Session)
    assert not refers(None, lambda: orm.Query, to=orm.Session)


def test_a_module_that_is_imported_is_asked_too() -> None:
    """Whether it is in another one or not."""

    def one_of_it() -> object:
        from sqlalchemy.orm import Session  # noqa: PLC0415  (that is what it is about)

        return Session

    def all_of_it() -> object:
        import sqlalchemy.orm  # noqa: PLC0415

        return sqlalchemy.create_engine, sqlalchemy.orm

    assert refers(None, one_of_it, to=orm.Session)
    assert refers(None, all_of_it, to=create)
    assert not refers(None, all_of_it, to=orm.Session)


def test_an_object_of_the_user_s_has_what_its_class_has() -> None:
    """And does what its methods do, of those that are named."""
    assert refers(None, lambda: OWNER.close, to=MODULE_THING)
    assert refers(None, lambda: HEIR.close, to=MODULE_THING)
    assert refers(None, lambda: HEIR, to=Owner.thing)
    assert refers(None, lambda: Heir, to=Owner.thing)
    assert not refers(None, lambda: OWNER, to=MODULE_THING)

    def with_a_local_one() -> Iterator[None]:
        owner = Owner()
        yield
        owner.close()

    fixture = with_a_local_one()
    next(fixture)
    assert refers(None, fixture, to=MODULE_THING)


def test_a_method_of_a_class_has_what_the_class_has() -> None:
    """As that of a `TestCase` which tears it down."""
    assert refers(None, Owner.close_class, to=Owner.thing)
    assert refers(None, Owner.close_class, to=MODULE_THING)


def test_what_a_library_does_is_nothing_of_the_user_s() -> None:
    """Its functions name, and its classes have, all that it is made of."""
    assert "Runner" in asyncio.run.__code__.co_names
    assert not refers(None, lambda: asyncio.run, to=asyncio.Runner)
    assert not refers(None, lambda: QUEUE, to=vars(asyncio.Queue)["put"])


def test_only_sqlalchemy_closes_all_sessions() -> None:
    """Not whatever has the same name."""
    session = orm.Session()
    assert refers(None, orm.close_all_sessions, to=session)
    assert not refers(None, orm.close_all_sessions, to=MODULE_THING)
    assert not refers(None, close_all_sessions, to=session)


def test_what_is_yet_to_run_of_a_generator() -> None:
    def before() -> Iterator[None]:
        deal_with_it()
        yield

    def after(local: object) -> Iterator[None]:
        yield
        deal_with_it(local)

    thing = Thing()
    first, second = before(), after(thing)
    next(first)
    next(second)
    assert not refers(None, first, to=MODULE_THING)
    assert refers(None, second, to=MODULE_THING)
    assert refers(None, second, to=thing)
    next(first, None)
    assert not refers(None, first, to=MODULE_THING)


def test_the_function_of_a_generator_has_run() -> None:
    """Which pytest hands to what tears a fixture down: it names, and defaults to, what it will."""
    default, thing = Thing(), Thing()

    def fixture(local: object = default) -> Iterator[None]:
        deal_with_it()
        yield
        list[object]([local])

    generator = fixture(thing)
    next(generator)
    tear_down = functools.partial(next, generator, None)
    assert refers(None, tear_down, to=thing)
    assert not refers(None, tear_down, to=default)
    assert not refers(None, functools.partial(print, fixture, generator), to=MODULE_THING)


def test_what_others_have_is_not_looked_at() -> None:
    """The loop and its tasks, modules, classes and pytest's own objects refer to all there is."""

    async def main() -> None:
        thing = Thing()
        loop = asyncio.get_running_loop()
        vars(loop)["thing"] = thing
        assert not refers([loop, asyncio.current_task()], to=thing)

    asyncio.run(main())
    of_pytest = type("Node", (SimpleNamespace,), {"__module__": "_pytest.nodes"})
    assert not refers(of_pytest(thing=MODULE_THING), to=MODULE_THING)
    assert not refers(orm, to=orm.Session)
    assert not refers(type("Class", (), {"thing": MODULE_THING}), to=MODULE_THING)


def test_not_everything_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixture may refer to millions of objects."""
    monkeypatch.setattr(keeping, "_LIMIT", 20)
    thing = Thing()
    other = Thing()
    assert not refers([(other, number, str(number)) for number in range(5)], to=thing)
    assert not refers([[number, [thing]] for number in range(15)], to=thing)
    assert not refers([thing] * 50, to=thing)
    assert refers([other, thing], to=thing)


def test_what_is_nearest_is_found_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task that may know everything only that counts."""
    monkeypatch.setattr(keeping, "_LIMIT", 20)
    thing = Thing()
    far = [[number, [thing]] for number in range(15)]
    large = [thing] * 50
    assert kept([far, large], (), [thing]) == set()
    assert kept([far, large, thing], (), [thing]) == {id(thing)}


def test_an_application_has_what_is_in_its_state() -> None:
    """Beside that it refers to what tests put into it, and closes none of it."""
    thing = Thing()
    app = Starlette()
    vars(app)["overrides"] = [thing]
    assert not refers({"app": app}, to=thing)
    app.state.thing = thing
    assert refers({"app": app}, to=thing)


def test_a_schema_has_nothing() -> None:
    thing = Thing()
    assert not refers([MetaData(info={"thing": thing})], to=thing)
