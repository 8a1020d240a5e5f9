"""A TorchRL training script: its collector, its GAE, its `ClipPPOLoss`, on CartPole. Needs `pip install torchrl`."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, TransformedEnv
from torchrl.envs.transforms import RewardSum
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

FRAMES, EPOCHS, MINIBATCH = 512, 4, 128


def networks() -> tuple[ProbabilisticActor, ValueOperator]:
    """Actor and critic of CartPole."""

    def mlp(out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))

    actor = ProbabilisticActor(
        TensorDictModule(mlp(2), in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    return actor, ValueOperator(mlp(1), in_keys=["observation"])


def collect(actor: ProbabilisticActor, total_frames: int, seed: int) -> Collector:
    """TorchRL's collector on its environment."""
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), RewardSum())
    env.set_seed(seed)
    return Collector(env, actor, frames_per_batch=FRAMES, total_frames=total_frames)


def finished(rollout: TensorDictBase, before: float) -> float:
    """Mean return of the episodes that ended in a rollout; of those before, if none did."""
    ended = rollout["next", "done"]
    return float(rollout["next", "episode_reward"][ended].mean()) if ended.any() else before


def main(total_frames: int = 40 * FRAMES, seed: int = 0) -> tuple[float, nn.Module]:
    torch.manual_seed(seed)
    actor, critic = networks()
    loss_module = ClipPPOLoss(
        actor_network=actor, critic_network=critic, clip_epsilon=0.2, entropy_coeff=0.005, critic_coeff=0.5
    )
    advantages = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    collector, mean = collect(actor, total_frames, seed), 0.0
    for rollout in collector:
        with torch.no_grad():
            advantages(rollout)
        rows = rollout.reshape(-1)
        for _ in range(EPOCHS):
            for index in torch.randperm(len(rows)).split(MINIBATCH):
                losses = loss_module(rows[index])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
        mean = finished(rollout, mean)
    collector.shutdown()
    print(f"mean return of the episodes in the last rollout: {mean:.1f}")
    return mean, actor


if __name__ == "__main__":
    main()
