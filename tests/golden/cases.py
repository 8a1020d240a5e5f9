"""Short trainings at fixed seeds whose numbers are kept: every recipe, and every part alone, in pairs and all together.

`python -m tests.golden.cases [NAME ...]` writes `golden.json` (or those cases in it) anew; do so only in a commit that
says why numbers changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.parts.contract import ALL, ALONE, FEED_FORWARD_ONLY, PAIRS, make_ppo, weights
from torch import Tensor

import understudy as us
from understudy.core.schedules import Schedule
from understudy.data.demonstrations.write import write_npz
from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionsConfig
from understudy.envs.registry import EnvConfig
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.parts import MotionPriorConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.ppo import PPO
from understudy.runs.config import EvaluationConfig, LoggingConfig
from understudy.tasks.point_mass import PointMass
from understudy.tools.record import record_episodes

LONG_EPISODES = ("crossings", "go1-student", "go1-teacher")  # trained, but not evaluated
GOLDEN = Path(__file__).with_name("golden.json")
Case = Callable[[], dict[str, Any]]


def digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in sorted(metrics.items()) if not k.startswith("time/") and k != "step" and v == v}


def outcome(metrics: Mapping[str, float], weights: Tensor) -> dict[str, Any]:
    return {"metrics": timeless(metrics), "weights": digest(weights)}


# ---------------------------------------------------------------------------------------------- parts


def part_case(names: tuple[str, ...], memory: str = "none", iterations: int = 3) -> dict[str, Any]:

    ppo = make_ppo(names, memory=memory)
    for _ in range(iterations):
        metrics = ppo.iterate()
    return outcome(metrics, weights(ppo))


def option_case(
    options: Mapping[str, Any], policy: Mapping[str, Any] | None = None, poison: bool = False
) -> dict[str, Any]:

    class Poisoned(PointMass):
        calls = 0

        def step(self, action: Tensor) -> Any:
            step = super().step(action)
            self.calls += 1
            if self.calls % 5 == 0:
                step.obs["policy"][1, 0] = float("nan")
            return step

    env = (Poisoned if poison else PointMass)(8, max_episode_steps=6)
    torch.manual_seed(0)
    config = PolicyConfig(hidden_sizes=(8,), memory_size=8, **(policy or {}))
    built = ActorCritic(env.observation_space, env.action_space, config)
    chosen = {"num_steps": 8, "epochs": 2, "minibatches": 2, "warmup_steps": 4, **options}
    torch.manual_seed(0)
    ppo = PPO(env, built, PPOConfig(**chosen), {}, seed=0, total_steps=1000)
    for _ in range(4):
        metrics = ppo.iterate()
    return outcome(metrics, ppo.optimizer.flat)


def part_cases() -> dict[str, Case]:

    cases: dict[str, Case] = {"parts/none": lambda: part_case(())}
    for names in (*ALONE, *PAIRS, ALL):
        key = "parts/all" if names == ALL else "parts/" + "+".join(names)
        cases[key] = lambda names=names: part_case(names, iterations=2 if len(names) == 2 else 3)
    recurrent = [names for names in ALONE if names[0] not in FEED_FORWARD_ONLY and names[0] != "imitate"]
    together = tuple(name for name in ALL if name not in FEED_FORWARD_ONLY and name != "imitate")
    for names in [(), *recurrent]:
        cases["gru/" + ("+".join(names) or "none")] = lambda names=names: part_case(names, memory="gru")
    for memory in ("lstm", "gru"):
        cases[f"{memory}/all"] = lambda memory=memory: part_case(together, memory=memory)
    options: dict[str, dict[str, Any]] = {
        "value-clip": {"value_clip": 0.2, "dual_clip": 3.0, "loss_critic_type": "smooth_l1"},
        "desired-kl": {"desired_kl": 0.01, "entropy_coef": 0.01, "clip_epsilon_high": 0.3},
        "target-kl": {"target_kl": 1e-4, "epochs": 5, "desired_kl": 0.002},
        "recompute": {"recompute_advantage": True, "value_normalization": "scale", "reward_normalization": True},
        "standardize": {"value_normalization": "standardize", "advantage_normalization": "rollout"},
        "a2c": {
            "surrogate": "a2c",
            "epochs": 1,
            "minibatches": 1,
            "advantage_normalization": "none",
            "optimizer": OptimizerConfig(kind="rmsprop", learning_rate=7e-4),
        },
        "schedules": {
            "clip_epsilon": Schedule.parse("linear:0.2:0.1"),
            "gamma": Schedule.parse("step:0=0.9,100=0.99"),
            "optimizer": OptimizerConfig(learning_rate=Schedule.parse("linear:1e-3:0")),
        },
        "sgd": {"optimizer": OptimizerConfig(kind="sgd", momentum=0.9, learning_rate=1e-2)},
        "no-critic": {"value_coef": 0.0, "surrogate_coef": 0.5},
    }
    for name, chosen in options.items():
        cases[f"options/{name}"] = lambda chosen=chosen: option_case(chosen)
    cases["options/lstm"] = lambda: option_case({"value_clip": 0.2}, {"memory": "lstm", "memory_layers": 2})
    cases["options/shared"] = lambda: option_case({}, {"shared_trunk": True, "memory": "gru"})
    cases["options/poisoned"] = lambda: option_case({"value_clip": 0.2}, poison=True)
    cases["options/poisoned-gru"] = lambda: option_case({}, {"memory": "gru"}, poison=True)
    return cases


# ---------------------------------------------------------------------------------------------- recipes


def steer(obs: Any, *_: Any) -> Tensor:
    return (-3.0 * obs["policy"][:, :2] - 2.0 * obs["policy"][:, 2:]).clamp(-1.0, 1.0)


class Inputs:
    """What recipes learn from, made once in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, str] = {}

    def demonstrations(self) -> str:
        if "demonstrations" not in self._made:
            path = self.folder / "expert.npz"
            write_npz(path, record_episodes(PointMass(4), steer, 6, seed=0), {})
            self._made["demonstrations"] = str(path)
        return self._made["demonstrations"]

    def clips(self) -> str:
        if "clips" not in self._made:
            frames = np.random.default_rng(0).normal(size=(30, 4)).cumsum(0) * 0.05
            fields = tuple(f"policy[{i}]" for i in range(4))
            clip = MotionClip(name="m", fields=fields, frames=frames, frame_time=0.1)
            self._made["clips"] = str(write_motions(self.folder / "m.npz", [clip]))
        return self._made["clips"]

    def teacher(self, recipe: str, **options: Any) -> str:
        if recipe not in self._made:
            make = plain_ppo if recipe == "ppo" else us.recipes.find_recipe(recipe)
            config = shortened(make(**options), self.folder / f"teacher-{recipe}")
            self._made[recipe] = str(us.train(config).path)
        return self._made[recipe]


def plain_ppo(env_id: str) -> us.TrainConfig:
    """PPO's own defaults: what the recipe `ppo` was when the teachers' numbers were kept."""
    return us.TrainConfig(env=EnvConfig(id=env_id), total_steps=100_000)


def shortened(config: Any, folder: Path, **changes: Any) -> Any:
    """Three short rollouts."""

    env = dataclasses.replace(
        config.env, num_envs=4, backend="auto" if config.env.id == "PointMass" else config.env.backend
    )
    steps = min(config.ppo.num_steps, 16)
    ppo = dataclasses.replace(
        config.ppo,
        num_steps=steps,
        epochs=min(2, config.ppo.epochs),
        minibatches=min(2, config.ppo.minibatches),
        warmup_steps=min(8, config.ppo.warmup_steps),
    )
    if config.offline is not None:
        dagger = config.offline.dagger
        if dagger is not None:
            dagger = dataclasses.replace(dagger, rounds=2, episodes_per_round=1, steps_per_round=40)
        changes["offline"] = dataclasses.replace(config.offline, epochs=2, dagger=dagger)
    total = 3 * 4 * steps if config.total_steps else 0
    evaluation = EvaluationConfig(episodes=0 if folder.name.endswith(LONG_EPISODES) else 1)
    changes = {"env": env, "ppo": ppo, "evaluation": evaluation, "total_steps": total, **changes}
    return dataclasses.replace(
        config,
        run_dir=str(folder),
        logging=LoggingConfig(console=False, tensorboard=False),
        torch_threads=1,
        device="cpu",
        **changes,
    )


def recipe_case(name: str, inputs: Inputs) -> dict[str, Any]:
    make = us.recipes.find_recipe(name)
    point = EnvConfig(id="PointMass", num_envs=4)
    changes: dict[str, Any] = {}
    if name in ("bc", "gail", "airl", "bc-gail"):
        config = make("PointMass", demonstrations=inputs.demonstrations())
        if name == "bc":
            config = dataclasses.replace(config, total_steps=100)
    elif name == "dagger":
        config = make("PointMass", expert=inputs.teacher("ppo", env_id="PointMass"))
    elif name in ("tppo", "distill", "distill-then-ppo", "estimator-tppo"):
        config = make(teachers=(inputs.teacher("mujoco", env_id="Hopper-v5"),))
    elif name == "go1-student":
        config = make(teachers=(inputs.teacher("go1-teacher"),))
    elif name in ("appo", "atppo", "go1-trot"):
        config = make()
        prior = MotionPriorConfig(motions=MotionsConfig(files=(inputs.clips(),)), step_time=0.1)
        parts = {"motion": prior}
        if name == "atppo":
            parts["teacher"] = dataclasses.replace(
                config.parts["teacher"], checkpoints=(inputs.teacher("ppo", env_id="PointMass"),)
            )
        changes = {"parts": parts, "env": point}
    elif name == "crossings":
        config = make()
        config = us.recipes.find_recipe("advisor")("LavaCrossing-v0")
    else:
        config = make()
    run = us.train(shortened(config, inputs.folder / name, **changes))
    weights = torch.cat([p.detach().flatten() for p in run.policy.parameters()])
    result = outcome(run.metrics[-1], weights)
    result["return"] = run.evaluation.mean_return if run.evaluation else None
    return result


def recipe_cases(folder: Path) -> dict[str, Case]:
    inputs = Inputs(folder)
    return {f"recipes/{name}": lambda name=name: recipe_case(name, inputs) for name in sorted(us.recipes.RECIPES)}


# ---------------------------------------------------------------------------------------------- the file


def machine() -> str:
    """What the last bits of a number depend on."""
    wanted = ("cpu family", "model", "model name")
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    processor = " ".join(value.strip() for name, value in facts.items() if name.strip() in wanted)
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {processor}"


def every_case(folder: Path) -> dict[str, Case]:
    return {**part_cases(), **recipe_cases(folder)}


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cases = every_case(Path(folder))
        found = {name: {**cases[name](), "machine": machine()} for name in names or cases}
    kept = json.loads(GOLDEN.read_text())["cases"] if names else {}
    GOLDEN.write_text(json.dumps({"cases": kept | found}, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
