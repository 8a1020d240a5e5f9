"""Filming a policy: rendered episodes as MP4. What goes wrong while filming is reported, not raised."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from understudy.core.extras import require
from understudy.core.files import replacing
from understudy.envs.base import VecEnv
from understudy.envs.makers import is_simulator
from understudy.envs.objects import as_vec_env
from understudy.envs.registry import EnvConfig, make_render_env
from understudy.envs.regrouped import ungrouped
from understudy.envs.simulator import SimulatorAdapter
from understudy.nn.acting import Function
from understudy.nn.protocol import Policy
from understudy.tools.play import Actor, acting, device_of, opened, play, undisturbed

FILM_SECONDS = 30.0
"""A longer episode is cut here: drawing without a GPU takes longer than training the demo did."""

LEAST_SECONDS = 5.0
"""Where the first episode is shorter, the film goes on with further ones."""

DEFAULT_FPS = 30.0
SMOOTH_FPS = 50.0  # faster simulations are filmed every k-th step: nobody sees more, and rendering is the slow part


@runtime_checkable
class Drawable(Protocol):
    """An environment that can be filmed as it is."""

    def render(self) -> Any:
        """A picture `[H, W, 3]` uint8 of the first copy."""
        ...


def check_video_packages() -> None:
    """Raise ImportError that names the extra if a package for writing MP4 files is missing."""
    require("filming", "imageio", "imageio_ffmpeg", extra="video")


def film(policy: Policy | Function, env: Any, path: Path, seed: int, deterministic: bool) -> str | None:
    """Play with rendering and write it to `path` (MP4, H.264): `LEAST_SECONDS` to `FILM_SECONDS` of episodes.

    `env` is an `EnvConfig`, of which one copy is made, or an environment with a `render` method. Never raises: returns
    the reason why there is no film, None if there is one.
    """
    prepare_offscreen_rendering()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, undisturbed(policy, seed), _stage(env, device_of(policy), seed) as stage:
            _record(acting(policy, stage.env, deterministic), stage, unfinished, seed)
    except Exception as error:  # a renderer may fail in any way (driver, display, codec), all of them harmless here
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def prepare_offscreen_rendering() -> None:
    """Make MuJoCo render through EGL where there is no display and nobody chose otherwise; only Linux needs it."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


class _Stage(NamedTuple):
    env: VecEnv
    render: Callable[[], Any]
    fps: float


@contextmanager
def _stage(env: Any, device: torch.device, seed: int) -> Iterator[_Stage]:
    if not isinstance(env, EnvConfig) or is_simulator(env.id):
        if isinstance(env, EnvConfig):
            env = dataclasses.replace(env, num_envs=1)
        with opened(env, device, seed, render=True) as own:
            drawn = ungrouped(own)
            if not isinstance(drawn, Drawable):
                raise ValueError("the environment has no render method")
            step_time = drawn.step_time if isinstance(drawn, SimulatorAdapter) else None
            yield _Stage(own, drawn.render, 1.0 / step_time if step_time else DEFAULT_FPS)
        return
    single = make_render_env(env)
    _simplify_drawing(single)
    with closing(as_vec_env(single, device, groups=env.groups or None, segments=env.segments)) as alone:
        yield _Stage(alone, single.render, float(single.metadata.get("render_fps") or DEFAULT_FPS))


def video_writer(path: Path, fps: float) -> Any:
    """What takes frames `[H, W, 3]` with even sides (`append_data`) and writes them as MP4; a context."""
    import imageio.v2 as imageio  # an extra

    return imageio.get_writer(
        path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2, ffmpeg_log_level="error"
    )


def _record(actor: Actor, stage: _Stage, path: Path, seed: int) -> None:
    every = max(1, round(stage.fps / SMOOTH_FPS))
    steps = itertools.count()
    writer = video_writer(path, stage.fps / every)

    def draw_and_act(obs: TensorDict, is_first: Tensor) -> Tensor:
        if next(steps) % every == 0:
            writer.append_data(_even(stage.render()))  # at once: an episode of frames fills gigabytes
        return actor(obs, is_first)

    with writer:
        many = round(FILM_SECONDS * stage.fps)  # episodes of a step at least, of the first copy
        for count, moment in enumerate(
            itertools.islice(play(stage.env, draw_and_act, many * stage.env.num_envs, seed), many)
        ):
            if moment.over[0] and count + 1 >= LEAST_SECONDS * stage.fps:
                break


def _simplify_drawing(env: gym.Env[Any, Any]) -> None:
    """Without shadows and multisampling MuJoCo draws HalfCheetah in 34 ms instead of 230 where there is no GPU."""
    if "mujoco" not in sys.modules:
        return
    from gymnasium.envs.mujoco import MujocoEnv

    if isinstance(env.unwrapped, MujocoEnv):
        env.unwrapped.model.light_castshadow[:] = 0
        env.unwrapped.model.vis.quality.offsamples = 0
        _follow(env.unwrapped)


def _follow(env: Any) -> None:
    """Film with the model's own "track" camera: Gymnasium's default camera stays behind when a robot runs."""
    mujoco = sys.modules["mujoco"]
    camera = mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if camera >= 0:
        env.mujoco_renderer.camera_id = camera


def _even(frame: Any) -> np.ndarray:
    if frame is None:
        raise ValueError("the environment rendered nothing; it needs render_mode='rgb_array'")
    picture = np.asarray(frame)
    height, width = (side - side % 2 for side in picture.shape[:2])
    return picture[:height, :width]  # H.264 wants even sides: cut the odd row or column instead of rescaling
