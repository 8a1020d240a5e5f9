"""Distillation in a TorchRL training script: PPO on CartPole, and beside it the actions of a teacher trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torchrl.objectives.value import GAE
from torchrl_after import EPOCHS, FRAMES, MINIBATCH, collect, finished, networks

import understudy as us


def main(
    total_frames: int = 10 * FRAMES, seed: int = 0, teacher: Path = Path("teacher"), teacher_steps: int = 50_000
) -> dict[str, float]:
    recipe = us.recipes.ppo("CartPole-v1", total_steps=teacher_steps)
    run = us.train(replace(recipe, run_dir=str(teacher)))
    torch.manual_seed(seed)
    actor, critic = networks()
    loss_module = us.ClipPPOLoss(actor, critic, entropy_coeff=0.005, critic_coeff=0.5)
    imitate = us.interop.torchrl.PartLoss(
        us.parts.TeacherConfig(checkpoints=(str(run.path),), target="max_log_prob"), actor, critic
    )
    advantages = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    collector, mean, distances = collect(actor, total_frames, seed), 0.0, []
    for rollout in collector:
        imitate.prepare(rollout)  # what the teacher would have done, step by step
        with torch.no_grad():
            advantages(rollout)
        rows = rollout.reshape(-1)
        for _ in range(EPOCHS):
            for index in torch.randperm(len(rows)).split(MINIBATCH):
                losses, imitation = loss_module(rows[index]), imitate(rows[index])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                loss = loss + imitation["loss_teacher"]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
        distances.append(float(imitation["teacher/distance"]))
        mean = finished(rollout, mean)
    collector.shutdown()
    print(f"return {mean:.1f}, distance to the teacher from {distances[0]:.3f} to {distances[-1]:.3f}")
    return {"return": mean, "first": distances[0], "last": distances[-1]}


if __name__ == "__main__":
    main()
