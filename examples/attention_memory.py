"""A recurrent policy of your own: attention over the last H observations, kept in a ring buffer inside the state.

The library carries one flat state `[B, S]` for each environment, all zeros where an episode starts. Here it holds H
rows of W numbers, one flag per row that says whether it was written, and a one-hot pointer to the next row to write:
S = H * W + 2 * H. Shapes stay static and no index is read on the host, so PPO can record it and ONNX can export it.

The task shows a sign in the first step only, and asks for it in the last one. Run it with
`python examples/attention_memory.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

import understudy as us


class Remember(gym.Env[np.ndarray, int]):
    """Observation: (sign in the first step, else 0; share of the episode that is over). Reward 1 for naming it."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 6) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.sign = 0, int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        last = self.t == self.length - 1
        self.t += 1
        return self._observe(), float(last and action == self.sign), last, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([2 * self.sign - 1 if self.t == 0 else 0, self.t / self.length], np.float32)


gym.register("Remember-v0", Remember)


class AttentionPolicy(us.Policy):
    """One head of attention, from the newest observation to the last `horizon` ones."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        config: us.PolicyConfig | None = None,
        *,
        horizon: int = 8,
        width: int = 32,
    ) -> None:
        super().__init__(observation_space, action_space, config)  # spaces, normaliser, action map
        features = sum(int(np.prod(self.component(key).shape or ())) for key in self.sensor_keys)
        self.horizon, self.width = horizon, width
        self.state_size = horizon * width + 2 * horizon
        self.embed = nn.Sequential(nn.Linear(features, width), nn.Tanh())
        self.query, self.key, self.read = (nn.Linear(width, width) for _ in range(3))
        self.head = self.make_head(2 * width)  # the distribution that the config asks for
        self.value_head = nn.Linear(2 * width, 1)

    def forward(self, obs: Any, state: Tensor | None = None, is_first: Tensor | None = None) -> us.PolicyOutput:
        x = self.embed(torch.cat(list(self.observe(obs).values()), dim=-1))  # [B, W] or [T, B, W]
        latent, state = self.unroll(self.step, x, state, is_first)
        return us.PolicyOutput(self.head(latent), self.value_head(latent).squeeze(-1), state, {"actor": latent})

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x `[B, W]` and the state before it to the latent `[B, 2 W]` and the state after it."""
        rows, written, pointer = state.split((self.horizon * self.width, self.horizon, self.horizon), dim=-1)
        rows = rows.unflatten(-1, (self.horizon, self.width))  # [B, H, W]
        # an episode starts with zeros everywhere: its pointer stands on the first row
        empty = 1.0 - written.amax(-1, keepdim=True)
        pointer = pointer + empty * torch.eye(self.horizon, device=x.device, dtype=x.dtype)[0]
        rows = torch.where(pointer.unsqueeze(-1) > 0.5, x.unsqueeze(1), rows)
        written = torch.maximum(written, pointer)
        score = (self.key(rows) * self.query(x).unsqueeze(1)).sum(-1) / self.width**0.5  # [B, H]
        weight = (score + (written - 1.0) * 1e9).softmax(-1)
        seen = self.read((weight.unsqueeze(-1) * rows).sum(1))
        state = torch.cat((rows.flatten(1), written, pointer.roll(1, -1)), dim=-1)
        return torch.cat((x, seen), dim=-1), state


def main(total_steps: int = 24_000, run_dir: Path | None = None) -> us.Run:
    run = us.train(
        us.TrainConfig(
            env=us.EnvConfig(id="Remember-v0", num_envs=16),
            policy=us.PolicyConfig(factory="attention_memory:AttentionPolicy", factory_kwargs={"horizon": 8}),
            ppo=us.PPOConfig(num_steps=24, epochs=4, minibatches=4, optimizer=us.OptimizerConfig(learning_rate=3e-3)),
            total_steps=total_steps,
            torch_threads=1,
            run_dir=None if run_dir is None else str(run_dir),
        )
    )
    assert run.evaluation is not None
    print(run.evaluation.sentence(), "(guessing gives 0.5)")
    return run


if __name__ == "__main__":
    main()
