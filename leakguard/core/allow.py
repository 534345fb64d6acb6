"""The block that exempts what is acquired inside it from findings."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NoReturn

from leakguard.exceptions import LeakGuardError, SettingsError

if TYPE_CHECKING:
    from types import TracebackType


class AllowedBlock:
    """The block of `allow(...)`; it can be entered once, else raises `LeakGuardError`."""

    __slots__ = ("_entered", "_inherited", "left", "outer", "reason")

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.outer: AllowedBlock | None = None
        """The block around it."""
        self.left = False
        """Whether it has ended."""
        self._entered = False
        self._inherited = False

    def __enter__(self) -> None:
        if self._entered:
            raise LeakGuardError(
                f"the block of allow({self.reason!r}) was entered before: call allow() for each"
            )
        self._entered = True
        before = allowed_block.get()
        # Work that was started in a block which has ended since is still that block's.
        self._inherited = before is not None and before.left
        self.outer = before
        allowed_block.set(self)

    def __call__(self, function: object) -> NoReturn:
        """Refuse to decorate: around a coroutine function it would exempt nothing."""
        raise SettingsError(
            "function",
            function,
            f"allow({self.reason!r}) is no decorator: write `with allow(...):` in the function",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.left = True
        # Blocks in generators need not end in the reverse order, and the two halves of a
        # synchronous dependency run in two threads: there it may not be the innermost one.
        if allowed_block.get() is self:
            allowed_block.set(self.outer if self._inherited else _innermost(self.outer))
        if self.outer is not None and self.outer.left:
            self.outer = None  # it would keep all those before it


allowed_block: Final[ContextVar[AllowedBlock | None]] = ContextVar(
    "leakguard_allowed", default=None
)
"""The innermost block; `None` outside of any. Child tasks that were started in one stay in it."""


def allow(reason: str) -> AllowedBlock:
    """Make a block, for `with`; the holds that are acquired inside are exempt from findings.

    Raises `SettingsError` where no reason is given: the next reader needs it.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise SettingsError("reason", reason, "must say in a few words why the use is deliberate")
    return AllowedBlock(reason)


def _innermost(block: AllowedBlock | None) -> AllowedBlock | None:
    """Return `block`, or the innermost of those around it that has not ended."""
    while block is not None and block.left:
        block = block.outer
    return block
