"""The list of mutations fits the code, so that the command can be run at any time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import leakguard
from tests.mutations.__main__ import mutate
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
