"""Episodes as motion clips: which columns of the observations, and how much time lies between two frames."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from gymnasium import spaces
from tensordict import TensorDict

from understudy.core.spaces import component_keys, find_components, unflatten
from understudy.data.demonstrations.write import Episode
from understudy.data.motions.files import MotionClip, write_motions
from understudy.envs.base import VecEnv
from understudy.envs.gymnasium import InProcessVectorEnv
from understudy.envs.regrouped import RegroupedEnv
from understudy.parts.shared.features import FeatureReader


def clip_writer(path: Path, name: str, env: VecEnv, frame_time: float | None) -> Callable[[Sequence[Episode]], Path]:
    """A function that writes episodes as clips, images and categories left out, `frame_time` seconds a step.

    Raises ValueError where neither the caller nor the environment tells the time, and for observations without
    vectors.
    """
    seconds = frame_time or step_time(env)
    if seconds is None:
        raise ValueError("the environment does not tell the time between two observations: give it as --step-time")
    read = vector_reader(env.observation_space)

    def write(episodes: Sequence[Episode]) -> Path:
        fields = tuple(read.names)
        frames = [read(_tensors(episode)).numpy() for episode in episodes]
        clips = [
            MotionClip(name=f"{name} episode {i}", fields=fields, frames=x, frame_time=seconds)
            for i, x in enumerate(frames)
        ]
        write_motions(path, clips)
        return path

    return write


def vector_reader(space: spaces.Dict) -> FeatureReader:
    """Reads all vectors and scalars of the observations, in their order. Raises ValueError where there are none."""
    components = {"/".join(key): find_components(space, "/".join(key))[key] for key in component_keys(space)}
    names = [name for name, part in components.items() if isinstance(part, spaces.Box) and len(part.shape) <= 1]
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
