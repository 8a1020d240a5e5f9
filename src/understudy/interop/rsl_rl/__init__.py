"""rsl_rl's and st_rl's words: their configurations as a `TrainConfig`, and the runner of their training scripts."""

from understudy.interop.rsl_rl.config import from_config
from understudy.interop.rsl_rl.runner import Runner

__all__ = ["Runner", "from_config"]
