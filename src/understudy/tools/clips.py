"""Episodes as motion clips: which columns of the observations, and how much time lies between two frames."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict

from understudy.core.files import replacing
from understudy.core.spaces import component_keys, find_components, unflatten
from understudy.data.demonstrations.write import Episode
from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.robots import Robot
from understudy.data.motions.writing import states_of
from understudy.envs.base import VecEnv
from understudy.envs.gymnasium import InProcessVectorEnv
from understudy.envs.regrouped import RegroupedEnv
from understudy.parts.shared.features import FeatureReader
from understudy.tools.film import (
    FILM_SECONDS,
    SMOOTH_FPS,
    check_video_packages,
    video_writer,
)

_FILM_SIZE = (480, 640)


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


def film_clip(clip: MotionClip, robot: Robot, path: Path) -> Path:
    """Film the first `FILM_SECONDS` of a clip on its robot into the MP4 `path`, the camera beside the root.

    Raises ImportError, naming the extra, without the packages for films, and ValueError where root or joints are
    missing or MuJoCo cannot draw. It chooses how to when it is imported: see `prepare_offscreen_rendering`.
    """
    check_video_packages()
    import mujoco

    states, every = states_of(clip, robot), max(1, round(1.0 / clip.frame_time / SMOOTH_FPS))
    poses = robot.qpos(states.pos, states.quat, states.angles)[: round(FILM_SECONDS / clip.frame_time) + 1 : every]
    model = robot.scene()
    data, camera = mujoco.MjData(model), mujoco.MjvCamera()
    reach = np.ptp(robot.kinematics(states.pos[:1], states.quat[:1], states.angles[:1]).pos, axis=1).max()
    camera.distance, camera.elevation, camera.azimuth = 2.5 * reach, -15.0, 130.0
    try:
        drawing = mujoco.Renderer(model, *_FILM_SIZE)
    except mujoco.FatalError as error:
        raise ValueError(
            "MuJoCo has nothing to draw in: set the environment variable MUJOCO_GL to egl or osmesa"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as unfinished,
        drawing as renderer,
        video_writer(unfinished, states.rate / every) as writer,
    ):
        for pose in poses:
            data.qpos[:] = pose
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            camera.lookat[:] = pose[:3]
            renderer.update_scene(data, camera)
            writer.append_data(renderer.render())
    return path


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
