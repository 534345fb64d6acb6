"""A fork while connections are out: parent and child each go on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
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
busy = threading.Event()
halt = threading.Event()

def churn():
    while not halt.is_set():
        with guard.scope("churn"):
            engine.raw_connection()
        busy.set()

churning = [threading.Thread(target=churn, daemon=True) for _ in range(4)]
for thread in churning:
    thread.start()
busy.wait()
with guard.scope("around the fork"):
    kept = Session(engine)
    kept.execute(text("SELECT 1"))
    child = os.fork()
    if child == 0:
        recorder = guard.observers._observers[0]
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


def test_a_fork_while_connections_are_out(tmp_path: Path) -> None:
    """The child finds its own leaks and hears of their return; the parent loses none of its."""
    done = subprocess.run(  # noqa: S603  (the program above)
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "fork.db")],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
