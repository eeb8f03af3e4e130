"""An empty torchvision: open_clip, timm and lightly import it, and their losses use nothing of it.

There is no build of it for a CPU-only torch on every index, and the one that there is may be for another torch.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class _Anything(type):
    def __getattr__(cls, name):
        return _made(name)


def _made(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {})


class _Empty(types.ModuleType):
    """Every name is a class of nothing, or a module of such where it is imported."""

    __path__ = ()
    __version__ = "0.0"

    def __getattr__(self, name):
        return _made(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


def stand_in_for_torchvision() -> None:
    """Does nothing where torchvision is installed."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Finder())
