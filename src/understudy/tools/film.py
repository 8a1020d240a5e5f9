"""Filming a policy: one rendered episode as MP4. What goes wrong while filming is reported, not raised."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from understudy.envs.registry import EnvConfig, as_vec_env, make_render_env
from understudy.nn.policy import ActorCritic

FILM_SECONDS = 30.0
"""A longer episode is cut here: drawing without a GPU takes longer than training the demo did."""

DEFAULT_FPS = 30.0
SMOOTH_FPS = 50.0  # faster simulations are filmed every k-th step: nobody sees more, and rendering is the slow part


@dataclass(frozen=True, kw_only=True)
class Film:
    """What became of an attempt to film."""

    path: Path
    error: str | None = None  # None: the film is at `path`


def check_video_packages() -> None:
    """Raise ImportError that names the extra if a package for writing MP4 files is missing."""
    missing = [name for name in ("imageio", "imageio_ffmpeg") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"filming needs {' and '.join(missing)}: pip install 'understudy[video]'")


def film(policy: ActorCritic, env_config: EnvConfig, path: Path, seed: int, deterministic: bool) -> Film:
    """Run one episode with rendering and write it to `path` (MP4, H.264), `FILM_SECONDS` at most.

    Never raises: `error` says what failed.
    """
    prepare_offscreen_rendering()
    unfinished = path.with_name(f".{path.name}")  # so that an older film stays until this one is whole
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _record(policy, env_config, unfinished, seed, deterministic)
        unfinished.replace(path)
    except Exception as error:  # a renderer may fail in any way (driver, display, codec), all of them harmless here
        unfinished.unlink(missing_ok=True)
        return Film(path=path, error=f"{type(error).__name__}: {error}".splitlines()[0])
    return Film(path=path)


def prepare_offscreen_rendering() -> None:
    """Make MuJoCo render through EGL where there is no display and nobody chose otherwise; only Linux needs it."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def _record(policy: ActorCritic, env_config: EnvConfig, path: Path, seed: int, deterministic: bool) -> None:
    import imageio.v2 as imageio  # an extra

    single = make_render_env(env_config)
    _simplify_drawing(single)
    env = as_vec_env(single, policy.device, groups=env_config.groups or None, segments=env_config.segments)
    try:
        fps = float(single.metadata.get("render_fps") or DEFAULT_FPS)
        every = max(1, round(fps / SMOOTH_FPS))
        obs, state = env.reset(seed), policy.initial_state(1)
        writer: Any = imageio.get_writer(
            path, format="FFMPEG", fps=fps / every, codec="libx264", macro_block_size=2, ffmpeg_log_level="error"
        )
        with writer:
            for step in range(round(FILM_SECONDS * fps)):
                if step % every == 0:
                    writer.append_data(_even(single.render()))  # at once: an episode of frames fills gigabytes
                action, state = policy.act(obs, state, deterministic=deterministic)
                obs, _, terminated, truncated, *_ = env.step(action)
                if bool(terminated | truncated):
                    break  # the environment shows its next episode already
    finally:
        env.close()


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
