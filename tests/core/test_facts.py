"""The facts of a finding, for machines."""

from __future__ import annotations

import json

from leakguard import FindingKind
from leakguard.core.exhaustion import Exhaustion, Limits, PoolUsers, Use
from leakguard.core.facts import flat_facts, to_dict
from leakguard.core.finding import Evidence, PoolUsage
from leakguard.core.register import make_pool_finding
from tests.core.fakes import construct, ended_scope, make_finding, make_guard, site_at, take


def test_the_facts_are_ready_for_json() -> None:
    """Under stable names, as plain values, all of them."""
    guard = make_guard()
    finding = make_finding()
    finding.scope = ended_scope(guard)
    hold = take(guard, finding.scope, site_at("app/items.py", 41, "read_item"))
    hold.session = construct(guard, None, site_at("app/db.py", 12, "get_db"))
    finding.hold = hold
    finding.evidence = Evidence(held_for=0.011, idle_for=0.004)
    finding.usage = PoolUsage(14, 15, 11)
    facts = json.loads(json.dumps(finding.to_dict()))
    assert facts["kind"] == "leaked"
    assert facts["severity"] == "error"
    assert facts["created_at"]["line"] == 12
    assert facts["created_at"]["function"] == "get_db"
    assert facts["acquired_at"]["frames"] == [
        {"file": facts["acquired_at"]["file"], "line": 41, "function": "read_item"}
    ]
    assert facts["held_for"] == 0.011
    assert facts["pool_out"] == 14
    assert facts["route"] is None
    assert facts["scope"] == "GET /items/{item_id}"


def test_what_is_not_known_is_there_and_empty() -> None:
    """Nothing is guessed, and whoever reads the facts finds every name."""
    finding = make_finding()
    finding.hold = finding.scope = finding.usage = None
    empty = to_dict(finding)
    assert [empty[name] for name in ("created_at", "scope", "pool_out")] == [None] * 3
    assert set(empty) == set(to_dict(make_finding()))


def test_a_finding_without_a_line_has_none_in_its_facts() -> None:
    """It was code of libraries alone that took the connection."""
    finding = make_finding()
    finding.hold = take(make_guard())
    assert to_dict(finding)["acquired_at"] is None


def test_flat_facts_are_plain_values() -> None:
    """A column each, for what has no lists and no objects in it; lines are told in three."""
    finding = make_finding(FindingKind.NESTED_CHECKOUT)
    hold = take(make_guard(), None, site_at("app/items.py", 41, "read_item"))
    hold.already_held_at = site_at("app/audit.py", 7, "audit")
    finding.hold = hold
    finding.also = (FindingKind.RETURNED_LATE, FindingKind.SYNC_IN_ASYNC)
    facts = flat_facts(finding)
    assert all(value is None or isinstance(value, str | int | float) for value in facts.values())
    assert facts["also"] == "returned_late,sync_in_async"
    assert str(facts["acquired_at_file"]).endswith("app/items.py")
    assert (facts["acquired_at_line"], facts["acquired_at_function"]) == (41, "read_item")
    assert (facts["already_held_at_line"], facts["already_held_at_function"]) == (7, "audit")
    assert facts["now_at_line"] is None
    finding.hold = finding.scope = None
    assert set(flat_facts(finding)) == set(facts)


def test_the_groups_of_a_pool_are_words_in_its_flat_facts() -> None:
    """As in the report; to whom lists are no trouble, `to_dict()` gives them."""
    get_db = site_at("app/db.py", 12, "get_db")
    holders = (
        PoolUsers("GET /", get_db, Use.IDLE, 2, 3.0),
        PoolUsers("GET /items", None, Use.LEAKED, 1, 4.0),
    )
    waiters = (PoolUsers("GET /", None, None, 1, 4.0), PoolUsers("job", None, None, 2, 1.0))
    limits = Limits(5, 10, 4.0)
    found = Exhaustion(limits, 3, holders, waiters, blocks_loop=False, threads=None)
    facts = flat_facts(make_pool_finding(found, None, "main", 4.0))
    assert facts["holders"] == (
        "2 x GET /, from app/db.py:12 in get_db: idle, for up to 3.0 s; "
        "1 x GET /items, from an unknown line: leaked, for up to 4.0 s"
    )
    assert facts["waiters"] == (
        "1 x GET /, from an unknown line: for up to 4.0 s; "
        "2 x job, from an unknown line: for up to 1.0 s"
    )
