"""Clips in other programs' formats: written, read back, and bodies compared with MuJoCo's own kinematics."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tests.data.motions import robots
from tests.data.motions.robots import BODIES, FPS, JOINTS, walk
from tests.data.motions.test_formats import MODEL, assert_says, options, write

from understudy.cli import main
from understudy.data.motions.convert import convert
from understudy.data.motions.fields import FieldTable
from understudy.data.motions.files import MotionClip, read_motions, write_motions
from understudy.data.motions.library import MotionLibrary, MotionsConfig
from understudy.data.motions.options import MotionFormat, ReadOptions
from understudy.data.motions.pickled import read_any_motions
from understudy.data.motions.robots import Robot
from understudy.data.motions.writing import OUTPUTS, states_of, with_bodies

FOREIGN = tuple(OUTPUTS)


def source(folder: Path) -> Path:
    """The walk with its bodies."""
    return write(folder / "source.npz", robots.beyond_mimic(MODEL, walk()))


def test_every_format_has_a_writer() -> None:
    assert get_args(MotionFormat) == ("ours", *FOREIGN)


@pytest.mark.parametrize("form", FOREIGN)
def test_a_round_trip_through_every_format(tmp_path: Path, form: Any) -> None:
    """What comes back is equal at float32, and holds as much as the format can."""
    given, path = options(tmp_path), tmp_path / "there"
    (old,) = convert(source(tmp_path), path, given, to=form, rate=FPS)
    order: Any = "breadth_first" if form == "beyond-mimic" else "depth_first"
    (new,) = read_any_motions(path, options(tmp_path, joint_order=order, frame_rate=FPS))
    assert_says(new, walk())
    assert new.frame_time == old.frame_time
    common = [name for name in new.fields if name in old.fields]
    assert len(common) >= (101 if form in ("mjlab", "beyond-mimic", "isaac-lab") else 12)
    table = [FieldTable("", clip.fields, clip.frames, clip.frame_time).select(common) for clip in (old, new)]
    np.testing.assert_allclose(table[1], table[0], rtol=0, atol=6e-8)
    convert(path, tmp_path / "back.npz", options(tmp_path, joint_order=order, frame_rate=FPS))
    (ours,) = read_motions(tmp_path / "back.npz")
    assert_says(ours, walk())


def test_kinematics_are_mujocos(tmp_path: Path) -> None:
    """Positions, rotations and velocities of all bodies, from root and joints alone."""
    bare = write(tmp_path / "m.csv", robots.csv(walk()))
    (clip,) = read_motions(bare, options(tmp_path, frame_rate=FPS))
    added = with_bodies(clip, Robot(robots.robot(tmp_path)))
    log = robots.kinematics(MODEL, walk())
    table = FieldTable("", added.fields, added.frames, added.frame_time)
    for i, body in enumerate(BODIES):
        pos = table.select([f"{body}_pos_{axis}_w" for axis in "xyz"])
        quat = table.select([f"{body}_rot_{axis}" for axis in "wxyz"])
        np.testing.assert_allclose(pos, log["body_pos_w"][:, i], atol=1e-5)
        np.testing.assert_allclose(np.abs((quat * log["body_quat_w"][:, i]).sum(1)), 1.0, atol=1e-9)
        for kind, name in (("vel", "lin_vel"), ("ang_vel", "ang_vel")):
            told, span = log[f"body_{name}_w"][:, i], np.ptp(log[f"body_{name}_w"])
            found = table.select([f"{body}_{kind}_{axis}_w" for axis in "xyz"])
            np.testing.assert_allclose(found[1:-1], told[1:-1], atol=1e-3 * span)  # the ends are one-sided


def test_another_rate_is_resampled_and_tracking_tasks_have_50(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", robots.csv(walk()))
    convert(path, tmp_path / "m.npz", options(tmp_path, frame_rate=FPS), to="mjlab")
    with np.load(tmp_path / "m.npz") as arrays:
        assert arrays["fps"].tolist() == [50.0]
        assert arrays["joint_pos"].shape == (79, 5)  # 39 steps of 0.04 s
        np.testing.assert_allclose(arrays["joint_pos"][::2], walk().angles, atol=1e-6)
        np.testing.assert_allclose(arrays["joint_pos"][1], (walk().angles[0] + walk().angles[1]) / 2, atol=1e-6)


def test_a_robot_with_other_joints_is_named(tmp_path: Path) -> None:
    few = write(tmp_path / "m.csv", robots.csv(walk()._replace(angles=walk().angles[:, :4])))
    with pytest.raises(ValueError, match=r"clip 'm' lacks joint 'waist' of the robot walker \(0 more are missing\)"):
        convert(few, tmp_path / "m.npz", options(tmp_path, joints=JOINTS[:4]), to="gmr")
    with pytest.raises(
        ValueError, match="the format mjlab holds what a robot tells, such as its bodies: name its model"
    ):
        convert(few, tmp_path / "m.npz", ReadOptions(joints=JOINTS[:4]), to="mjlab")
    rootless = MotionClip(name="r", fields=("hip_dof_pos",), frames=np.zeros((3, 1)), frame_time=0.02)
    with pytest.raises(ValueError, match="clip 'r' has no field 'root_pos_x' and nothing to derive it from"):
        states_of(rootless)
    assert not (tmp_path / "m.npz").exists()


def test_the_command_chooses_a_clip_and_adds_bodies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = read_motions(source(tmp_path), ReadOptions(joints=JOINTS))
    other = MotionClip(name="other", fields=one.fields, frames=one.frames[:9], frame_time=one.frame_time, loop="wrap")
    path, target, model = (
        str(write_motions(tmp_path / "two.npz", [one, other])),
        str(tmp_path / "t"),
        robots.robot(tmp_path),
    )
    assert main(["motions", "convert", path, target, "--to", "gmr"]) == 2
    assert "holds 2 clips (source, other), a file of the format gmr one: name it (clip)" in capsys.readouterr().err
    assert main(["motions", "convert", path, target, "--to", "gmr", "--clip", "othr"]) == 2
    assert "has no clip 'othr'; did you mean other?" in capsys.readouterr().err
    assert main(["motions", "convert", path, target, "--to", "gmr", "--clip", "other", "--robot", model]) == 0
    assert len(pickle.loads(Path(target).read_bytes())["dof_pos"]) == 9
    assert main(["motions", "convert", path, target, "--bodies", "--rate", "10"]) == 2
    assert "bodies come from a robot's kinematics: name its model" in capsys.readouterr().err
    assert main(["motions", "convert", path, target, "--bodies", "--rate", "10", "--robot", model]) == 0
    first, second = read_motions(target)
    assert "torso_vel_x_w" in first.fields
    assert (first.frame_time, first.loop, second.loop) == (0.1, "clamp", "clamp")  # 0.32 s is no multiple of 0.1 s
    assert main(["motions", "convert", path, target, "--rate", "0"]) == 2
    assert "rate must be greater than 0" in capsys.readouterr().err


def test_a_library_takes_bodies_from_the_robot(tmp_path: Path) -> None:
    """Where a file has joints only, the features of its bodies are those of the kinematics."""
    fields = ("left_shin_pos_x_b", "torso_vel_z_w", "waist_dof_pos")
    path = str(write(tmp_path / "m.csv", robots.csv(walk())))
    told = MotionsConfig(files=(path,), robot=robots.robot(tmp_path), frame_rate=FPS)
    library = MotionLibrary.load(told, fields, 1.0 / FPS)
    (full,) = read_motions(source(tmp_path), options(tmp_path))
    log = FieldTable("", full.fields, full.frames, full.frame_time).select(fields)
    np.testing.assert_allclose(library.frames[1:-1], log[1:-1], atol=1e-5)  # one-sided differences at the ends
    with pytest.raises(ValueError, match="clip 'm' has no field 'left_shin_pos_x_b'"):
        MotionLibrary.load(MotionsConfig(files=(path,), joints=JOINTS), fields, 1.0 / FPS)


def test_a_film_on_the_robot_and_a_picture_without_one(tmp_path: Path) -> None:
    """In a process of its own: MuJoCo chooses what to draw in when it is imported."""
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("matplotlib")
    path = str(write(tmp_path / "m.csv", robots.csv(walk(7))))
    words = ["motions", "film", path, "--robot", robots.robot(tmp_path), "--frame-rate", "75"]
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-m", "understudy", *words], env=environment, capture_output=True, text=True, check=False
    )
    if "has nothing to draw in" in done.stderr:
        pytest.skip("no EGL here")
    assert done.returncode == 0, done.stderr
    with imageio.get_reader(tmp_path / "m.mp4") as film:
        assert film.get_meta_data()["fps"] == 37.5  # every second frame
        pictures = [np.asarray(picture, float) for picture in film]
    assert [picture.shape for picture in pictures] == [(480, 640, 3)] * 4
    assert np.abs(pictures[0] - pictures[-1]).max() > 50.0  # it moves
    assert main(["motions", "film", path, "--joints", ",".join(JOINTS)]) == 0
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
