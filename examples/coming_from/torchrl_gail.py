"""GAIL in a TorchRL training script: CartPole is learnt from a scripted expert, without its reward."""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.objectives.value import GAE
from torchrl_after import EPOCHS, FRAMES, MINIBATCH, collect, finished, networks

import understudy as us
from understudy.data.demonstrations.write import write_npz
from understudy.tools.record import record_episodes


def balance(obs: TensorDict, is_first: Tensor) -> Tensor:
    """An expert: push to the side that the pole falls to, and slowly back to the middle."""
    place, speed, angle, spin = obs["policy"].unbind(-1)
    return (angle + 0.3 * spin + 0.02 * place + 0.05 * speed > 0.0).long()


def main(
    total_frames: int = 40 * FRAMES, seed: int = 0, demonstrations: Path = Path("cartpole.npz")
) -> dict[str, float]:
    torch.manual_seed(seed)
    write_npz(demonstrations, record_episodes(us.make_env("CartPole-v1", 4), balance, 4, seed=0), {})
    actor, critic = networks()
    loss_module = us.ClipPPOLoss(actor, critic, entropy_coeff=0.005, critic_coeff=0.5)
    gail = us.interop.torchrl.RewardTransform(
        us.parts.GailConfig(
            demonstrations=str(demonstrations),
            discriminator=us.DiscriminatorConfig(hidden_sizes=(64,), batch_size=256),
        ),
        actor,
        task_weight=0.0,
    )
    advantages = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    collector, mean = collect(actor, total_frames, seed), 0.0
    for rollout in collector:
        gail(rollout)  # the reward of the discriminator, which then learns; before advantages are computed
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
    result = {name: float(x) for name, x in gail.metrics.items()} | {"return": mean}
    print(", ".join(f"{name} {result[name]:.2f}" for name in ("return", "reward", "acc_pi", "acc_exp")))
    return result


if __name__ == "__main__":
    main()
