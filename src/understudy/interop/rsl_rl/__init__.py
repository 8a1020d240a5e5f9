"""rsl_rl's and st_rl's words: their configurations as a `TrainConfig`, and the runner of their training scripts."""

from understudy.interop.rsl_rl.config import from_config

__all__ = ["from_config"]
