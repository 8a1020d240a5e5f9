"""Motion files of other programs: read by content, joints by name, orders and units checked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.motions import robots
from tests.data.motions.robots import JOINTS, Walk, walk

from understudy.data.motions.convert import convert
from understudy.data.motions.fields import FieldTable, multiply, rotate
from understudy.data.motions.files import MotionClip, read_motions
from understudy.data.motions.options import ReadOptions
from understudy.data.motions.pickled import read_any_motions, read_pickled_motions

mujoco = pytest.importorskip("mujoco")
MODEL = mujoco.MjModel.from_xml_string(robots.ROBOT)

WRITERS: dict[str, Callable[[Walk], bytes]] = {
    "beyond-mimic.npz": lambda motion: robots.beyond_mimic(MODEL, motion),
    "lafan1.csv": robots.csv,
    "gmr.pkl": robots.gmr,
    "amp.npy": robots.amp_rsl_rl,
    "loco.npz": lambda motion: robots.loco_mujoco(MODEL, motion, (0, len(motion.pos))),
    "mimickit.pkl": robots.mimic_kit,
    "motion_lib.pkl": lambda motion: pickle.dumps(robots.motion_lib(motion)),
    "motion_lib-zlib.pkl": lambda motion: zlib.compress(pickle.dumps(robots.motion_lib(motion))),
    "motion_lib-gzip.pkl": lambda motion: gzip.compress(pickle.dumps(robots.motion_lib(motion))),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def options(folder: Path, **given: Any) -> ReadOptions:
    return ReadOptions(robot=robots.robot(folder), **given)


def assert_says(clip: MotionClip, motion: Walk, frame_rate: float = robots.FPS) -> None:
    """The clip is the motion, to the digits of text."""
    table = FieldTable(clip.name, clip.fields, clip.frames, clip.frame_time)
    assert clip.frame_time == 1.0 / frame_rate
    np.testing.assert_allclose(table.select([f"{joint}_dof_pos" for joint in JOINTS]), motion.angles, atol=1e-6)
    np.testing.assert_allclose(table.select([f"root_pos_{axis}" for axis in "xyz"]), motion.pos, atol=1e-6)
    np.testing.assert_allclose(table.select([f"root_rot_{axis}" for axis in "wxyz"]), motion.quat, atol=2e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_walk_in_every_format(tmp_path: Path, name: str, caplog: Any) -> None:
    path = write(tmp_path / name, WRITERS[name](walk()))
    rate = 30 if name == "lafan1.csv" else robots.FPS
    (clip,) = read_any_motions(path, options(tmp_path))
    assert_says(clip, walk(), rate)
    assert caplog.text == ""  # no doubt
    if name not in ("amp.npy", "loco.npz"):
        with pytest.raises(ValueError, match=r"does not name its 5 joints: name the robot's model"):
            read_any_motions(path)
        (named,) = read_any_motions(path, ReadOptions(joints=("a,b,c", "d", "e")))
        assert {"a_dof_pos", "e_dof_pos"} <= set(named.fields)
        with pytest.raises(ValueError, match=r"has 5 joints without names, and joints names 2 \(a, b, \.\.\.\)"):
            read_any_motions(path, ReadOptions(joints=("a", "b")))
        with pytest.raises(ValueError, match=r"robot walker has no joint 'left_hop', .* did you mean left_hip"):
            read_any_motions(path, options(tmp_path, joints=("left_hop", *JOINTS[1:])))


# ---------------------------------------------------------------------------------------------- what is in them


def test_bodies_and_velocities_come_with_the_robots_names(tmp_path: Path) -> None:
    log = robots.kinematics(MODEL, walk())
    path = write(tmp_path / "m.npz", robots.beyond_mimic(MODEL, walk()))
    (clip,) = read_motions(path, options(tmp_path))
    table = FieldTable(clip.name, clip.fields, clip.frames, clip.frame_time)
    for i, body in enumerate(robots.BODIES):
        np.testing.assert_array_equal(
            table.select([f"{body}_vel_{a}_w" for a in "xyz"]), log["body_lin_vel_w"][:, i].astype(np.float64)
        )
    np.testing.assert_array_equal(table["root_ang_vel_z_w"], log["body_ang_vel_w"][:, 0, 2])
    np.testing.assert_array_equal(table["waist_dof_vel"], log["joint_vel"][:, 4])
    (few,) = read_motions(path, ReadOptions(joints=JOINTS))  # nobody names the bodies: only the root
    assert {"root_vel_x_w", "waist_dof_vel"} <= set(few.fields)
    assert "torso_pos_x_w" not in few.fields


def test_isaacs_order_is_an_option_and_the_wrong_one_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.npz", robots.beyond_mimic(MODEL, walk(), isaac=True))
    (clip,) = read_motions(path, options(tmp_path, joint_order="breadth_first"))
    assert_says(clip, walk())
    with pytest.raises(
        ValueError, match=r"body '\w+' is 0\.\d+ m from where the robot walker has it: its joints come bre"
    ):
        read_motions(path, options(tmp_path))
    bodies = {"joint_names": np.array(JOINTS)[robots.BREADTH_FIRST]}
    named = write(tmp_path / "named.npz", robots.beyond_mimic(MODEL, walk(), isaac=True, **bodies))
    (clip,) = read_motions(named)  # names in the file go before everything
    assert_says(clip, walk())


def test_loco_mujoco_keeps_clips_apart_and_bodies_named(tmp_path: Path) -> None:
    path = write(tmp_path / "walks.npz", robots.loco_mujoco(MODEL, walk(), (0, 15, 40)))
    first, second = read_motions(path, options(tmp_path))
    assert (first.name, len(first.frames), second.name, len(second.frames)) == ("walks 0", 15, "walks 1", 25)
    assert_says(second, Walk(*(x[15:] for x in walk())))
    log = robots.kinematics(MODEL, walk())
    table = FieldTable("", second.fields, second.frames, second.frame_time)
    np.testing.assert_array_equal(table["torso_pos_z_w"], log["body_pos_w"][15:, 5, 2])
    spin = [f"root_ang_vel_{axis}_w" for axis in "xyz"]
    np.testing.assert_allclose(table.select(spin), log["body_ang_vel_w"][15:, 0], atol=1e-6)
    convert(path, tmp_path / "again.npz", options(tmp_path), to="loco-mujoco", clip="walks 1")
    (again,) = read_motions(tmp_path / "again.npz")
    table = FieldTable("", again.fields, again.frames, again.frame_time)
    np.testing.assert_allclose(table.select(spin), log["body_ang_vel_w"][15:, 0], atol=1e-6)
    assert "world_pos_x_w" not in first.fields


def test_gmr_with_bodies_and_names(tmp_path: Path) -> None:
    seen = np.arange(240.0, dtype=np.float32).reshape(40, 2, 3)
    names = {"local_body_pos": seen, "link_body_list": ["toe", "hand"], "dof_names": list(JOINTS)}
    (clip,) = read_pickled_motions(write(tmp_path / "m.pkl", robots.gmr(walk(), **names)))
    table = FieldTable("", clip.fields, clip.frames, clip.frame_time)
    np.testing.assert_array_equal(table["hand_pos_y_b"], seen[:, 1, 1])
    assert_says(clip, walk())


def test_mimic_kit_wraps_and_has_hinges_only(tmp_path: Path) -> None:
    (clip,) = read_pickled_motions(write(tmp_path / "m.pkl", robots.mimic_kit(walk())), options(tmp_path))
    assert (clip.loop, clip.cycle_offset_position, clip.cycle_offset_rotation) == ("wrap", True, False)
    ball = robots.ROBOT.replace('<joint name="waist"', '<joint name="tilt" axis="1 0 0"/><joint name="waist"')
    (tmp_path / "ball.xml").write_text(ball)
    path = write(tmp_path / "b.pkl", robots.mimic_kit(walk(), frames=np.zeros((3, 12))))
    with pytest.raises(ValueError, match="the robot ball has bodies with several joints, which MimicKit"):
        read_pickled_motions(path, ReadOptions(robot=str(tmp_path / "ball.xml")))


def test_motion_lib_holds_several_clips_or_one(tmp_path: Path) -> None:
    clips = robots.motion_lib(walk())
    clips["other"] = {**clips["0-walk_poses"], "dof": walk().angles[..., None], "fps": np.array(50)}  # as PHC leaves it
    read = read_pickled_motions(write(tmp_path / "two.pkl", pickle.dumps(clips)), options(tmp_path))
    assert [(clip.name, clip.frame_time) for clip in read] == [("0-walk_poses", 0.04), ("other", 0.02)]
    (one,) = read_pickled_motions(write(tmp_path / "one.pkl", pickle.dumps(clips["other"])), options(tmp_path))
    assert one.name == "one"


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)])
def test_joblibs_own_files_are_read(tmp_path: Path, compress: Any) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(robots.motion_lib(walk()), tmp_path / "m.pkl", compress=compress)
    (clip,) = read_pickled_motions(tmp_path / "m.pkl", options(tmp_path))
    assert_says(clip, walk())


def test_a_urdf_without_meshes_is_a_robot(tmp_path: Path) -> None:
    (tmp_path / "r.urdf").write_text(
        '<robot name="r"><link name="base"><visual><geometry><mesh filename="package://x/y.dae"/></geometry></visual>'
        '</link><link name="leg"/><joint name="hip" type="revolute"><parent link="base"/><child link="leg"/>'
        '<axis xyz="0 1 0"/><limit lower="-1" upper="1" effort="1" velocity="1"/></joint></robot>'
    )
    one = Walk(walk().pos, walk().quat, walk().angles[:, :1])
    (clip,) = read_motions(write(tmp_path / "m.csv", robots.csv(one)), ReadOptions(robot=str(tmp_path / "r.urdf")))
    assert "hip_dof_pos" in clip.fields


# ---------------------------------------------------------------------------------------------- doubts and errors


def test_degrees_are_found(tmp_path: Path, caplog: Any) -> None:
    path = write(tmp_path / "m.csv", robots.csv(walk()._replace(angles=np.rad2deg(walk().angles))))
    with pytest.raises(ValueError, match=r"joint '\w+' leaves its range by \d+ rad, and as degrees all joints fit"):
        read_motions(path, options(tmp_path))
    read_motions(path, ReadOptions(joints=JOINTS))
    assert "half of its joints turn by more than 34 rad; were they written in degrees?" in caplog.text


def test_swapped_columns_are_found(tmp_path: Path, caplog: Any) -> None:
    swapped = walk().angles[:, [1, 0, 2, 3, 4]]
    read_motions(write(tmp_path / "m.csv", robots.csv(walk()._replace(angles=swapped))), options(tmp_path))
    assert "joints leave the ranges of the robot walker (left_knee by 0.60 rad): are their columns in" in caplog.text
    path = write(tmp_path / "m.npz", robots.beyond_mimic(MODEL, walk(), joint_pos=swapped))
    with pytest.raises(ValueError, match=r"is 0\.\d+ m from where .*: its joints have other names or another order"):
        read_motions(path, options(tmp_path))


@pytest.mark.parametrize("turned", [0.0, 0.5, 2.8])
@pytest.mark.parametrize("name", ["lafan1.csv", "gmr.pkl", "beyond-mimic.npz"])
def test_quaternions_in_the_other_order_are_found(tmp_path: Path, name: str, turned: float, caplog: Any) -> None:
    """A walk that starts at heading `turned`, read as if its quaternions had the order that they have not."""
    heading = np.array([[np.cos(turned / 2), 0.0, 0.0, np.sin(turned / 2)]])
    pos, quat, angles = walk()
    motion = Walk(rotate(np.tile(heading, (len(pos), 1)), pos.astype(float)), multiply(heading, quat), angles)
    path = write(tmp_path / name, WRITERS[name](motion))
    order: Any = "xyzw" if name == "beyond-mimic.npz" else "wxyz"
    if name == "beyond-mimic.npz":
        with pytest.raises(ValueError, match=r"its quaternions have the other order: read it with that"):
            read_motions(path, options(tmp_path, quaternion_order=order))
    wrong = ReadOptions(joints=JOINTS, quaternion_order=order)
    caplog.clear()
    read_any_motions(path, wrong)
    assert "(quaternion_order)" in caplog.text
    caplog.clear()
    read_any_motions(path, ReadOptions(joints=JOINTS))
    assert caplog.text == ""


class Trap:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("ran",)


BARE = io.BytesIO()
np.save(BARE, np.zeros((3, 4)))
DAMAGES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("m.csv", b"", "it is empty"),
    "truncated csv": ("m.csv", robots.csv(walk())[:-30], "the number of columns changed from 12 to"),
    "mixed length": ("m.csv", b"1,2,3\n1,2,3,4\n", "the number of columns changed from 3 to 4 at row 2"),
    "few columns": ("m.csv", b"1,2,3\n1,2,3\n", "its rows have 3 numbers; expected 3 [+] 4 of the root"),
    "header": ("m.csv", b"root_x,root_y\n1,2\n", "could not convert string 'root_x'"),
    "one frame": ("m.csv", b"0,0,0,0,0,0,1,0,0,0,0,0\n", "has 1 frames; a motion needs at least 2"),
    "not finite": ("m.csv", robots.csv(walk()).replace(b"0.600000", b"nan", 1), "frame 0, field '.*' is nan"),
    "quaternion": ("m.csv", robots.csv(walk()._replace(quat=2 * walk().quat)), "quaternion of 'root' has length 2"),
    "no rate": ("m.pkl", robots.gmr(walk(), fps=None), "fps is None: frames per second are one number"),
    "rate 0": ("m.pkl", robots.gmr(walk(), fps=0), "fps is 0; it must be positive"),
    "rates": ("m.npz", robots.beyond_mimic(MODEL, walk(), fps=[25, 50]), "fps is .25 50.: frames per second are one"),
    "rate nan": ("m.npy", robots.amp_rsl_rl(walk(), fps=float("nan")), "fps is nan; it must be positive"),
    "lengths": (
        "m.pkl", robots.gmr(walk(), root_pos=walk().pos[:-1]),
        r"root_pos is of type float32 and shape \(39, 3\), expected numbers of shape \(40, 3\)",
    ),
    "ragged": (
        "m.npy", robots.amp_rsl_rl(walk(), joint_positions=[np.zeros(5), np.zeros(4)]),
        "joint_positions is not a table of numbers",
    ),
    "no root": ("m.pkl", robots.gmr(walk(), root_rot=None), "root_rot is of type object and shape"),
    "missing": (
        "m.pkl", pickle.dumps({"root_pos": walk().pos, "root_rot": walk().quat, "fps": 25}),
        "as a file of the format GMR it lacks dof_pos; it has: root_pos, root_rot, fps. Formats that are read: GMR",
    ),
    "a human": (
        "m.pkl", pickle.dumps({"walk": {"pose_aa": np.zeros((3, 24, 3)), "root_trans_offset": np.zeros((3, 3))}}),
        "as a file of the format motion_lib it lacks root_rot, dof",
    ),
    "loop mode": ("m.pkl", robots.mimic_kit(walk(), loop_mode=7), "loop_mode is 7; expected 0 .clamp. or 1 .wrap."),
    "splits": (
        "m.npz", robots.loco_mujoco(MODEL, walk(), (0, 50)), r"split_points is \[0, 50\]; it must rise from 0 to ",
    ),
    "ball": (
        "m.npz", robots.loco_mujoco(MODEL, walk(), (0, 40), jnt_type=np.array([0, 1, 3, 3, 3, 3])),
        "expected one free joint, hinges and slides",
    ),
    "a bare array": ("m.npy", BARE.getvalue(), r"is an array of shape \(3, 4\) without names"),
    "npy": ("m.npy", robots.amp_rsl_rl(walk())[:200], "m.npy"),
    "a trap": ("m.pkl", robots.gmr(walk(), fps=Trap()), "builtins.print. None of it was run"),
    "a trap in an array": ("m.npy", robots.amp_rsl_rl(walk(), fps=Trap()), "builtins.print. None of it was run"),
    "another version": (
        "m.pkl", robots.gmr(walk()).replace(b"(K\x01K", b"(K\x81K"), "an array of version 129. None of it was run",
    ),
    "lz4": ("m.pkl", b"\x04\x22M\x18@@", "is packed with lz4, which is not read: write it with joblib.dump"),
    "bz2": ("m.pkl", bz2.compress(robots.gmr(walk()))[:-9], "the compressed data end too early"),
    "bomb": ("m.pkl", zlib.compress(bytes(300 << 20), 9), "claims 0.3 GiB in .* bytes"),
    "bz2 bomb": ("m.pkl", bz2.compress(bytes(300 << 20)), "claims 0.3 GiB in .* bytes"),
    "lzma's memory": (
        "m.pkl", b"]" + (1 << 30).to_bytes(4, "little") + lzma.compress(b"text", lzma.FORMAT_ALONE)[5:],
        "Memory usage limit exceeded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress, partial(lzma.compress, format=lzma.FORMAT_ALONE)])
def test_pickles_are_read_however_joblib_packs_them(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    plain, packed = robots.gmr(walk()), write(tmp_path / "packed.pkl", compress(robots.gmr(walk())))
    (told,), (found,) = (
        read_any_motions(path, options(tmp_path)) for path in (write(tmp_path / "plain.pkl", plain), packed)
    )
    np.testing.assert_array_equal(found.frames, told.frames)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_faulty_file_is_refused_in_a_sentence(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, data, message = DAMAGES[name]
    path = write(tmp_path / file, data)
    with pytest.raises(ValueError, match=message) as caught:
        read_any_motions(path, options(tmp_path))
    assert str(path) in str(caught.value)
    assert capsys.readouterr().out == ""  # nothing ran


def test_robots_that_are_none_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", robots.csv(walk()))
    with pytest.raises(ValueError, match="there is no robot 'g1': name an MJCF or URDF file"):
        read_motions(path, ReadOptions(robot="g1"))
    (tmp_path / "bad.xml").write_text("<mujoco><worldbody><bod/></worldbody></mujoco>")
    with pytest.raises(ValueError, match=r"bad.xml is not a model for MuJoCo .*: name MJCF or URDF"):
        read_motions(path, ReadOptions(robot=str(tmp_path / "bad.xml")))
    (tmp_path / "none.xml").write_text("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    with pytest.raises(ValueError, match=r"none.xml has no root that moves freely with joints after it"):
        read_motions(path, ReadOptions(robot=str(tmp_path / "none.xml")))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_lists_of_arrays_come_as_the_pickle_says(tmp_path: Path, protocol: int) -> None:
    """Arrays alike are taken many at once; repeated, other and referred ones must not be taken for them."""
    from understudy.data.motions.pickled import _Plain, _Unpickler

    rng = np.random.default_rng(0)
    rows: list[Any] = list(rng.normal(size=(2500, 5)).astype(np.float32))
    rows[700], rows[1200] = rng.normal(size=5), rng.normal(size=4).astype(np.float32)  # another type, another size
    rows[800] = rows[799] = rows[3]  # the same object
    shared = [rows[2400], rows[17], rows[1201], "text"]
    data = {
        "rows": rows,
        "more": shared,
        "zeros": list(np.zeros((300, 2))),
        "ints": list(np.arange(600).reshape(300, 2)),
    }
    raw = pickle.dumps(data, protocol)
    found = _Plain(3 * len(raw) + 1000)(_Unpickler(raw).load())
    for key, told in data.items():
        assert len(found[key]) == len(told)
        for ours, theirs in zip(found[key], told):
            np.testing.assert_array_equal(ours, theirs)
            assert isinstance(theirs, str) or ours.dtype == theirs.dtype


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_lists_of_lists_come_as_the_pickle_says(tmp_path: Path, protocol: int) -> None:
    """Lists of as many numbers are taken many at once; longer, referred and other ones must not be taken for them."""
    from understudy.data.motions.pickled import _Plain, _Unpickler

    rng = np.random.default_rng(0)
    rows: list[Any] = rng.normal(size=(2500, 3)).tolist()
    rows[700], rows[1200], rows[1300] = [0.0, 1.0], [1, 2, 3], [0.5, 7, 0.5]
    rows[801] = rows[799] = rows[3]  # the same object
    long = rng.normal(size=(5, 1000)).tolist()
    long[4] += [1.0, 2.0]  # begins like the others: pickle writes a thousand at a time
    pair = (rows[10][:], rows[11][:])
    told = {"rows": rows, "more": [rows[2400], rows[17], rows[1201], "text"], "long": long, "pair": [*rows[:9], pair]}
    raw = pickle.dumps(told | {"alike": rows[20:600]}, protocol)
    found = _Plain(9 * len(raw))(_Unpickler(raw).load())
    assert [len(found[key]) for key in told] == [len(told[key]) for key in told]
    for key in ("rows", "more", "long"):
        for ours, theirs in zip(found[key], told[key]):
            assert list(ours) == list(theirs) if isinstance(theirs, list) else ours == theirs
    assert [list(x) for x in found["pair"][9]] == [*pair]
    assert found["alike"].tolist() == rows[20:600]
