"""`ClipPPOLoss` in a loop of your own: modules of tensordict.nn, a torch optimizer, CartPole. About 20 s on one core.

Run it with `python examples/own_loop_with_clip_ppo_loss.py`.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn

import understudy as us
from understudy.envs import VecEnv

NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES = 8, 128, 4, 4


def make_actor() -> ProbabilisticTensorDictSequential:
    """Reads "observation", writes "logits", "action" and "action_log_prob"."""
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    return ProbabilisticTensorDictSequential(
        TensorDictModule(network, in_keys=["observation"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=torch.distributions.Categorical,
            return_log_prob=True,
            default_interaction_type=InteractionType.RANDOM,
        ),
    )


def make_critic() -> TensorDictModule:
    """Reads "observation", writes "state_value"."""
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    return TensorDictModule(network, in_keys=["observation"], out_keys=["state_value"])


class Collector:
    """Steps the environments with the actor and keeps what PPO needs."""

    def __init__(self, env: VecEnv, actor: ProbabilisticTensorDictSequential, critic: TensorDictModule, seed: int):
        self.env, self.actor, self.critic = env, actor, critic
        self.obs = env.reset(seed)
        self.running = torch.zeros(env.num_envs)
        self.finished: list[float] = []  # returns of finished episodes

    @torch.no_grad()
    def collect(self) -> TensorDict:
        """A rollout `[T, N]` with "next_value", the value of the true next observation."""
        rows = []
        for _ in range(NUM_STEPS):
            # the environment overwrites its tensors at the next step: keep copies
            row = self.actor(TensorDict({"observation": self.obs["policy"].clone()}, batch_size=[NUM_ENVS]))
            self.critic(row)
            step = self.env.step(row["action"])
            ended = step.terminated | step.truncated
            row["next_value"] = self.value(step.obs)
            if ended.any() and step.final_obs is not None:  # step.obs is already the next episode's first observation
                row["next_value"] = torch.where(ended, self.value(step.final_obs), row["next_value"])
            row["reward"] = step.reward.clone()
            row["terminated"], row["truncated"] = step.terminated.clone(), step.truncated.clone()
            self.running += step.reward
            self.finished += self.running[ended].tolist()
            self.running[ended] = 0.0
            self.obs = step.obs
            rows.append(row)
        return TensorDict.stack(rows)

    def value(self, obs: TensorDict) -> Tensor:
        """V(obs) `[N]`."""
        return self.critic(TensorDict({"observation": obs["policy"]}, batch_size=[NUM_ENVS]))["state_value"].squeeze(-1)


def main(total_steps: int = 40_000, seed: int = 0) -> float:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    env = us.make_env("CartPole-v1", NUM_ENVS)
    actor, critic = make_actor(), make_critic()
    loss_module = us.ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=0.2,
        entropy_coef=0.005,
        critic_coef=0.5,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    collector = Collector(env, actor, critic, seed)
    for _ in range(max(total_steps // (NUM_STEPS * NUM_ENVS), 1)):
        rollout = collector.collect()
        # over the whole rollout, while it still has its order in time: ClipPPOLoss refuses a batch without advantages
        rollout["advantage"], rollout["value_target"] = us.gae(
            rollout["reward"],
            rollout["state_value"].squeeze(-1),
            rollout["next_value"],
            rollout["terminated"],
            rollout["truncated"],
            gamma=0.99,
            gae_lambda=0.95,
        )
        batch = rollout.reshape(-1)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(batch)).chunk(MINIBATCHES):
                out = loss_module(batch[rows])
                loss = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
    env.close()
    recent = collector.finished[-20:]
    mean = sum(recent) / max(len(recent), 1)
    print(
        f"mean return of the last {len(recent)} episodes: {mean:.1f}, KL of the last minibatch: {out['kl_approx']:.4f}"
    )
    return mean


if __name__ == "__main__":
    main()
