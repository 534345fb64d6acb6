"""The shipped files are well-formed, pass their own tests, and name nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.observability.files import (
    FOLDER,
    ROOT,
    Rule,
    dashboard,
    exported,
    promtool,
    queries,
    rules,
)

README = (FOLDER / "README.md").read_text(encoding="utf-8")
FLEET = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
RULES = rules()
ALERTS = [rule for rule in RULES if rule.kind == "alert"]
RECORDS = [rule for rule in RULES if rule.kind == "record"]
EXPRESSIONS = {
    **{rule.name: rule.expr for rule in RULES},
    **{f"{title}: {legend}": expr for title, expr, legend in queries()},
}
"""All there are, by what they are for."""
OWN = {"job", "instance"}
"""The labels that Prometheus adds."""


def names(expression: str) -> list[str]:
    """List the metrics of leakguard's in an expression."""
    return re.findall(r"(?<![:\w])(?:leakguard|db_client)_\w+", expression)


def recorded(expression: str) -> list[str]:
    """List the results of recording rules in an expression."""
    return re.findall(r"\w+:\w+:\w+", expression)


def level(record: str) -> list[str]:
    """List the labels that the name of a recording rule promises."""
    return record.partition(":")[0].split("_")


def kept(expression: str) -> list[str]:
    """List the labels of what an expression gives."""
    found = re.search(r"\bby \(([^)]+)\)", expression)
    if found is None:
        return level(recorded(expression)[0])
    return [label for label in found[1].split(", ") if label != "le"]


def labels(expression: str) -> set[str]:
    """List the labels that an expression selects or joins by."""
    lists = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    return {
        *re.findall(r'(\w+)(?:=|=~|!=|!~)"', expression),
        *(label for one in lists for label in one.split(", ")),
    }


# --- promtool -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    """The configuration and the rules are valid, and the rules do what their tests say."""
    promtool(*arguments)


def pod(name: str, port: str = "8000", **annotations: str) -> dict[str, Any]:
    """Describe a pod, as Prometheus learns of it from Kubernetes."""
    prefix = "__meta_kubernetes_"
    labels = {
        f"{prefix}namespace": "sales",
        f"{prefix}pod_label_app_kubernetes_io_name": "shop",
        f"{prefix}pod_name": name,
        f"{prefix}pod_container_port_number": port,
        **{f"{prefix}pod_annotation_{key}": value for key, value in annotations.items()},
    }
    return {"targets": [f"{name}:80"], "labels": labels}


def test_the_configuration_for_kubernetes_finds_pods_and_names_them(tmp_path: Path) -> None:
    """Those that want it are targets where they declare a port, and are called by their names."""
    (block,) = re.findall(r"```yaml\n(.*?)```", FLEET, re.DOTALL)
    # Debian builds Prometheus without Kubernetes: the pods come from a file.
    cluster, file = (
        "kubernetes_sd_configs:\n      - role: pod\n",
        "file_sd_configs:\n      - files: ",
    )
    assert cluster in block
    (tmp_path / "prometheus.yml").write_text(block.replace(cluster, f"{file}[pods.json]\n"))
    pods = [
        pod("shop-1", leakguard_scrape="true"),
        pod("shop-2", leakguard_scrape="true"),
        pod("shop-3", port="", leakguard_scrape="true"),
        pod("other"),
    ]
    (tmp_path / "pods.json").write_text(json.dumps(pods))
    command = ("check", "service-discovery", "--timeout=3s", "prometheus.yml", "kubernetes-pods")
    targets = [one["labels"] for one in json.loads(promtool(*command, folder=tmp_path))]
    wanted = ("job", "instance", "__metrics_path__")
    assert sorted(tuple(labels[name] for name in wanted) for labels in targets if labels) == [
        ("sales/shop", "shop-1", "/metrics/"),
        ("sales/shop", "shop-2", "/metrics/"),
    ]


def test_every_alert_is_tested_with_its_whole_text() -> None:
    """The tests of the rules have a case with the annotations of each."""
    tests = (FOLDER / "rules_test.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"- alertname: (\w+)", tests)) == sorted(one.name for one in ALERTS)
    assert tests.count("exp_annotations:") == len(ALERTS)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=list(EXPRESSIONS))
def test_every_metric_that_is_named_exists_with_its_labels(expression: str) -> None:
    """Expressions name metrics and results of rules that there are, and labels that they have."""
    there = exported() | {rule.name: set(level(rule.name)) for rule in RECORDS}
    used = [*names(expression), *recorded(expression)]
    assert used
    assert [name for name in used if name not in there] == []
    assert labels(expression) <= OWN.union(*(there[name] for name in used))


def test_every_metric_is_shown_or_watched() -> None:
    """Nothing that leakguard counts is left out; of a histogram, the buckets are enough."""
    used = {name for expression in EXPRESSIONS.values() for name in names(expression)}
    buckets = {name.removesuffix("_bucket") for name in used if name.endswith("_bucket")}
    parts = {f"{name}_{part}" for name in buckets for part in ("count", "sum")}
    assert used | parts == set(exported())


@pytest.mark.parametrize("rule", RECORDS, ids=lambda rule: rule.name)
def test_a_recording_rule_is_called_by_the_labels_that_it_keeps(rule: Rule) -> None:
    """Job and instance are among them, first of all."""
    assert level(rule.name)[:2] == ["job", "instance"]
    assert level(rule.name) == kept(rule.expr)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)
def test_an_alert_says_how_bad_it_is_what_happened_where_and_what_to_do(rule: Rule) -> None:
    """It has a severity, a summary and a description with value and place, and a page to read."""
    assert re.search(r"severity: (warning|critical)\n", rule.text)
    assert re.search(r'summary: ".*\$labels\.job', rule.text)
    description = rule.text.partition("description: >-\n")[2]
    assert "$value" in description
    assert "$labels.instance" in description
    assert {*re.findall(r"\$labels\.(\w+)", rule.text)} <= {*kept(rule.expr)}
    runbook = re.search(r"runbook: (\S+)\n", rule.text)
    assert runbook is not None
    assert f"](../../{runbook[1]})" in README  # where links are followed by another test


def test_the_readme_of_the_folder_describes_every_alert() -> None:
    """In a section of its own each, in the order of the rules."""
    section = README.partition("## The alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == [rule.name for rule in ALERTS]


def test_the_readme_of_the_folder_starts_what_prometheus_looks_for() -> None:
    """The ports of its commands are the targets."""
    (group,) = json.loads((FOLDER / "targets.json").read_text(encoding="utf-8"))
    ports = re.findall(
        r"uvicorn examples\.observability\.application:app --port (\d+)$", README, re.MULTILINE
    )
    assert [f"127.0.0.1:{port}" for port in ports] == group["targets"]


# --- the dashboard --------------------------------------------------------------------------------

PANELS: list[dict[str, Any]] = dashboard()["panels"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_numbers_and_places_of_their_own() -> None:
    """No number twice, and no two on the same spot."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    spots = [
        (x, y)
        for grid in (panel["gridPos"] for panel in PANELS)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(spots) == len(set(spots))
    assert max(x for x, _ in spots) < 24


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """It has a title, a description, a unit, and the data source that is chosen above."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in ("short", "s", "percentunit")
    assert [one["datasource"] for one in (panel, *panel["targets"])] == [SOURCE] * (
        1 + len(panel["targets"])
    )
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


@pytest.mark.parametrize("title, expression, legend", queries())
def test_a_query_heeds_what_is_chosen_and_a_legend_tells_apart(
    title: str, expression: str, legend: str
) -> None:
    """Every selector has job and instance; the legend has each label that is left."""
    selectors = re.findall(r"\{([^}]*)\}", expression)
    assert selectors
    for selector in selectors:
        assert selector.startswith('job=~"$job", instance=~"$instance"')
    assert {*re.findall(r"\{\{(\w+)\}\}", legend)} == {*kept(expression)}


def test_the_dashboard_is_of_no_installation() -> None:
    """Data source, application and instance are chosen; there is no number of a database's."""
    whole = dashboard()
    assert whole["id"] is None
    variables = {variable["name"]: variable for variable in whole["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    for name in ("job", "instance"):
        assert variables[name]["datasource"] == SOURCE
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
    assert "$job" in variables["instance"]["definition"]


def test_the_lines_of_the_dashboard_are_the_thresholds_of_the_alerts() -> None:
    """Where a panel draws a line, an alert fires that its description names."""
    drawn = {
        alert: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for panel in PANELS
        for alert in re.findall(r"alert (\w+) fires", panel["description"])
    }
    thresholds = {rule.name: float(rule.expr.split(">")[-1]) for rule in ALERTS}
    assert drawn == {alert: thresholds[alert] for alert in ("PoolNearlyExhausted", "CheckoutsWait")}
