"""Absurd but finite numbers in data files: said, and refused where a policy would imitate them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from understudy.core.sanity import absurd
from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.motions.files import MotionClip, read_motions, write_motions


def test_absurd_is_a_million_times_the_median_size_of_a_column_and_at_least_a_million() -> None:
    x = torch.ones(6, 4)
    x[0] = torch.tensor([1e30, -1.1e6, 1e6, 2e6])
    x[1:, 3] = 1e7
    assert absurd(x).tolist() == [[True, True, False, False], *[[False] * 4] * 5]


def recorded(path: Path, **values: float) -> Path:
    arrays = {name: np.ones((8, 2), np.float32) for name in ("observations", "next_observations", "actions")}
    arrays["rewards"] = np.ones(8, np.float32)
    for name, value in values.items():
        arrays[name].reshape(8, -1)[3, -1] = value
    arrays["next_observations"][:-1] = arrays["observations"][1:]
    np.savez(path, **arrays, terminals=np.arange(8) == 7)
    return path


@pytest.mark.parametrize("name", ["observations", "rewards"])
def test_an_absurd_number_in_demonstrations_is_said(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,))})
    actions = spaces.Box(-np.inf, np.inf, (2,))
    with caplog.at_level(logging.WARNING, "understudy"):
        Demonstrations.load(recorded(tmp_path / "sound.npz"), observation_space=space, action_space=actions)
        assert not [text for text in caplog.messages if "usual size" in text]
        Demonstrations.load(
            recorded(tmp_path / "x.npz", **{name: -1e30}), observation_space=space, action_space=actions
        )
    (said,) = [text for text in caplog.messages if "usual size" in text]
    assert f"x.npz: trajectory 0, step 3: {name}" in said
    assert "holds 1e+30, more than 1e+06 times its usual size (1 such steps" in said


def test_an_absurd_action_is_not_imitated(tmp_path: Path) -> None:
    space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,))})
    path = recorded(tmp_path / "x.npz", actions=1e30)
    with pytest.raises(
        ValueError, match=r"x.npz: trajectory 0, step 3: actions is \[1.0, 1.*e\+30\], which is more than"
    ):
        Demonstrations.load(path, observation_space=space, action_space=spaces.Box(-np.inf, np.inf, (2,)))


def test_an_absurd_number_in_a_clip_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = np.ones((9, 2))
    frames[4, 1] = 1e30
    path = write_motions(tmp_path / "m.npz", [MotionClip(name="m", fields=("x", "y"), frames=frames, frame_time=0.1)])
    with caplog.at_level(logging.WARNING, "understudy"):
        read_motions(path)
    assert (
        "m.npz, clip 'm': frame 4, field 'y' is 1e+30, more than 1e+06 times its usual size, and 0 more" in caplog.text
    )
