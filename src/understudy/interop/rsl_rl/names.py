"""The metrics of a training under the names that rsl_rl's and st_rl's dashboards know."""

from __future__ import annotations

from understudy.interop.rsl_rl.st_rl import ALGORITHMS
from understudy.parts.motion_prior import MotionPriorConfig
from understudy.training.loggers import Logger, Phase, Row

_RSL_RL = {
    "ppo/value_loss": "Loss/value",
    "ppo/surrogate_loss": "Loss/surrogate",
    "ppo/entropy": "Loss/entropy",
    "ppo/learning_rate": "Loss/learning_rate",
    "rnd/loss": "Loss/rnd",
    "symmetry/mirror_loss": "Loss/symmetry",
    "episode/return": "Train/mean_reward",
    "episode/length": "Train/mean_episode_length",
    "time/steps_per_second": "Perf/total_fps",
    "time/collect": "Perf/collection_time",
    "time/update": "Perf/learning_time",
}
_ST_RL = {
    "ppo/value_loss": "Loss/value_loss",
    "ppo/surrogate_loss": "Loss/surrogate_loss",
    "teacher/distance": "Loss/distillation_loss",
    "estimator/loss": "Loss/estimator_loss",
    "motion/loss_exp": "Loss/discriminator_expert_loss",
    "motion/loss_pi": "Loss/discriminator_policy_loss",
    "motion/style_reward": "Episode_Reward/style_reward",
    "motion/task_reward": "Episode_Reward/task_reward",
}


class PageNames(Logger):
    """Adds each metric under the name that it has in rsl_rl or, of st_rl's own algorithms, on st_rl's page.

    The gradient penalty comes with its weight, the mimic loss is the negative tracking reward, and what the simulator
    logs comes as it called it.
    """

    def start(self, phase: Phase) -> None:
        """Choose the names."""
        own = phase.config.recipe in {name.lower() for name in ALGORITHMS} - {"ppo"}
        self.names = {**_RSL_RL, **_ST_RL} if own else _RSL_RL
        motion = phase.config.parts.get("motion")
        penalty = motion.discriminator.gradient_penalty if isinstance(motion, MotionPriorConfig) else 0.0
        self.penalty = penalty if isinstance(penalty, int | float) else 0.0

    def log(self, step: int, metrics: Row) -> Row:
        """The other names of a row's metrics."""
        added = {self.names[name]: value for name, value in metrics.items() if name in self.names}
        for name, value in metrics.items():
            if name.startswith("env/") and "/" in name[4:]:
                added.setdefault(name[4:], value)
            elif name.startswith("teacher/latent/"):
                added[f"Loss/distill_latent_{name.rpartition('/')[2]}"] = value
        if "motion/penalty" in metrics:
            added["Loss/discriminator_grad_len_loss"] = self.penalty * metrics["motion/penalty"]
        if "motion/tracking_reward" in metrics:
            added["Loss/mimic_loss"] = -metrics["motion/tracking_reward"]
        return added
