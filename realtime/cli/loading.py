"""Finds the kernel that ``module:attribute.path`` names, or says plainly what is wrong with the name or the module."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import CodeType
from typing import TYPE_CHECKING

from realtime.cli.common import Complaint

if TYPE_CHECKING:
    from types import ModuleType

    from realtime.kernel import RealtimeKernel

__all__ = ["load_kernel", "one_line"]


def load_kernel(target: str) -> RealtimeKernel:
    """Import the module of ``module[:attribute.path]`` and return its kernel.

    :raises Complaint: there is no such module or kernel, or the module raises an exception.
    """
    from realtime.kernel import RealtimeKernel

    name, colon, path = target.partition(":")
    if not colon:
        path = "kernel"
    if name.endswith(".py") or "/" in name or "\\" in name:
        module_name = name.removesuffix(".py").strip("./\\").replace("/", ".").replace("\\", ".")
        raise Complaint(f"{name!r} is a file; give its module instead: {module_name}:{path}")
    if not all(part.isidentifier() for part in (*name.split("."), *path.split("."))):
        raise Complaint(f"{target!r}: must be MODULE or MODULE:KERNEL, such as chat:kernel")
    module = _import(name)
    found: object = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise Complaint(f"module {name!r} has no {path!r}; {_kernels_of(module)}") from None
    if not isinstance(found, RealtimeKernel):
        raise Complaint(
            f"{name}:{path} is of type {type(found).__name__}, not a RealtimeKernel; {_kernels_of(module)}"
        )
    return found


def _kernels_of(module: ModuleType) -> str:
    from realtime.kernel import RealtimeKernel

    names = sorted(name for name, value in vars(module).items() if isinstance(value, RealtimeKernel))
    if not names:
        return "there is no RealtimeKernel in it"
    return "there is " + ", ".join(f"{module.__name__}:{name}" for name in names)


def _import(name: str) -> ModuleType:
    """Import a module, looking in the current directory first.

    An exception that the module raises is printed with the traceback from its first line on; the machinery
    that led there is left out.

    :raises Complaint: there is no such module, or it raised an exception.
    """
    here = os.getcwd()
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        own = error.__traceback__
        while own is not None and _is_machinery(own.tb_frame.f_code):
            own = own.tb_next
        if own is None and isinstance(error, ModuleNotFoundError):
            raise Complaint(
                f"there is no module {error.name!r} in {here} or elsewhere on the Python path"
            ) from None
        traceback.print_exception(type(error), error, own)
        raise Complaint(f"module {name!r} could not be imported: {one_line(error)}") from None


def _is_machinery(code: CodeType) -> bool:
    name = code.co_filename
    return name.startswith("<frozen importlib") or name in (__file__, importlib.__file__)


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
