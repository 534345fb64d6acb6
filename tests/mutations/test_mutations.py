"""The list of mutations fits the code, so that the command can be run at any time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import leakguard
from tests.mutations.__main__ import first_failure, mutate
from tests.mutations.rules import MUTATIONS, Mutation

PACKAGE = Path(leakguard.__file__).parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_code_that_follows_the_rule_is_there_once_and_can_be_broken(mutation: Mutation) -> None:
    text = (PACKAGE / mutation.file).read_text()
    broken = mutate(text, mutation)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))


def test_code_that_is_gone_is_an_error_that_names_the_rule() -> None:
    mutation = Mutation("does something wrong", "core/gone.py", "old", "new")
    with pytest.raises(ValueError, match=r"core/gone.py .* 'does something wrong' 2 times"):
        mutate("old old", mutation)


def test_what_cannot_be_run_is_no_failure_of_a_test(tmp_path: Path) -> None:
    """Else a file that is missing in the copy would count as a test that notices everything."""
    (tmp_path / "test_suite.py").write_text("def test_passes(): pass\ndef test_fails(): assert 0\n")
    assert first_failure(tmp_path, ["test_suite.py"]) == "test_suite.py::test_fails"
    assert first_failure(tmp_path, ["test_suite.py::test_passes"]) is None
    with pytest.raises(RuntimeError, match=r"^pytest ended with 4"):
        first_failure(tmp_path, ["test_nowhere.py"])
