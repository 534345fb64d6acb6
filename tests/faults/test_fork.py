"""A fork while connections are out: parent and child each go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import PATIENCE

PROGRAM = """
import os, sys, threading, warnings
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from leakguard import LeakGuard
from leakguard.core.watch import WATCH
from tests.support import Recorder

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, which is the point
recorder = Recorder()
guard = LeakGuard(mode="testing", observers=[recorder]).install()
engine = create_engine("sqlite:///" + sys.argv[1], connect_args={"check_same_thread": False})
ready = threading.Barrier(5)
halt = threading.Event()

def churn():
    opened = engine.raw_connection()
    ready.wait()
    opened.close()
    while not halt.is_set():
        with guard.scope("churn"):
            engine.raw_connection()

churning = [threading.Thread(target=churn, daemon=True) for _ in range(4)]
for thread in churning:
    thread.start()
with guard.scope("around the fork"):
    kept = Session(engine)
    kept.execute(text("SELECT 1"))
    ready.wait()  # nobody opens a file from here on, which takes locks of SQLite's own
    child = os.fork()
    if child == 0:
        recorder = guard.observers[0]
        recorder.__init__()  # its lock may have been taken
        fresh = create_engine("sqlite:///" + sys.argv[1])
        with guard.scope("in the child"):
            fresh.raw_connection()
            leaked = fresh.connect()
        assert {str(kind) for kind in recorder.kinds} == {"reclaimed", "leaked"}, recorder.kinds
        leaked.close()
        recorder.wait_for(lambda: recorder.resolutions)  # told by the child's own watch
        os._exit(0)
    _, status = os.waitpid(child, 0)
halt.set()
for thread in churning:
    thread.join()
mine = [f for f in recorder.findings if f.scope.name == "around the fork"]
assert [str(f.kind) for f in mine] == ["leaked"], mine
kept.close()
recorder.wait_for(lambda: mine[0] in recorder.resolutions)
assert len(recorder.holds_acquired) == len(recorder.holds_released)
assert guard.open_holds() == ()
sys.exit(os.waitstatus_to_exitcode(status))
"""

COPIES = """
import gc, os, sys, warnings
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from leakguard import LeakGuard
from tests.support import Recorder, drain_watch

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, which is the point
recorder = Recorder()
guard = LeakGuard(mode="testing", observers=[recorder]).install()
engine = create_engine("sqlite:///" + sys.argv[1])

def session():
    taken = Session(engine)
    taken.execute(text("SELECT 1"))
    return taken

outside = engine.connect()
with guard.scope("leaky"):
    leaked = session()
assert [str(kind) for kind in recorder.kinds] == ["leaked"]
with guard.scope("around the fork"):
    inside = session()
    engine.connect()  # beside another one, and the collector takes it
    with engine.connect():  # beside another one, and it comes back
        pass
    gc.collect()
    child = os.fork()
    if child == 0:
        recorder.__init__()  # its lock may have been taken
        assert guard.open_holds() == (), guard.open_holds()
        leaked.close()
        del outside, inside
        gc.collect()
        own = engine.connect()
drain_watch()
if child == 0:
    assert [str(kind) for kind in recorder.kinds] == ["leaked"], recorder.kinds
    assert recorder.findings[0].hold is guard.open_holds()[0]
    assert recorder.resolutions == [], recorder.resolutions
    own.close()
    recorder.wait_for(lambda: recorder.resolutions == recorder.findings)
    os._exit(0)
_, status = os.waitpid(child, 0)
kinds = sorted(str(finding.kind) for finding in recorder.findings)
assert kinds == ["leaked", "leaked", "nested_checkout", "reclaimed"], kinds
assert recorder.resolutions == []
assert len([hold for hold in guard.open_holds() if hold.resource == "connection"]) == 3
sys.exit(os.waitstatus_to_exitcode(status))
"""

LOOKS = """
import asyncio, os, sys, warnings
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from leakguard import LeakGuard
from leakguard.core import task_scan
from tests.support import Recorder

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, which is the point
task_scan.MANY = -1  # any number of tasks is many, so that looks are put off
recorder = Recorder()
guard = LeakGuard(mode="testing", observers=[recorder], late_after=0.2).install()
kept = []

async def job(name):
    async with guard.scope(name):
        kept.append(Session(create_engine("sqlite://")))

def leave_open(name):
    asyncio.run(job(name))  # outside of a loop there are no tasks to look at

def found():
    return [finding.scope.name for finding in recorder.findings]

leave_open("the first of its line")
leave_open("the parent's")
child = os.fork()
if child == 0:
    recorder.__init__()  # its lock may have been taken
    leave_open("the child's")
    recorder.wait_for(recorder.findings.copy)
    assert found() == ["the child's"], found()
    os._exit(0)
_, status = os.waitpid(child, 0)
recorder.wait_for(lambda: found() == ["the first of its line", "the parent's"])
sys.exit(os.waitstatus_to_exitcode(status))
"""

SHORTAGE = """
import os, sys, threading, warnings
from sqlalchemy import create_engine
from sqlalchemy.exc import TimeoutError
from leakguard import LeakGuard
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.support import Recorder

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, which is the point
recorder = Recorder()
guard = LeakGuard(mode="testing", observers=[recorder]).install()
engine = create_engine("sqlite:///" + sys.argv[1], pool_size=1, max_overflow=0, pool_timeout=0.5)
with guard.scope("the parent's"):
    leaked = engine.connect()

def time_out():
    try:
        engine.connect()
    except TimeoutError:
        return
    raise AssertionError("there was one")

waiting = threading.Thread(target=time_out)
waiting.start()
while not SQLALCHEMY._waits._under_way:
    pass
child = os.fork()
if child == 0:
    recorder.__init__()  # its lock may have been taken
    time_out()
    found = recorder.findings[-1].exhaustion
    assert found.conclusion == "unknown", found
    assert found.holders == (), found
    assert found.waiting == 1, found  # its own: the thread is the parent's
    os._exit(0)
_, status = os.waitpid(child, 0)
waiting.join()
found = recorder.findings[-1].exhaustion
assert found.conclusion == "leaks", found
assert [group.who for group in found.holders] == ["the parent's"], found
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_pool_that_is_exhausted_in_the_child_of_a_fork(tmp_path: Path) -> None:
    """Who has the copies that it got, and who waited in its parent, nobody knows there."""
    run(SHORTAGE, tmp_path)


def test_a_fork_while_connections_are_out(tmp_path: Path) -> None:
    """The child finds its own leaks and hears of their return; the parent loses none of its."""
    run(PROGRAM, tmp_path)


def test_the_child_of_a_fork_has_only_copies(tmp_path: Path) -> None:
    """It says nothing of what its parent has out, whatever becomes of the copies; its own it finds.

    What was reported before is not resolved by closing the copy, either.
    """
    run(COPIES, tmp_path)


def test_a_fork_while_sessions_are_to_be_looked_at(tmp_path: Path) -> None:
    """Parent and child each look at their own, though the plan for it is the parent's."""
    run(LOOKS, tmp_path)


def run(program: str, folder: Path) -> None:
    done = subprocess.run(  # noqa: S603  (one of the programs above)
        [sys.executable, "-c", program, str(folder / "fork.db")],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
