"""Mending modules of RecBole when they are imported, so that nobody waits for those that are not
used: all of RecBole, with torch and pandas, takes seconds.

Delete when nothing of RecBole needs mending.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def after_import(
    module: str, function: Callable[..., object], before: Callable[[], object] | None = None
) -> None:
    """Call ``function(module)`` once a module has run: now if it has, else when it does.

    Args:
        module: its full name.
        function: takes the module.
        before: called just before the module runs; ``function`` then takes what it returns, too,
            None where the module had run already.
    """
    if module in sys.modules:
        function(sys.modules[module], *([] if before is None else [None]))
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.waiting.setdefault(module, []).append((function, before))


class _AfterImport:
    """Finds modules as ever, and calls functions once they have run.

    Attributes:
        waiting: those functions, with what comes before, by the name of the module.
    """

    def __init__(self) -> None:
        self.waiting: dict[
            str, list[tuple[Callable[..., object], Callable[[], object] | None]]
        ] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        functions = self.waiting.pop(fullname, None)
        if functions is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None:
            self.waiting[fullname] = functions
            return None
        if not self.waiting:
            sys.meta_path.remove(self)
        loader: Any = spec.loader
        run = loader.exec_module

        def run_and_call(module: ModuleType) -> None:
            more = [[] if before is None else [before()] for _, before in functions]
            run(module)
            for (function, _), arguments in zip(functions, more, strict=True):
                function(module, *arguments)

        loader.exec_module = run_and_call
        return spec


_finder = _AfterImport()
