"""What is not allowed is a usage error that says what is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from leakguard import pytest_plugin
from tests.plugin.conftest import Run, Write, ended


def refused(result: pytest.RunResult, *lines: str) -> None:
    """Check that nothing ran, and that the error says all of this."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = result.stderr.str() + result.stdout.str()
    for line in lines:
        assert line in said


def test_a_bad_ini_setting(write: Write, run: Run, pytester: pytest.Pytester) -> None:
    """Names the setting, the value and what is allowed."""
    write("def test_one(): pass")
    pytester.makeini("[pytest]\nleakguard = strict")
    refused(
        run(),
        "the ini setting leakguard must be one of 'off', 'warn', 'error', and is 'strict'",
    )


def test_a_bad_option(write: Write, run_apart: Run) -> None:
    """Is refused as pytest refuses those of its own."""
    write("def test_one(): pass")
    refused(run_apart("--leakguard=strict"), "--leakguard", "'off', 'warn', 'error'", "'strict'")


@pytest.mark.parametrize(
    "marker, said",
    [
        ("'strict'", "its argument must be one of 'off', 'warn', 'error', and is 'strict'"),
        ("None", "its argument must be one of 'off', 'warn', 'error', and is None"),
        ("'off', 'warn'", "takes one of 'off', 'warn', 'error', and ignore=[...]"),
        ("mode='off'", "there is no argument 'mode'; known is 'ignore'"),
        ("ignore='leaked'", "ignore='leaked' is not allowed: must be a list"),
        (
            "ignore=['leak']",
            (
                "ignore=['leak'] is not allowed: must be of 'leaked', 'reclaimed', 'held', "
                "'pool_exhausted', or a function that takes a finding"
            ),
        ),
        ("ignore=['unclosed_session']", "ignore=['unclosed_session'] is not allowed"),
    ],
)
@pytest.mark.parametrize("option", ["off", "error"])
def test_a_bad_marker(write: Write, run: Run, marker: str, said: str, option: str) -> None:
    """Names the test, also where nothing else is looked for."""
    write(f"@pytest.mark.leakguard({marker})\ndef test_one(): pass")
    refused(
        run(f"--leakguard={option}"), "test_suite.py::test_one: @pytest.mark.leakguard: " + said
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--leakguard-baseline=no.json"], "has no effect while leaks are not looked for"),
        (["--leakguard-report=r.json"], "--leakguard-report has no effect while leaks"),
        (
            ["--leakguard=error", "--leakguard-baseline=no.json"],
            "no.json; add --leakguard-update-baseline to have it written",
        ),
        (
            ["--leakguard=error", "--leakguard-update-baseline"],
            "add --leakguard-baseline=FILE",
        ),
        (["--leakguard=error", "--leakguard-report="], "--leakguard-report must name a file"),
        (["--leakguard=error", "--leakguard-report=."], "is a folder"),
        (["--leakguard=error", "--leakguard-report=no/r.json"], "which is no folder"),
        (
            [
                "--leakguard=error",
                "--leakguard-baseline=empty.json",
                "--leakguard-report=./empty.json",
            ],
            "empty.json would overwrite the baseline: name another file",
        ),
        (
            ["--leakguard=error", "--leakguard-baseline=empty.json"],
            "empty.json is no baseline of leakguard's",
        ),
        (
            ["--leakguard=error", "--leakguard-baseline=list.json"],
            'it does not begin with "leakguard_baseline": 1',
        ),
        (
            ["--leakguard=error", "--leakguard-baseline=half.json"],
            "half.json is no baseline of leakguard's ('leaks')",
        ),
        (["--leakguard=error", "--leakguard-baseline=binary.json"], "cannot read"),
        (
            [
                "--leakguard=error",
                "--leakguard-baseline=no.json",
                "--leakguard-update-baseline",
                "--collect-only",
            ],
            "leave out --collect-only",
        ),
        (
            ["--leakguard=error", "-oleakguard_baseline=no/no.json"],
            "the ini setting leakguard_baseline=no/no.json: no.json cannot be in",
        ),
    ],
)
def test_bad_files(
    write: Write, run: Run, pytester: pytest.Pytester, arguments: list[str], said: str
) -> None:
    """Are found before the first test runs, and options without effect are no secret."""
    write("def test_one(): pass")
    (pytester.path / "empty.json").write_text("")
    (pytester.path / "list.json").write_text("[]")
    (pytester.path / "half.json").write_text('{"leakguard_baseline": 1}')
    (pytester.path / "binary.json").write_bytes(b"\xff\xfe\xff")
    refused(run(*arguments), said)


def test_whoever_says_off_may_leave_the_other_options(write: Write, run: Run) -> None:
    """As for one run of a suite whose ini file has them."""
    write("def test_one(): take()")
    ended(run("--leakguard=off", "--leakguard-baseline=no.json"), passed=1)
    refused(run("--leakguard=error", "--leakguard-baseline=no.json"), "there is no baseline")


def test_an_old_pluggy_is_told(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    """It has no wrappers of the kind that the plugin is made of."""

    def signature(_: object) -> SimpleNamespace:
        return SimpleNamespace(parameters={})

    monkeypatch.setattr(pytest_plugin, "signature", signature)
    with pytest.raises(pytest.UsageError, match=r"takes pluggy 1\.2 or later, and this is "):
        pytester.parseconfigure("--leakguard=error")
