"""What speaks the words of other libraries."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.interop import allenact, rsl_rl, tianshou, torchrl

__all__ = ["allenact", "rsl_rl", "tianshou", "torchrl"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"understudy.interop.{name}")
    raise AttributeError(f"module 'understudy.interop' has no attribute {name!r}")
