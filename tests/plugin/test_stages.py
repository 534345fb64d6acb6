"""Stages: what a test or a fixture has to give back."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

from leakguard import LeakGuard
from leakguard.core.scope import AMBIENT
from leakguard.testing.stages import Stages
from tests.support import PATIENCE


class Waited(threading.Condition):
    """A condition that tells that somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.awaited.set()
        return super().wait(timeout)


def test_a_request_that_a_server_has_yet_to_end_is_waited_for() -> None:
    """The client may be ahead of it; how it ends is part of the test."""
    stages = Stages()
    told = stages._told = Waited()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to know when
    stages.start()
    began = threading.Event()
    ended: list[bool] = []

    async def serve() -> None:
        with guard.scope("a request"):
            began.set()
            await asyncio.to_thread(told.awaited.wait, PATIENCE)
        ended.append(True)

    with LeakGuard(mode="testing", observers=[]) as guard:
        stage = stages.begin("a test", "test")
        server = threading.Thread(target=asyncio.run, args=(serve(),))
        server.start()
        assert began.wait(PATIENCE)
        stages.end(stage)
        assert not stage.requests
        server.join()
    stages.stop()
    assert ended == [True]


def test_a_fixture_keeps_no_test_that_asked_for_it() -> None:
    """It outlives the first one by far."""
    stages = Stages()
    stages.start()
    test = stages.begin("a test", "test")
    fixture = stages.begin("a fixture", "fixture")
    stages.leave(fixture)
    stages.end(test)
    gone = weakref.ref(test)
    del test
    gc.collect()
    assert gone() is None
    stages.enter(fixture)
    stages.end(fixture)
    stages.stop()
    assert AMBIENT.scope is None
