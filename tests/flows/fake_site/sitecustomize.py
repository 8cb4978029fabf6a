"""Puts fake stages in place of the real ones in every process that finds this on PYTHONPATH.

Workers run flows in processes of their own, where no fixture reaches. A stage's module is not even
loaded: importing torch would take most of a test's time.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.flows.seam import SEAM, USED_WHOLE


@cache
def fakes():
    from tests.flows.fakes_on_disk import FakesOnDisk

    return FakesOnDisk(Path.cwd())


def call(name, *arguments, **options):
    return getattr(fakes(), name)(*arguments, **options)


def unused(name):
    """Stand for what other modules take of a module when they are imported, and never use here."""
    if name.startswith("__"):
        raise AttributeError(name)


class Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the modules of the seam their fakes."""

    def find_spec(self, name, path, target=None):
        if name not in SEAM:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(
            name, self, origin=spec.origin, loader_state=spec.loader
        )

    def exec_module(self, module):
        if module.__name__.startswith(USED_WHOLE):
            module.__file__ = module.__spec__.origin
            module.__spec__.loader_state.exec_module(module)
        else:
            module.__getattr__ = unused
        for name in SEAM[module.__name__]:
            setattr(module, name, partial(call, name))


sys.meta_path.insert(0, Replacement())
