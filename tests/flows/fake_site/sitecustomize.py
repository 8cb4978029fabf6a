"""Puts fake stages in place of the real ones in every process that finds this on PYTHONPATH.

Workers run flows in processes of their own, where no fixture reaches.
"""

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path


class Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads ``rlhf_flows.engine.bindings`` as it is and then replaces its functions."""

    def find_spec(self, name, path, target=None):
        if name != "rlhf_flows.engine.bindings":
            return None
        self.real = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(name, self, origin=self.real.origin)

    def create_module(self, spec):
        return importlib.util.module_from_spec(self.real)

    def exec_module(self, module):
        self.real.loader.exec_module(module)
        sys.path.insert(0, str(Path(__file__).parents[3]))
        from tests.flows.fakes_on_disk import FakesOnDisk

        FakesOnDisk(Path.cwd()).replace_in(module)


import importlib.util  # noqa: E402 - after the class that the import system will call

sys.meta_path.insert(0, Replacement())
