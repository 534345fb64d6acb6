"""A line that is rendered late from an instruction is the one that Python named at the time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType, FunctionType
from typing import Any, Self, cast

import greenlet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakguard import CallSite
from leakguard.core.callsite import capture, no_segments
from leakguard.sources.sqlalchemy.greenlets import parent_stacks
from tests.support import line_marked

Pair = tuple[int, int]


def frame_out(depth: int) -> FrameType:
    return sys._getframe(depth + 1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented


def both(frame: FrameType) -> Pair:
    """Return what Python and the call site say about the line that a frame is at."""
    site = capture(frame, 1, no_segments)
    assert site is not None
    return frame.f_lineno, site.line


def here(*_: object) -> Pair:
    return both(frame_out(1))


class Anything:
    """Notes the line at every operation that calls a method of it."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []

    def __getattr__(self, _: str) -> Anything:
        self.pairs.append(both(frame_out(1)))
        return self

    def __call__(self, *_: object, **__: object) -> Anything:
        self.pairs.append(both(frame_out(1)))
        return self

    def __enter__(self) -> Self:
        self.pairs.append(both(frame_out(1)))
        return self

    def __exit__(self, *_: object) -> None:
        self.pairs.append(both(frame_out(1)))

    def __iter__(self) -> Iterator[Anything]:
        self.pairs.append(both(frame_out(1)))
        return iter([self, self])

    def __add__(self, _: object) -> Anything:
        self.pairs.append(both(frame_out(1)))
        return self


# fmt: off
def statements_over_many_lines(db: Anything) -> None:
    db.query(
        db.first,
        db.second(
            1,
            2,
        ),
        *[
            db.third(item)
            for item in db.fourth(
                db,
            )
        ],
        key=db.fifth,
    ).filter(
        db.sixth
        + db.seventh,
    ).all()
    with (
        db.session() as first,
        db.session(
            first,
        ) as second,
    ):
        second.execute(
            "select"
            " 1",
        )
    try:
        for each in db:
            each.commit(
                db.eighth,
            )
    finally:
        db.close()


def generator_over_many_lines() -> Iterator[Pair]:
    yield here(
        1,
    )
    yield (
        here()
    )


async def coroutine_over_many_lines() -> Pair:
    return (
        here(
            1,
        )
    )
# fmt: on


def test_every_point_of_long_statements() -> None:
    """Attributes, calls, operators, comprehensions, blocks and their ends, over many lines."""
    db = Anything()
    statements_over_many_lines(db)
    assert len({python for python, _ in db.pairs}) > 15
    assert [ours for _, ours in db.pairs] == [python for python, _ in db.pairs]


def test_generators_and_coroutines() -> None:
    """Also where a function has been resumed."""
    pairs = list(generator_over_many_lines())
    with pytest.raises(StopIteration) as stopped:
        coroutine_over_many_lines().send(None)
    pairs.append(stopped.value.value)
    assert len({python for python, _ in pairs}) == 3
    assert [ours for _, ours in pairs] == [python for python, _ in pairs]


EXPRESSIONS = st.recursive(
    st.just("db"),
    lambda inner: st.one_of(
        st.builds("{}.name".format, inner),
        st.builds("(\n{}\n+\n{}\n)".format, inner, inner),
        st.builds("{}(\n{},\n\n{})".format, inner, inner, inner),
        st.builds("[\n{}\nfor _ in\n{}\n][0]".format, inner, inner),
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_any_expression(expression: str) -> None:
    """However calls, operators, comprehensions and line breaks are mixed."""
    db = Anything()
    exec(compile(f"(\n{expression}\n)", "/srv/app/db.py", "exec"), {"db": db})  # noqa: S102  (our own text)
    assert [ours for _, ours in db.pairs] == [python for python, _ in db.pairs]


def test_the_lines_across_real_greenlets() -> None:
    """A stack inside a greenlet goes on where its parents stand."""

    def innermost() -> CallSite | None:
        return capture(frame_out(0), 12, parent_stacks)

    def middle() -> Any:
        return greenlet.greenlet(innermost).switch()  # middle

    def outermost() -> Any:
        return greenlet.greenlet(middle).switch()  # outermost

    frames = outermost().frames
    names = [frame.function.rpartition(".")[2] for frame in frames]
    this = cast("FunctionType", test_the_lines_across_real_greenlets)
    assert names[:4] == ["innermost", "middle", "outermost", this.__name__]
    assert [frame.line for frame in frames[1:3]] == [
        line_marked(this, "middle"),
        line_marked(this, "outermost"),
    ]


def test_a_limit_that_is_reached_asks_for_no_parents() -> None:
    """Production keeps one frame, and the parents' stacks cost time."""

    def segments() -> list[FrameType]:
        raise AssertionError

    site = capture(frame_out(0), 1, segments)
    assert site is not None
    assert len(site.frames) == 1
