"""A real Prometheus watches two instances, of which one leaks."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.observability.files import FOLDER, ROOT, dashboard, program, queries, rules
from tests.support import PATIENCE, patiently

APPLICATION = "examples.observability.application:app"
CONNECTIONS = 5
"""That its pool may have out."""
LEAK = "/kept/items/1"
HEALTHY = ("/items/1", "/slow/items/1?seconds=0.01")
ALERTS = {rule.name for rule in rules() if rule.kind == "alert"}


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask its HTTP API; give the data."""
        answer = get(f"http://{self.address}/api/v1/{path}", parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now; give labels and values."""
        found = self.ask("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def alerts(self, instance: str, *states: str) -> set[str]:
        """Name the alerts of an instance in one of these states."""
        return {
            alert["labels"]["alertname"]
            for alert in self.ask("alerts")["alerts"]
            if alert["labels"]["instance"] == instance and alert["state"] in states
        }


@dataclass(frozen=True)
class Fleet:
    """Prometheus and what it watches: the addresses of two instances."""

    prometheus: Prometheus
    healthy: str
    leaking: str


def get(url: str, parameters: Mapping[str, str] | None = None) -> httpx.Response:
    """Send one request. Past every proxy: it is for this machine."""
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        return client.get(url, params=parameters)


@contextmanager
def started(
    command: list[str], says: str, log: Path, **environment: str
) -> Generator[str, None, None]:
    """Run a server while the block runs; give the address that it says it listens on."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  (the commands below)
            command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | environment
        )
    try:
        patiently(lambda: process.poll() is not None or re.search(says, log.read_text()))
        found = re.search(says, log.read_text())
        assert found is not None, log.read_text()
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)


@contextmanager
def instance(folder: Path, name: str) -> Generator[str, None, None]:
    """Run the example application; give its address."""
    with started(
        [sys.executable, "-m", "uvicorn", APPLICATION, "--port", "0"],
        r"running on http://(\S+)",
        folder / f"{name}.log",
        EXAMPLES_DATABASE=str(folder / f"{name}.db"),
        LEAKGUARD_MODE="production",
    ) as address:
        yield address


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Generator[Prometheus, None, None]:
    """Run Prometheus with the shipped files, only faster, and on a free port."""
    shipped = {name: (FOLDER / name).read_text(encoding="utf-8") for name in FASTER}
    for name, (slow, fast, times) in FASTER.items():
        text, found = re.subn(slow, fast, shipped[name], flags=re.MULTILINE)
        assert found == times
        (folder / name).write_text(text)
    (folder / "targets.json").write_text(json.dumps([{"targets": targets}]))
    with started(
        [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ],
        r'"?Listening on"? address=(\S+)',
        folder / "prometheus.log",
    ) as address:
        yield Prometheus(address)


FASTER = {
    "prometheus.yml": (r"_interval: \w+", "_interval: 1s", 2),
    "rules.yml": (r"^( +for): \w+$", r"\1: 1s", 4),
}
"""What is replaced in the shipped files, by what, and how often it is there."""


@pytest.fixture
def fleet(tmp_path: Path) -> Generator[Fleet, None, None]:
    """Start two instances and Prometheus."""
    program("prometheus")
    with ExitStack() as stack:
        healthy, leaking = (
            stack.enter_context(instance(tmp_path, name)) for name in ("healthy", "leaking")
        )
        watching = stack.enter_context(prometheus(tmp_path, [healthy, leaking]))
        yield Fleet(watching, healthy, leaking)


@contextmanager
def load(*addresses: str) -> Generator[dict[str, Counter[int]], None, None]:
    """Send requests to all of them while the block runs; afterwards give the statuses."""
    ended = threading.Event()
    statuses = {address: Counter[int]() for address in addresses}

    def send(address: str) -> None:
        while not ended.wait(0.02):
            for path in HEALTHY:
                # Each on a connection of its own: uvicorn closes one after an error.
                statuses[address][get(f"http://{address}{path}").status_code] += 1

    with ThreadPoolExecutor(len(addresses)) as pool:
        work: list[Future[None]] = [pool.submit(send, address) for address in addresses]
        try:
            yield statuses
        finally:
            ended.set()
    for one in work:
        one.result()


def chosen(expression: str, **variables: str) -> str:
    """Put in what is chosen above a dashboard, as Grafana does."""
    for name, value in {"__rate_interval": "1m", **variables}.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression
    return expression


def several(values: list[str]) -> str:
    """Write several values of a variable, as Grafana does in a regular expression."""
    return "(" + "|".join(values).replace(".", r"\\.") + ")"


def test_the_alerts_tell_which_instance_leaks_and_the_dashboard_shows_it(fleet: Fleet) -> None:
    """All alerts fire for the one that leaks, none for the other; no query is without data."""
    watching = fleet.prometheus
    with load(fleet.healthy, fleet.leaking) as statuses:
        # Both are watched, and nothing has leaked.
        patiently(
            lambda: len(watching.query("job_instance_pool:leakguard_unresolved_leaks:sum")) == 2
        )
        assert watching.ask("alerts")["alerts"] == []

        for _ in range(CONNECTIONS):
            assert get(f"http://{fleet.leaking}{LEAK}").status_code == 200
        patiently(lambda: "ConnectionLeaked" in watching.alerts(fleet.leaking, "firing"))
        patiently(lambda: watching.alerts(fleet.leaking, "firing") == ALERTS, PATIENCE * 2)
        assert watching.alerts(fleet.healthy, "pending", "firing") == set()

        the_leak_is_told_in_full(fleet)
        every_rule_runs(watching)
        every_panel_has_data(watching, [fleet.healthy, fleet.leaking])
        every_question_of_the_page_can_be_asked(watching)
    assert set(statuses[fleet.healthy]) == {200}
    assert statuses[fleet.leaking][500] > 0


def the_leak_is_told_in_full(fleet: Fleet) -> None:
    """The alert has the route, the pool and the number of connections."""
    (alert,) = (
        alert
        for alert in fleet.prometheus.ask("alerts")["alerts"]
        if alert["labels"]["alertname"] == "ConnectionLeaked"
    )
    assert alert["labels"] == {
        "alertname": "ConnectionLeaked",
        "severity": "warning",
        "job": "shop",
        "instance": fleet.leaking,
        "method": "GET",
        "route": "/kept/items/{item_id}",
        "pool": "main",
    }
    assert f"about {CONNECTIONS}." in alert["annotations"]["description"]


def every_rule_runs(watching: Prometheus) -> None:
    """None has an error, and each records or tells something."""
    running = [rule for group in watching.ask("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in running] == [rule.name for rule in rules()]
    assert {rule["health"] for rule in running} == {"ok"}
    assert [rule["name"] for rule in running if not watching.query(rule["query"])] == []


def every_panel_has_data(watching: Prometheus, instances: list[str]) -> None:
    """With everything chosen, and with each instance by its name."""
    for choice in (".+", several(instances)):
        for title, expression, _ in queries():
            found = watching.query(chosen(expression, job=several(["shop"]), instance=choice))
            assert any(map(math.isfinite, (value for _, value in found))), (title, expression)
    for name, expected in {"job": ["shop"], "instance": sorted(instances)}.items():
        assert offered(watching, name) == expected


def every_question_of_the_page_can_be_asked(watching: Prometheus) -> None:
    """The table says what to sum, and Prometheus understands it."""
    page = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
    asked = re.findall(r"^\| [^|]+ \| `(.*)` \|$", page, re.MULTILINE)
    assert len(asked) == 6
    answers = [watching.query(expression.replace(r"\|", "|")) for expression in asked]
    # The one that looks back at a day in steps of 5 minutes may not have had its first one.
    assert [answer for answer in answers if not answer] in ([], [[]])


def offered(watching: Prometheus, name: str) -> list[str]:
    """List what the dashboard offers for a variable."""
    (definition,) = (
        variable["definition"]
        for variable in dashboard()["templating"]["list"]
        if variable["name"] == name
    )
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", definition)
    assert asked is not None
    values: list[str] = watching.ask(
        f"label/{asked[2]}/values", **{"match[]": chosen(asked[1], job=".+")}
    )
    return sorted(values)
