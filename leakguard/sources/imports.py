"""Something to do as soon as somebody imports a module, without importing it for them."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(module: str, job: Callable[[], None]) -> Callable[[], None]:
    """Have `job` done now if the module is there, else right after its own code has run.

    Return a function by which nobody waits for the module any more.
    """
    finder = _Finder(module, job)
    if module in sys.modules:
        job()
    else:
        sys.meta_path.insert(0, finder)
    return finder.remove


class _Finder(MetaPathFinder):
    """Finds the module as the others do, with a loader that does the job, too."""

    def __init__(self, module: str, job: Callable[[], None]) -> None:
        self._module = module
        self.job = job
        self._looks = False

    def remove(self) -> None:
        """Find it no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def done(self) -> None:
        """Do the job: the module has been imported."""
        self.remove()
        self.job()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  (the finder's signature)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Find it by the other finders. Whoever asks need not go on to import it."""
        if fullname != self._module or self._looks:
            return None
        self._looks = True
        try:
            spec = find_spec(fullname)
        finally:
            self._looks = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec, spec.loader, self)
        return spec


class _Loader(Loader):
    """Stands in for the module's loader until its code has run."""

    def __init__(self, spec: ModuleSpec, loader: Loader, finder: _Finder) -> None:
        self._spec = spec
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave that to the loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, leave no trace, and do the job."""
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._finder.done()
