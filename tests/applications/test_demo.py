"""The demonstration: what it shows is so, and where it is not, it says so."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import fastapi
import httpx
import pytest

from tests.support import PATIENCE

ROOT = Path(__file__).parents[2]
DEMO = ("-m", "examples.demo")
SLOWEST = 6 * PATIENCE
"""Seconds after which the demonstration has hung."""

FASTAPI = tuple(int(part) for part in fastapi.__version__.split(".")[:2])
HAS_FUNCTION_SCOPE = FASTAPI >= (0, 121)
ENDS_AFTER_RESPONSE = not (0, 106) <= FASTAPI < (0, 118)
"""Whether the exit code of a dependency runs after the response, as FastAPI's history has it."""


@dataclass(frozen=True)
class Output:
    """What a run left."""

    code: int
    text: str
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def table(self, title: str) -> list[list[str]]:
        """Return the cells of the table below the line that matches `title`, a regex."""
        start = next(n for n, line in enumerate(self.lines) if re.match(title, line))
        rule = next(n for n, line in enumerate(self.lines) if n > start and line.startswith("──"))
        head, rows = self.lines[rule - 1], self.lines[rule + 1 :]
        begins = [match.start() for match in re.finditer(r"(?<!\S)\S+(?: \S+)*", head)]
        if begins[0] > 1:  # the first column has no title
            begins.insert(0, 0)
        return [cells(row, begins) for row in rows[: rows.index("")]]

    def quoted(self, title: str) -> str:
        """Return the words in the frame that has `title`, each line break and indent a blank."""
        start = next(n for n, line in enumerate(self.lines) if line.startswith(f"╭─ {title} "))
        end = next(n for n, line in enumerate(self.lines) if n > start and line[0] == "╰")
        return words(line.strip("│") for line in self.lines[start + 1 : end])


def cells(row: str, begins: list[int]) -> list[str]:
    ends = [*begins[1:], None]
    return [row[begin:end].strip() for begin, end in zip(begins, ends, strict=True)]


def words(lines: Iterable[str]) -> str:
    return " ".join(" ".join(lines).split())


def environment(**changes: str) -> dict[str, str]:
    """Return the environment that a person has, whatever that of the tests is like."""
    unwanted = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "LEAKGUARD_MODE", "PYTHONIOENCODING")
    # Coverage, which is not needed here, may hang as the server's threads end: it asks greenlet for
    # the current greenlet while greenlet destroys what it knows of such a thread.
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in unwanted and not name.startswith("COVERAGE_")
    }
    return {**kept, "PYTHONUTF8": "1", "PYTHONFAULTHANDLER": "1"} | {
        "PYTHONPATH": str(ROOT),
        **changes,
    }


def start(
    *arguments: str,
    cwd: Path = ROOT,
    output: int = subprocess.PIPE,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start the demonstration, or Python with other arguments."""
    return subprocess.Popen(  # noqa: S603  (the demonstration itself)
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment() if env is None else env,
        stdout=output,
        stderr=output,
        text=True,
    )


def run(*arguments: str, cwd: Path = ROOT, **changes: str) -> Output:
    """Run the demonstration, its output into pipes."""
    with start(*DEMO, *arguments, cwd=cwd, env=environment(**changes)) as process:
        return finish(process)


def finish(process: subprocess.Popen[str]) -> Output:
    """Wait for its end, and read what it wrote; where it has hung, it says where."""
    try:
        text, errors = process.communicate(timeout=SLOWEST)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        text, errors = process.communicate()
        pytest.fail(f"the demonstration has hung:\n{text}\n{errors}")
    return Output(process.returncode, text, errors)


def run_in_terminal(columns: int, **changes: str) -> Output:
    """Run the demonstration in a terminal."""
    master, slave = pty.openpty()
    changes |= {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    with start(*DEMO, output=slave, env=environment(**changes)) as process:
        os.close(slave)
        output = b"".join(iter(lambda: read(master), b""))
    os.close(master)
    return Output(process.returncode, output.decode().replace("\r\n", "\n"), "")


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody writes to it any more
        return b""


@pytest.fixture(scope="module")
def piped() -> Output:
    """Return the output of one run into a file, where nothing is known of its width."""
    return run()


def line_of(example: str, text: str) -> int:
    """Find the number of the one line of an example that has a text in it."""
    lines = (ROOT / "examples" / f"{example}.py").read_text(encoding="utf-8").splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if text in line)
    return number


def test_it_succeeds_in_plain_text_of_80_columns(piped: Output) -> None:
    """Piped, it exits with 0, without an escape code, a longer line or a word of complaint."""
    assert (piped.code, piped.errors) == (0, "")
    assert "\x1b" not in piped.text
    assert max(map(len, piped.lines)) <= 80
    assert [line for line in piped.lines if line != line.rstrip()] == []
    assert re.search(r"^Checked: all \d+ claims made above agree", piped.text, re.MULTILINE)


def test_the_life_of_a_request_with_finally_is_shown_step_by_step(piped: Output) -> None:
    """The session is opened, lent, closed in `finally`, in the order that this FastAPI has."""
    session, end, close = (
        line_of("with_finally", text) for text in ("= SessionLocal()", "yield db", "db.close()")
    )
    query, answer = (line_of("with_finally", text) for text in ("db.scalars(", "return {"))
    out = "checked out (1)"
    closing = [
        ["get_db() goes on", out, "open Session", f"after line {end}"],
        ["db.close()", "returned (0)", "closed Session", f"line {close}"],
        ["get_db() ends", "returned (0)", "None", ""],
    ]
    if ENDS_AFTER_RESPONSE:
        ending = [["response sent", out, "open Session", "status 200"], *closing]
    else:
        ending = [*closing, ["response sent", "returned (0)", "None", "status 200"]]
    expected = [
        ["request received", "none (0)", "None", "no session yet"],
        ["call get_db()", "none (0)", "None", ""],
        ["call SessionLocal()", "none (0)", "None", f"line {session}"],
        ["get_db() yields db", "none (0)", "open Session", f"line {end}"],
        ["endpoint gets db", "none (0)", "open Session", "read_item()"],
        ["first statement", out, "open Session", f"line {query}"],
        ["endpoint returns", out, "open Session", f"line {answer}"],
        *ending,
        ["request over", "returned (0)", "None", "leakguard: silent"],
    ]
    table = piped.table("with finally, the endpoint returns")
    assert table == [[str(number), *row] for number, row in enumerate(expected, 1)]
    assert re.search(
        r"^Step +Action +Connection State +Yielded Value +Notes$", piped.text, re.MULTILINE
    )


def test_the_life_of_a_request_without_finally_ends_with_its_connection_out(piped: Output) -> None:
    """The exception leaves `get_db` at its `yield`: `close()` is not reached."""
    session, end, query = (
        line_of("without_finally", text) for text in ("= SessionLocal()", "yield db", "db.scalars(")
    )
    out = "checked out (1)"
    expected = [
        ["request received", "none (0)", "None", "no session yet"],
        ["call get_db()", "none (0)", "None", ""],
        ["call SessionLocal()", "none (0)", "None", f"line {session}"],
        ["get_db() yields db", "none (0)", "open Session", f"line {end}"],
        ["endpoint gets db", "none (0)", "open Session", "read_item()"],
        ["first statement", out, "open Session", f"line {query}"],
        ["endpoint raises", out, "open Session", "NoResultFound"],
        ["get_db() goes on", out, "open Session", f"raises at line {end}"],
        ["get_db() ends", out, "None", "close() not reached"],
        ["response sent", out, "None", "status 500"],
        ["request over", "STILL OUT (1)", "None", "leakguard: leaked"],
    ]
    table = piped.table("without finally, the endpoint raises")
    assert table == [[str(number), *row] for number, row in enumerate(expected, 1)]


SCOPES = ("", ', scope="function"') if HAS_FUNCTION_SCOPE else ("",)


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: "function" if scope else "default")
@pytest.mark.parametrize("endpoint", ["returns", "raises"])
@pytest.mark.parametrize("get_db", ["with", "without"])
def test_every_variation_is_shown_step_by_step(
    piped: Output, get_db: str, endpoint: str, scope: str
) -> None:
    """Each has a table of its own, with what became of the connection and of `db` in it."""
    leaks = (get_db, endpoint) == ("without", "raises")
    closing = ["get_db() goes on", *([] if leaks else ["db.close()"]), "get_db() ends"]
    late = ENDS_AFTER_RESPONSE and endpoint == "returns" and not scope
    ending = ["response sent", *closing] if late else [*closing, "response sent"]

    table = piped.table(re.escape(f"{get_db} finally, the endpoint {endpoint}{scope}") + "$")
    actions = [action for _, action, *_ in table]
    assert actions[actions.index(f"endpoint {endpoint}") + 1 :] == [*ending, "request over"]
    values = [value for value, _ in groupby(row[3] for row in table)]
    closed = [] if leaks else ["closed Session"]
    assert values == ["None", "open Session", *closed, "None"]
    assert table[-1][2] == ("STILL OUT (1)" if leaks else "returned (0)")
    assert table[-1][4] == ("leakguard: leaked" if leaks else "leakguard: silent")


def test_every_variation_is_compared(piped: Output) -> None:
    """With and without `finally`, returning and raising, in either scope that there is."""
    usual = "response, close()" if ENDS_AFTER_RESPONSE else "close(), response"
    early, never = "close(), response", "response"
    expected = [
        [get_db, endpoint, scope, order, *fate]
        for scope, returning in (("default", usual), ("function", early))
        for get_db, endpoint, order, fate in (
            ("with finally", "returns", returning, ["returned", "silent"]),
            ("with finally", "raises", early, ["returned", "silent"]),
            ("without finally", "returns", returning, ["returned", "silent"]),
            ("without finally", "raises", never, ["still out", "leaked"]),
        )
    ]
    assert piped.table("Every variation") == expected[: 8 if HAS_FUNCTION_SCOPE else 4]


def test_the_report_and_the_warning_are_shown(piped: Output) -> None:
    """The log has the full report with the lines, the warning is on the line of the session."""
    session, query = (
        line_of("without_finally", text) for text in ("= SessionLocal()", "db.scalars(")
    )
    file = "examples/without_finally.py"
    log = piped.quoted("the log")
    assert log.startswith("ERROR:leakguard:leaked: GET /without-finally/items/{item_id} (500")
    assert f"session created {file}:{session} in get_db" in log
    assert f"checked out {file}:{query} in read_item" in log
    assert "fix wrap the yield: try: yield db / finally: db.close()" in log
    warning = piped.quoted("the warning, as Python prints it").replace(" ", "")
    place = f"{ROOT}/{file}:{session}".replace(" ", "")
    assert warning.startswith(f"{place}:ConnectionLeakWarning:leaked:GET")
    assert "db=SessionLocal()" in warning


def shortage(output: Output, title: str) -> list[list[str]]:
    """Return the rows on the small pool, without the time that each request took."""
    return [
        [number, item, out, saw, error] for number, item, out, _, saw, error in output.table(title)
    ]


FAILED = "500 Internal Server Error"
DRY = [
    ["1", "404", "●○○ 1 of 3", FAILED, "NoResultFound"],
    ["2", "404", "●●○ 2 of 3", FAILED, "NoResultFound"],
    ["3", "404", "●●● 3 of 3", FAILED, "NoResultFound"],
    ["4", "1", "●●● 3 of 3", FAILED, "TimeoutError"],
]


def test_the_small_pool_runs_dry_and_the_report_came_first(piped: Output) -> None:
    """Each failing request takes a connection, then a good one fails and names no line."""
    assert shortage(piped, "without finally$") == DRY
    report = piped.quoted("leakguard, with request 1")
    assert report.startswith("ERROR:leakguard:leaked: GET /without-finally/items/{item_id} (500")
    assert "pool 1 of 3 out" in report
    error = piped.quoted("the server's error, with request 4")
    assert error.startswith("TimeoutError: QueuePool limit of size 3 overflow 0 reached")


def test_the_small_pool_stays_full_with_finally(piped: Output) -> None:
    """The same requests take nothing away, and the good one has its item."""
    assert shortage(piped, "with finally   the same requests") == [
        ["1", "404", "○○○ 0 of 3", FAILED, "NoResultFound"],
        ["2", "404", "○○○ 0 of 3", FAILED, "NoResultFound"],
        ["3", "404", "○○○ 0 of 3", FAILED, "NoResultFound"],
        ["4", "1", "○○○ 0 of 3", '200 {"id":1,"name":"tea"}', ""],
    ]


def test_the_collector_gives_back_what_leaked(piped: Output) -> None:
    """When it runs at last, leakguard says so, and the pool serves again."""
    assert re.search(
        r"Connections out without finally: 0 of 3\. leakguard: "
        r"given back by the garbage collector \S+ m?s later, "
        r"after \S+ m?s out\. The same request again: 200\.",
        words(piped.lines),
    )


def test_the_summary_has_both_columns(piped: Output) -> None:
    """One line for each difference, with `finally` on the left and without on the right."""
    scopes = 2 if HAS_FUNCTION_SCOPE else 1
    rows = piped.table("─+  Summary  ─+$")
    summary = {label: (left, right) for label, left, right in joined(rows)}
    left, right = summary.pop("the next request")
    assert (left.split(" after ")[0], right.split(" after ")[0]) == ("200", "500")
    assert summary == {
        "endpoint returns": ("session closed, 0 out", "session closed, 0 out"),
        "endpoint raises": ("session closed, 0 out", "session not closed, 1 out"),
        "db, when it raises": (
            "None, open Session, closed Session, None",
            "None, open Session, None",
        ),
        "close() was called": (
            f"{2 * scopes} of {2 * scopes} times",
            f"{scopes} of {2 * scopes} times",
        ),
        "pool of 3, 3 errors": ("○○○ 0 out", "●●● 3 out"),
        "leakguard": ("silent", f"leaked, line {line_of('without_finally', '= SessionLocal()')}"),
    }


def joined(rows: list[list[str]]) -> list[list[str]]:
    """Put together what was broken into several lines."""
    whole: list[list[str]] = []
    for row in rows:
        if row[0]:
            whole.append(row)
        else:
            whole[-1] = [words(parts) for parts in zip(whole[-1], row, strict=True)]
    return whole


def test_a_wide_terminal_has_the_report_beside_the_table() -> None:
    """At 140 columns, the small pool and the report are abreast; NO_COLOR leaves plain text."""
    output = run_in_terminal(140, NO_COLOR="1")
    assert output.code == 0
    assert "\x1b" not in output.text
    assert 130 < max(map(len, output.lines)) <= 140
    assert re.search(r"^without finally +╭─ leakguard, with request 1 ─", output.text, re.MULTILINE)


def test_a_terminal_is_coloured_whatever_mode_is_set_outside() -> None:
    """In a terminal there are colours; settings of the environment do not spoil the show."""
    output = run_in_terminal(80, LEAKGUARD_MODE="off", PYTHONWARNINGS="ignore")
    assert output.code == 0
    (lost,) = set(re.findall(r"^(\S*) 11 .*STILL OUT", output.text, re.MULTILINE))
    (returned,) = set(re.findall(r"^(\S*) +\d+ .*db\.close\(\)", output.text, re.MULTILINE))
    assert (lost, returned) == ("\x1b[1;31m", "\x1b[32m")
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in output.lines) <= 80


def test_a_terminal_without_unicode_is_served_too(tmp_path: Path) -> None:
    """Where a character cannot be shown, as one of a file's name, a plain one stands for it."""
    folder = tmp_path / "gr\u00f6\u00dfe"
    shutil.copytree(ROOT / "examples", folder / "examples")
    output = run(cwd=folder, PYTHONIOENCODING="ascii")
    assert (output.code, output.errors) == (0, "")
    assert "/gr??e/" in re.sub(r"[\s|]", "", output.text)  # in a frame, and perhaps broken there
    assert output.text.isascii()
    assert "##. 2 of 3" in output.text


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a folder with examples, of which the one with `finally` has none."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    example = tmp_path / "examples" / "with_finally.py"
    text = example.read_text(encoding="utf-8")
    correct = "    try:\n        yield db\n    finally:\n        db.close()\n"
    assert text.count(correct) == 1
    example.write_text(text.replace(correct, "    yield db\n    db.close()\n"), encoding="utf-8")
    return tmp_path


def test_it_fails_when_what_it_says_is_not_so(broken: Path) -> None:
    """With an example that does not do what it should, the exit code is 1, and it says why."""
    output = run(cwd=broken, PYTHONPATH="")
    assert output.code == 1
    assert "Checked" not in output.text
    assert output.errors.startswith("The demonstration saw something else than it says:\n")
    claim = "with finally, the endpoint raises: connections out when it is over: said 0, seen 1"
    assert f"  {claim}\n" in output.errors
    assert "  without finally" not in output.errors


def test_it_can_be_left_running(tmp_path: Path) -> None:
    """`--serve` prints URLs that work, reports a leak as it happens, and ends with Ctrl-C."""
    with start(*DEMO, "--serve", env=environment(TMPDIR=str(tmp_path))) as process:
        assert process.stdout is not None
        shown = "".join(until("The server runs until Ctrl-C.\n", process.stdout))
        urls = re.findall(r"^(http\S+) +(\w+)$", shown, re.MULTILINE)
        answers = [(httpx.get(url).status_code, said) for url, said in urls]
        process.send_signal(signal.SIGINT)
        rest = finish(process)
    assert answers == [(200, "nothing"), (500, "nothing"), (200, "nothing"), (500, "leaked")]
    assert (rest.code, rest.text.strip()) == (0, "Stopped.")
    assert re.findall(r"^ERROR leakguard: leaked: (\w+ \S+)", rest.errors, re.MULTILINE) == [
        "GET /without-finally/items/{item_id}"
    ]
    assert list(tmp_path.iterdir()) == []


def until(last: str, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line == last:
            return


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_at_once(interruption: signal.Signals, tmp_path: Path) -> None:
    """Interrupted on the way, it leaves no traceback, no file, and the usual exit code."""
    with start(*DEMO, env=environment(TMPDIR=str(tmp_path))) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(interruption)
        output = finish(process)
    assert (output.code, output.errors) == (128 + interruption, "")
    assert "Summary" not in output.text
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_is_not_lost_in_a_finalizer() -> None:
    """A signal that comes while a callback runs whose exceptions Python swallows counts, too."""
    script = """
import signal, weakref
from examples.demo import interruption

class Object: ...

interruption.listen()
thing = Object()
reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
del thing
try:
    interruption.heed()
except KeyboardInterrupt as interrupt:
    print(interrupt)
"""
    with start("-c", script) as process:
        output = finish(process)
    assert (output.code, output.text.strip(), output.errors) == (0, str(int(signal.SIGTERM)), "")


def test_it_stops_quietly_when_nobody_reads_on() -> None:
    """Piped into a reader that has seen enough, it leaves no traceback."""
    with start(*DEMO) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        code = process.wait(PATIENCE)
    assert (code, errors) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    "argument, complaint",
    [
        ("--sevre", "unrecognized arguments: --sevre"),
        ("now", "unrecognized arguments: now"),
        ("--port=http", "argument --port: 'http' is not a port: a number up to 65535"),
        ("--port=65536", "argument --port: '65536' is not a port: a number up to 65535"),
    ],
)
def test_a_bad_option_is_an_error_that_names_it(argument: str, complaint: str) -> None:
    """The exit code is 2, before anything is shown."""
    output = run(argument)
    assert (output.code, output.text) == (2, "")
    assert output.errors.endswith(f"demo: error: {complaint}\n")


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    """It says so before it shows anything."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output = run(f"--port={port}")
    assert (output.code, output.text) == (2, "")
    assert f"argument --port: cannot listen on {port}: Address already in use" in output.errors


def test_the_port_can_be_chosen() -> None:
    """The server is where `--port` says, also when it is started anew."""
    with socket.socket() as reserved:  # bound, but not listening: others may still listen there
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        output = run(f"--port={port}")
    assert output.code == 0
    assert f"http://127.0.0.1:{port} " in output.text


def test_help_names_the_options() -> None:
    """`--help` exits with 0."""
    output = run("--help")
    assert (output.code, output.errors) == (0, "")
    assert all(option in output.text for option in ("--serve", "--port"))


def test_a_missing_package_is_named() -> None:
    """Without rich, it says what is missing and how to come by it."""
    without_rich = (
        "import runpy, sys; sys.modules['rich'] = None;"
        "runpy.run_module('examples.demo', run_name='__main__')"
    )
    with start("-c", without_rich) as process:
        output = finish(process)
    assert (output.code, output.text) == (1, "")
    assert output.errors == (
        "The demonstration needs rich, which is not installed here. ./scripts/demo sets up all "
        "that it needs; or install it: python -m pip install rich\n"
    )
