"""Recording motion: play a trained policy and keep whole episodes as motion clips."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import torch
from gymnasium import spaces
from tensordict import TensorDict

from understudy.core.spaces import component, component_keys, is_box, shape_of, unflatten
from understudy.data.demonstrations.write import Episode
from understudy.data.motions.files import MotionClip, write_motions
from understudy.envs.base import VecEnv
from understudy.envs.gymnasium import InProcessVectorEnv
from understudy.envs.regrouped import RegroupedEnv
from understudy.parts.shared.features import FeatureReader
from understudy.runs.folder import read_policy
from understudy.tools.evaluate import evaluation_seed
from understudy.tools.record import Recorded, play


def record_motions(
    output: str | Path,
    run: Path,
    *,
    episodes: int = 25,
    seed: int | None = None,
    deterministic: bool = True,
    frame_time: float | None = None,
) -> Recorded:
    """Play `run` and write each episode as one motion clip; its fields are called as the observations' columns are.

    `MotionPrior` looks for exactly these names (`policy[3]`) where none are configured. Images and categories are left
    out. `frame_time` is the time between two observations in seconds; None: the environment's own, which MuJoCo's
    tasks tell. Raises ValueError, before anything is played, for an output that exists or is no .npz, without a step
    time, and for observations without vectors.
    """
    path = Path(output)
    if path.suffix != ".npz":
        raise ValueError(f"motion clips go into a .npz file, not {path}: name it {path}.npz")
    if path.exists():
        raise ValueError(f"{path} exists: choose another --output, or delete it")
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; a recording needs at least 1")
    policy, config = read_policy(run)
    seed = evaluation_seed(config.seed) if seed is None else seed
    with closing(config.env.make("cpu", seed)) as env:
        frame_time = frame_time or step_time(env)
        if frame_time is None:
            raise ValueError(f"{config.env.id} does not tell the time between two observations: give it as --step-time")
        read = vector_reader(env.observation_space)
        played = play(policy, env, episodes, seed, deterministic)
    fields = tuple(read.names)
    clips = [
        MotionClip(
            name=f"{run.name} episode {i}", fields=fields, frames=read(_tensors(episode)).numpy(), frame_time=frame_time
        )
        for i, episode in enumerate(played)
    ]
    write_motions(path, clips)
    return Recorded.of(path, played)


def vector_reader(space: spaces.Dict) -> FeatureReader:
    """Reads all vectors and scalars of the observations, in their order. Raises ValueError where there are none."""
    components = {"/".join(key): component(space, key) for key in component_keys(space)}
    names = [name for name, part in components.items() if is_box(part) and len(shape_of(part)) <= 1]
    if not names:
        raise ValueError("the observations have no vectors, of which motion clips are made")
    return FeatureReader(space, names)


def step_time(env: VecEnv) -> float | None:
    """Seconds between two observations where the environment tells them (Gymnasium's MuJoCo tasks), else None."""
    inner = env.env if isinstance(env, RegroupedEnv) else env
    if not isinstance(inner, InProcessVectorEnv) or "mujoco" not in sys.modules:
        return None
    from gymnasium.envs.mujoco import MujocoEnv

    single = inner.envs[0].unwrapped
    return float(single.dt) if isinstance(single, MujocoEnv) else None


def _tensors(episode: Episode) -> TensorDict:
    """The observations of an episode, `[T + 1]`."""
    tensors = {key: torch.from_numpy(x) for key, x in episode.observations.items()}
    return unflatten(tensors, tensors.values(), [episode.length + 1])
