"""Functions of RecBole that our files and loaders need, put into its modules.

Delete when RecBole reads plain checkpoints, and its case study every loader.
"""

import importlib.abc
import importlib.util
import sys


def replace_in(module: str, **functions) -> None:
    """Let a module of RecBole have these functions: now if it is imported, else once it is.

    Some import much: ``recbole.quick_start`` all of Ray.
    """
    if module in sys.modules:
        vars(sys.modules[module]).update(functions)
    else:
        sys.meta_path.insert(0, _AfterImport(module, functions))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module as ever, and puts functions into it once it has run."""

    def __init__(self, module, functions):
        self.module, self.functions = module, functions

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        run = spec.loader.exec_module

        def run_and_replace(module):
            run(module)
            vars(module).update(self.functions)

        spec.loader.exec_module = run_and_replace
        return spec
