"""The training loop and its files. The package itself is callable: `us.train(config)` is `loop.train(config)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.train.config import TrainConfig
    from understudy.train.run import Run


class _Train(ModuleType):
    """`us.train` must be a function, and importing any `understudy.train.x` makes it this module: so it is both."""

    def __call__(self, config: TrainConfig) -> Run:
        """Train as the config says; see `understudy.train.loop.train`."""
        from understudy.train.loop import train

        return train(config)


sys.modules[__name__].__class__ = _Train
