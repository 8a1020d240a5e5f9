"""A part of your own with three hooks: a scripted expert labels every step, acts now and then, and is imitated.

The expert balances CartPole by pushing towards the side to which the pole leans and turns. In each episode it acts
with a probability that falls from 1 to 0 (that mixture of states is DAgger's, arXiv:1011.0686); PPO learns from the
steps that the policy chose itself, and a cross-entropy pulls the policy towards the expert on all of them.

Run it with `python examples/custom_part.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

import understudy as us
from understudy.core.schedules import Number, Scalar
from understudy.nn.policy import PolicyOutput
from understudy.types import Metrics

FADE = us.Schedule(kind="linear", start=1.0, end=0.0)  # over the whole training; as text, "linear:1:0"


@dataclass(frozen=True, kw_only=True)
class BalancerConfig(us.PartConfig):
    """Options of the scripted balancer."""

    coef: Number = FADE
    """Weight of the imitation loss."""
    act_probability: Number = FADE
    """Probability with which the expert acts, drawn anew for each episode."""

    def build(self, context: us.PartContext) -> Balancer:
        """Build the part."""
        return Balancer(context, self)


class Balancer(us.Part, us.Labels, us.Overrides, us.Losses):
    """Label: 1 (push right) where angle + angular velocity > 0. L = coef * mean(-log pi(label | s)).

    Raises ValueError where the action is not a choice of two.
    """

    acts: Tensor  # [N] bool: the expert acts in this environment's episode

    def __init__(self, context: us.PartContext, config: BalancerConfig) -> None:
        super().__init__(context)
        if context.action_space != spaces.Discrete(2):
            raise ValueError(f"the balancer pushes left or right, but the action space is {context.action_space}")
        # numbers that move are 0-D buffers, so that captured code sees them move; the core advances their schedules
        self.coef = Scalar(config.coef, context.device)
        self.act_probability = Scalar(config.act_probability, context.device)
        # a buffer is saved in checkpoints and restored
        self.register_buffer("acts", torch.zeros(context.num_envs, dtype=torch.bool, device=context.device))

    def label(self, obs: TensorDict, is_first: Tensor) -> TensorDict:
        """What the expert would do in obs `[N]`; stored in the rollout under the part's name."""
        # the part's own random stream: no other part or network draws from it
        drawn = torch.rand(len(is_first), generator=self.generator, device=is_first.device) < self.act_probability()
        self.acts.copy_(torch.where(is_first, drawn, self.acts))
        action = (obs["policy"][:, 2] + obs["policy"][:, 3] > 0).long()
        return TensorDict({"action": action}, batch_size=[len(action)])

    def override(self, action: Tensor, label: TensorDict) -> tuple[Tensor, Tensor]:
        """The expert's action where it acts. The core takes the log-prob of what is executed."""
        return torch.where(self.acts, label["action"], action), self.acts

    def loss(self, policy: us.ActorCritic, batch: TensorDict, out: PolicyOutput) -> tuple[Tensor, Metrics]:
        """Cross-entropy on the labels of this minibatch."""
        loss = -out.distribution.log_prob(batch[self.name, "action"]).mean()
        return self.coef() * loss, {"cross_entropy": loss.detach()}


def main(total_steps: int = 20_000, run_dir: Path | None = None) -> us.Run:
    run = us.train(
        us.TrainConfig(
            env=us.EnvConfig(id="CartPole-v1", num_envs=8),
            ppo=us.PPOConfig(num_steps=128, epochs=4, minibatches=4),
            parts={"expert": BalancerConfig()},
            total_steps=total_steps,
            torch_threads=1,
            run_dir=None if run_dir is None else str(run_dir),
        )
    )
    assert run.evaluation is not None
    print(run.evaluation.sentence())
    print("cross-entropy:", [round(row["expert/cross_entropy"], 3) for row in run.metrics[::4]])
    return run


if __name__ == "__main__":
    main()
