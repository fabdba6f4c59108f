"""FOR TESTS ON A CPU ONLY: importable stand-ins for the GPU packages that SGLang imports.

SGLang imports `triton`, `torchvision` and `sgl_kernel` at module level also where it never calls
them. Stock SGLang on a CPU (torch_native attention, pytorch sampling) calls none of their
kernels; a stand-in that is called raises. `.ci/sglang` puts this folder, with a `.pth` that
imports this file, on the path of the test environment alone, so that SGLang's own processes have
it too. Never use it where a real installation is meant to work.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

STAND_INS = ("triton", "torchvision", "sgl_kernel")


class AnyMember(type):
    """A class that has every public attribute, as in `InterpolationMode.NEAREST`: its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(f"{cls.__name__}.{name}")
        return name

    def __call__(cls, *args: object, **options: object) -> object:
        return super().__call__()


class StandIn(types.ModuleType):
    """A module that has every attribute: classes for capitalised names, modules for others."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__version__ = "0.0.0+stand.in"

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"{self.__name__}.{name}")
        if name[0].isupper():
            value: object = AnyMember(name, (), {"__module__": self.__name__})
        else:
            value = importlib.import_module(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args: object, **options: object) -> object:
        """A decorator, as in `@triton.jit` and `@triton.jit(...)`."""
        if args and isinstance(args[0], types.FunctionType):
            return args[0]
        if self.__name__.partition(".")[0] == "triton":
            return self
        raise RuntimeError(f"{self.__name__} is a stand-in for tests on a CPU: it computes nothing")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-ins and everything below them, unless the real package is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name.partition(".")[0] not in STAND_INS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.append(Finder())  # last: a real package is found before it
