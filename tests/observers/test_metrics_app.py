"""The application that shows the metrics, in the client's multiprocess mode above all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Counter
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from leakguard import SettingsError, metrics_app
from tests.support import fetch


def test_another_registry_is_no_metrics_app() -> None:
    """As with the observer."""
    bad: Any = Counter
    with pytest.raises(SettingsError, match="registry="):
        metrics_app(bad)


class Processes:
    """The folder of the client's multiprocess mode."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def count(self, process: int, value: float) -> None:
        """Write what a process counts as open scopes."""
        name = "leakguard_open_scopes"
        file_of: Any = MmapedDict  # it has no types
        file = file_of(str(self._folder / f"gauge_livesum_{process}.db"))
        file.write_value(mmap_key(name, name, ["type"], ["job"], "Open."), value, 0.0)
        file.close()


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr("leakguard.observers.prometheus.app.is_multiprocess", lambda: True)
    return Processes(tmp_path)


def test_processes_are_summed_while_they_live(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another user's, of which one may not ask; a killed one leaves nothing."""
    theirs, ended = 10**8, 10**8 + 1  # larger than the system's largest

    def kill(process: int, _: int) -> None:
        if process == theirs:
            raise PermissionError
        if process == ended:
            raise ProcessLookupError

    monkeypatch.setattr("os.kill", kill)
    for process, value in ((os.getpid(), 1.0), (theirs, 2.0), (ended, 4.0)):
        processes.count(process, value)
    app = metrics_app()
    assert 'leakguard_open_scopes{type="job"} 3.0' in fetch(app, "/").text
    assert 'leakguard_open_scopes{type="job"} 3.0' in fetch(app, "/").text


def test_two_processes_may_take_away_what_an_ended_one_left(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same time: who comes second finds nothing."""
    processes.count(10**8, 4.0)

    def gone(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("os.remove", gone)
    assert fetch(metrics_app(), "/").status_code == 200


def test_the_folder_of_the_processes_must_exist(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing would be counted anywhere."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    with pytest.raises(SettingsError, match=r"PROMETHEUS_MULTIPROC_DIR='/nowhere'.* directory"):
        metrics_app()


def test_the_folder_of_the_processes_must_be_known_when_the_client_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a .env file is read later: the client counts in this process alone then."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match=r"PROMETHEUS_MULTIPROC_DIR=.* before prom"):
        metrics_app()
