"""Features from a network of your own: a residual MLP as the trunk of actor and critic.

Heads, normaliser and action map stay the library's.
A trunk is called with the number of features and its options; it is an nn.Module with `out_features`. Run it with
`python examples/residual_trunk.py`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import understudy as us


class ResidualMLP(nn.Module):
    """x -> in(x), then `blocks` times x + f(norm(x)): `[..., in_features]` to `[..., width]`."""

    def __init__(self, in_features: int, *, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.out_features = width
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def main(total_steps: int = 20_000, run_dir: Path | None = None) -> us.Run:
    run = us.train(
        us.TrainConfig(
            env=us.EnvConfig(id="CartPole-v1", num_envs=8),
            # "module:attribute"; a module that Python finds, here this file
            policy=us.PolicyConfig(trunk="residual_trunk:ResidualMLP", trunk_kwargs={"width": 32}),
            ppo=us.PPOConfig(num_steps=128, epochs=4, minibatches=4),
            total_steps=total_steps,
            torch_threads=1,
            run_dir=None if run_dir is None else str(run_dir),
        )
    )
    assert run.evaluation is not None
    print(run.evaluation.sentence())
    # loading runs the module's code, so the caller has to name it
    print(us.load(run.path, allow=("residual_trunk",)).actor)
    return run


if __name__ == "__main__":
    main()
