from __future__ import annotations

import base64
import json
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from understudy.data.motions.fields import FieldTable, MirrorRule, angular_velocity, mirror_table, rotate, slerp
from understudy.data.motions.files import MotionClip, read_motions, write_motions
from understudy.data.motions.library import MotionLibrary, MotionsConfig
from understudy.data.motions.options import ReadOptions
from understudy.data.motions.pickled import read_pickled_motions
from understudy.data.motions.report import describe, draw_clips, find_gaps

HALF = math.sqrt(0.5)
GENERATOR = torch.Generator().manual_seed(0)

# joblib 1.6, compressed: {"walk": header(Frames=np.arange(6.0).reshape(3, 2))}
JOBLIB = base64.b64decode(
    "eF5tUM1OwkAQ5leBaIKRi/EF8MLZgwkYFBIr1XDhZJpduoXKttt0tyHFkOhFwezN8TV8Jn0D30CnLXhyDjvfzHwz+808lt5f87nUlqBLc8JnsISm"
    "rlwLEQyEzTA5CkkAer8XEo9dRCFRrvCh34bFV/+j8aCPLn1COevGY85uHEcydSukm5JW/xSHQmUT1npvIBI0Yu5kqnDiZyZE7/Rcxm0JdyikSixb"
    "OFYgJOgq/cMMSYkezB7eC8pd2vIjL4itwB3POKo+MJPwPAxJnOgPWAhvcPKULScjOuZEYnM57QK969sk4SJJl+WUBAyMolF4xkiENjbrfBexrWKs"
    "TBtbhOyCcwrr1QsMoWkUdf4MTNO8+kFLHyOngOoa4VzMLc/DQ670caY0/c8i3J34HvOVRWOF6xj1iNaSzsyyi2ztu71BncxXNr6+8Y1OJFu/iXKv"
    "lQ=="
)


def header(**changes: object) -> dict[str, object]:
    walk = {
        "LoopMode": "Wrap",
        "FrameDuration": 0.02,
        "EnableCycleOffsetPosition": True,
        "EnableCycleOffsetRotation": False,
        "MotionWeight": 0.5,
        "Fields": ["a_dof_pos", "b_dof_pos"],
        "Frames": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
    }
    return {**walk, **changes}


def clip(
    frames: object, fields: tuple[str, ...] = ("a_dof_pos",), frame_time: float = 0.1, **options: object
) -> MotionClip:
    return MotionClip(name="c", fields=fields, frames=np.array(frames, float), frame_time=frame_time, **options)  # type: ignore[arg-type]


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


# ------------------------------------------------------------------------------------------------------ formats


def check_walk(walk: MotionClip, name: str) -> None:
    assert (walk.name, walk.loop, walk.weight, walk.frame_time) == (name, "wrap", 0.5, 0.02)
    assert walk.cycle_offset_position
    assert not walk.cycle_offset_rotation
    assert walk.fields == ("a_dof_pos", "b_dof_pos")
    assert walk.frames.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_text_of_one_clip_and_of_a_dictionary_of_clips(tmp_path: Path) -> None:
    (walk,) = read_motions(write(tmp_path / "walk.txt", header()))
    check_walk(walk, "walk")
    walk, still = read_motions(write(tmp_path / "all.json", {"w": header(), "s": header(LoopMode="Clamp")}))
    check_walk(walk, "w")
    assert still.loop == "clamp"


def test_text_without_names_takes_those_of_the_config(tmp_path: Path) -> None:
    data = {k: v for k, v in header().items() if k != "Fields"}
    path = write(tmp_path / "walk.txt", data)
    with pytest.raises(ValueError, match="name them with text_fields"):
        read_motions(path)
    (walk,) = read_motions(path, ReadOptions(text_fields=("a_dof_pos", "b_dof_pos")))
    check_walk(walk, "walk")


def test_our_own_file_round_trips(tmp_path: Path) -> None:
    (walk,) = read_motions(write(tmp_path / "walk.txt", header()))
    other = clip([[1.0], [2.0]], weight=3.0)
    back, second = read_motions(write_motions(tmp_path / "walk.npz", [walk, other]))
    check_walk(back, "walk")
    assert (second.weight, second.loop, second.frames.tolist()) == (3.0, "clamp", [[1.0], [2.0]])


def isaac_lab(path: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """A file as Isaac Lab writes it; a change to None leaves the array out."""
    F, D, B = 3, 2, 2
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {name: rng.normal(size=(F, D)) for name in ("dof_positions", "dof_velocities")}
    bodies = ("body_positions", "body_linear_velocities", "body_angular_velocities")
    arrays |= {name: rng.normal(size=(F, B, 3)) for name in bodies}
    q = rng.normal(size=(F, B, 4))
    arrays["body_rotations"] = q / np.linalg.norm(q, axis=-1, keepdims=True)
    arrays |= {"fps": 50, "dof_names": ["hip", "knee"], "body_names": ["pelvis", "foot"], **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path, arrays


def test_isaac_lab_arrays_become_named_fields(tmp_path: Path) -> None:
    path, arrays = isaac_lab(tmp_path / "m.npz")
    (m,) = read_motions(path)
    table = FieldTable("m", m.fields, m.frames, m.frame_time)
    assert m.frame_time == 0.02
    np.testing.assert_allclose(table["knee_dof_pos"], arrays["dof_positions"][:, 1])
    np.testing.assert_allclose(table["hip_dof_vel"], arrays["dof_velocities"][:, 0])
    np.testing.assert_allclose(table["foot_pos_z_w"], arrays["body_positions"][:, 1, 2])
    np.testing.assert_allclose(table["root_vel_y_w"], arrays["body_linear_velocities"][:, 0, 1])
    np.testing.assert_allclose(table["foot_ang_vel_x_w"], arrays["body_angular_velocities"][:, 1, 0])
    np.testing.assert_allclose(np.abs(table["root_rot_w"]), np.abs(arrays["body_rotations"][:, 0, 0]))


def test_names_as_bytes_and_a_number_in_an_array_are_read(tmp_path: Path) -> None:
    names = {"dof_names": np.array([b"hip", b"knee"]), "body_names": np.array(["pelvis", "foot"], "S")}
    (m,) = read_motions(isaac_lab(tmp_path / "m.npz", fps=np.array([25.0]), **names)[0])
    assert (m.frame_time, m.fields[:2]) == (0.04, ("hip_dof_pos", "knee_dof_pos"))
    assert "pelvis_pos_x_w" in m.fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dof_velocities": None}, "of the format Isaac Lab it lacks dof_velocities; it has: "),
        ({"fps": np.array([50.0, 60.0])}, r"fps is of type float64 and shape \(2,\), expected one value, numbers"),
        ({"fps": "fast"}, "fps is of type <U4"),
        ({"fps": 0.0}, "fps is 0.0; it must be positive"),
        ({"dof_names": "hip"}, "dof_names is of type <U3 and shape .*expected text of shape"),
        (
            {"dof_names": ["hip"]},
            r"dof_positions is of type float64 and shape \(3, 2\), expected numbers of shape \(3, 1\)",
        ),
        ({"body_names": np.array([], "U1")}, "body_names names no body"),
        ({"body_rotations": np.zeros((3, 2, 3))}, r"body_rotations .*expected numbers of shape \(3, 2, 4\)"),
        ({"body_positions": np.zeros((2, 2, 3))}, r"body_positions .*expected numbers of shape \(3, 2, 3\)"),
        ({"dof_positions": np.array([["a", "b"]] * 3)}, "dof_positions is of type <U1"),
        ({"dof_positions": np.full((3, 2), 1e300)}, "frame 0, field 'hip_dof_pos' is 1e.300"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path, _ = isaac_lab(tmp_path / "m.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_motions(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("yaw", [0.0, 0.8, 2.5])
def test_the_order_of_quaternions_is_an_option_and_the_wrong_one_a_doubt(
    tmp_path: Path, yaw: float, caplog: Any
) -> None:
    """A root at `yaw` turns by 0.5 rad/s and walks ahead at 2 m/s; Isaac Lab wrote x, y, z, w."""
    F, t = 6, np.arange(6) / 50.0
    heading = yaw + 0.5 * t
    q = np.stack((0 * t, 0 * t, np.sin(heading / 2), np.cos(heading / 2)), axis=1)[:, None]
    ahead = 2.0 * np.stack((np.cos(heading), np.sin(heading), 0 * t), axis=1)[:, None]
    turning = np.tile([0.0, 0.0, 0.5], (F, 1, 1))
    path, _ = isaac_lab(
        tmp_path / "m.npz",
        body_names=["pelvis"],
        dof_positions=np.zeros((F, 2)),
        dof_velocities=np.zeros((F, 2)),
        body_rotations=q,
        body_positions=np.zeros((F, 1, 3)),
        body_linear_velocities=ahead,
        body_angular_velocities=turning,
    )
    (right,) = read_motions(path, ReadOptions(quaternion_order="xyzw"))
    velocity = ["root_vel_x_b", "root_vel_y_b"]
    table = FieldTable("m", right.fields, right.frames, right.frame_time)
    np.testing.assert_allclose(table.select(velocity), [[2.0, 0.0]] * F, atol=1e-12)
    assert caplog.text == ""
    read_motions(path)
    assert "written as x, y, z, w" in caplog.text
    library = MotionLibrary.load(MotionsConfig(files=(str(path),), quaternion_order="xyzw"), velocity, 0.02)
    np.testing.assert_allclose(library.frames, [[2.0, 0.0]] * F, atol=1e-6)


def test_a_root_on_its_head_throughout_is_a_doubt(tmp_path: Path, caplog: Any) -> None:
    fields = tuple(f"root_rot_{axis}" for axis in "wxyz")
    over = clip([[1.0, 0, 0, 0], [0.0, 1.0, 0, 0]], fields)  # a somersault
    read_motions(write_motions(tmp_path / "over.npz", [over]))
    assert caplog.text == ""
    read_motions(write_motions(tmp_path / "head.npz", [clip([[0.0, 1.0, 0, 0], [0.1**0.5, 0.9**0.5, 0, 0]], fields)]))
    assert "the root is upside down in every frame" in caplog.text


def test_writing_stops_before_the_old_file_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_motions(tmp_path / "m.npz", [clip([[1.0], [2.0]])])
    old = path.read_bytes()

    def full(file: Any, *_: Any, **options: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        write_motions(path, [clip([[3.0], [4.0]])])
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.npz"]


def test_a_pickle_is_only_read_when_told_to(tmp_path: Path) -> None:
    plain, joblib = tmp_path / "plain.pkl", tmp_path / "joblib.pkl"
    plain.write_bytes(pickle.dumps({"walk": header(Frames=np.arange(6.0).reshape(3, 2))}))
    joblib.write_bytes(JOBLIB)
    for path in (plain, joblib):
        with pytest.raises(ValueError, match="understudy motions convert"):
            read_motions(path)
        (walk,) = read_pickled_motions(path)
        check_walk(walk, "walk")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


DTYPE = np.dtype(np.float64).__reduce__()[0]


class Called:
    """Pickled as a call of `function`, and a state after it."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call if self.call[2] is not None else self.call[:2]


RECONSTRUCT, SCALAR = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]  # type: ignore[misc]
WHOLE = (3, "<", None, None, None, -1, -1, 0)
POINTER = (3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 8, 27)  # a field of objects: bytes become pointers


@pytest.mark.parametrize(
    "frames",
    [
        Called(DTYPE, "V8", False, True, state=POINTER),
        Called(DTYPE, "f8", False, True, state=POINTER),
        Called(DTYPE, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 63)),
        Called(DTYPE, "f8", False, True, state=(3, "<", (np.dtype("f8"), (2**40,)), None, None, -1, -1, 0)),
        Called(np.ndarray, (2**40,)),
        Called(np.ndarray, (4,), Called(DTYPE, "O8", False, True), b"A" * 32),
        Called(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2**40, 2), np.dtype("f8"), False, b"x" * 16)),
        Called(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1, -2), np.dtype("f8"), False, b"x" * 16)),
        Called(
            RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2,), Called(DTYPE, "O8", False, True), False, b"x" * 16)
        ),
        Called(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2,), np.dtype("f8"), False, ["x"])),
        Called(SCALAR, Called(DTYPE, "f8", False, True, state=WHOLE), b"short"),
        Called(bytes, 5),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_a_crafted_array_never_reaches_numpy(tmp_path: Path, frames: Any) -> None:
    path = tmp_path / "trap.pkl"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"walk": header(Frames=frames)}, protocol))
        with pytest.raises(ValueError, match=str(path)):
            read_pickled_motions(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpys_own_pickles_are_read_whatever_their_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "walk.pkl"
    for frames in (np.arange(6.0).reshape(3, 2), np.arange(6.0).astype(">f4").reshape(2, 3).T[:3] * 0 + [[0, 1]]):
        data = header(Frames=frames, FrameDuration=np.float64(0.02), Fields=np.array(["a", "b"]))
        path.write_bytes(pickle.dumps({"walk": data}, protocol))
        (walk,) = read_pickled_motions(path)
        np.testing.assert_array_equal(walk.frames, frames)
        assert (walk.frame_time, walk.fields) == (0.02, ("a", "b"))


def test_a_small_pickle_cannot_ask_for_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_MAX_UNPACKED_GIB", "0.01")
    path = tmp_path / "bomb.pkl"
    frames: list[Any] = [0.0]
    for _ in range(40):
        frames = [frames, frames]  # 2^40 numbers in a few hundred bytes
    path.write_bytes(pickle.dumps({"walk": header(Frames=frames)}))
    with pytest.raises(ValueError, match="values that hold each other"):
        read_pickled_motions(path)
    path.write_bytes(zlib.compress(bytes(1 << 25), 1))
    with pytest.raises(ValueError, match="means to exhaust memory"):
        read_pickled_motions(path)
    path.write_bytes(zlib.compress(pickle.dumps({"walk": header()}))[:-20])
    with pytest.raises(ValueError, match=r"bomb.pkl .*end too early"):
        read_pickled_motions(path)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trap.pkl"
    path.write_bytes(pickle.dumps({"walk": header(Frames=Trap())}))
    with pytest.raises(ValueError, match=r"builtins\.exec. None of it was run"):
        read_pickled_motions(path)
    path.write_bytes(b"\x80\x04garbage")
    with pytest.raises(ValueError, match="not a readable pickle"):
        read_pickled_motions(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Frames": [[0.0, 1.0], [float("nan"), 2.0]]}, "clip 'walk', frame 1, field 'a_dof_pos' is nan"),
        ({"FrameDuration": 0.0}, "frame_time must be greater than 0, got 0.0"),
        ({"FrameDuration": -0.1}, "must be greater than 0"),
        ({"Fields": ["a_dof_pos", "a_dof_pos"]}, "fields twice: a_dof_pos"),
        ({"Fields": ["a_dof_pos"]}, r"shape \(3, 2\) for 1 named"),
        ({"Frames": [[0.0, 1.0]]}, "at least 2"),
        ({"Frames": [[0.0, 1.0], [0.0]]}, "not a table of numbers"),
        ({"LoopMode": "Loop"}, "clip .walk.: loop must be one of clamp, wrap"),
        ({"MotionWeight": -1.0}, "weight must be at least 0"),
        ({"FrameDuraton": 1}, "unknown entry 'FrameDuraton'; did you mean FrameDuration"),
        ({"Fields": ["root_rot_w", "root_rot_x"]}, "lacks root_rot_y, root_rot_z"),
        ({"Fields": 3}, "clip .walk.: Fields must be a list.*got 3"),
        ({"Fields": [1, 2]}, "Fields must in each entry be text"),
        ({"MotionWeight": None}, "clip 'walk': MotionWeight must be a number, got None"),
        ({"FrameDuration": "0.02"}, "FrameDuration must be a number"),
        ({"FrameDuration": [0.02]}, "FrameDuration must be a number"),
        ({"LoopMode": 1}, "LoopMode must be text, got 1"),
        ({"EnableCycleOffsetPosition": "false"}, "EnableCycleOffsetPosition must be true or false"),
        ({"Frames": None}, "not a table of numbers but of object"),
        ({"Frames": [["0.0", "1.0"], ["0.0", "1.0"]]}, "not a table of numbers but of <U3"),
        ({"Frames": {"a": 1}}, "not a table of numbers"),
        ({"Frames": [[0.0, 1.0], [1e300, 2.0]]}, "frame 1, field 'a_dof_pos' is 1e"),
    ],
)
def test_bad_text_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_motions(write(tmp_path / "walk.txt", header(**changes)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_motions(tmp_path / "none.txt")
    (tmp_path / "bad.txt").write_text("Frames: 1")
    with pytest.raises(
        ValueError, match=r"bad.txt is damaged or of another format .*expected an .npz of clips, JSON text or a table"
    ):
        read_motions(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match="'a' is not a clip but of type int"):
        read_motions(write(tmp_path / "odd.txt", {"a": 1}))
    np.savez(tmp_path / "odd.npz", fps=50)
    with pytest.raises(ValueError, match=r"lacks dof_names, body_names, .*it has: fps"):
        read_motions(tmp_path / "odd.npz")


def test_quaternions_must_be_of_unit_length() -> None:
    fields = tuple(f"root_rot_{axis}" for axis in "wxyz")
    with pytest.raises(ValueError, match="frame 1: the quaternion of 'root' has length 2"):
        clip([[1, 0, 0, 0], [2, 0, 0, 0]], fields)
    # rounding is mended, and the sign that continues the frame before is chosen
    mended = clip([[1.001, 0, 0, 0], [-1, 0, 0, 0], [-1, 0, 0, 0]], fields)
    assert mended.frames.tolist() == [[1, 0, 0, 0]] * 3


# ------------------------------------------------------------------------------------- rotations and derivation


def test_slerp_by_hand() -> None:
    a, b = np.array([[1.0, 0, 0, 0]]), np.array([[HALF, 0, 0, HALF]])  # 0 and 90 degrees about z
    expected = [[math.cos(math.pi / 12), 0, 0, math.sin(math.pi / 12)]]  # 30 degrees: a third of the way
    np.testing.assert_allclose(slerp(a, b, np.array([1 / 3])), expected, rtol=1e-12)
    np.testing.assert_allclose(slerp(a, -b, np.array([1 / 3])), expected, rtol=1e-12)  # the shorter arc
    np.testing.assert_allclose(slerp(a, a, np.array([0.5])), a, rtol=1e-12)


def test_rotation_and_angular_velocity_by_hand() -> None:
    quarter = np.array([[HALF, 0, 0, HALF]])
    np.testing.assert_allclose(rotate(quarter, np.array([[1.0, 0, 0]])), [[0, 1, 0]], atol=1e-12)
    angles = 0.3 * np.arange(5) * 0.1  # 0.3 rad/s about x
    q = np.stack((np.cos(angles / 2), np.sin(angles / 2), 0 * angles, 0 * angles), axis=1)
    np.testing.assert_allclose(angular_velocity(q, 0.1), [[0.3, 0, 0]] * 5, rtol=1e-9, atol=1e-12)


def test_missing_velocities_are_finite_differences() -> None:
    t = np.arange(6) * 0.1
    # moves along the world's y at 2 m/s while it looks along y, and turns a joint quadratically
    frames = np.stack((0 * t, 2 * t, 0 * t + 1, HALF + 0 * t, 0 * t, 0 * t, HALF + 0 * t, t**2), axis=1)
    fields = ("root_pos_x", "root_pos_y", "root_pos_z", *(f"root_rot_{a}" for a in "wxyz"), "knee_dof_pos")
    table = FieldTable("c", fields, frames, 0.1)
    np.testing.assert_allclose(table["knee_dof_vel"], 2 * t, atol=1e-12)
    np.testing.assert_allclose(table["root_vel_y_w"], 2.0)
    np.testing.assert_allclose(table["root_vel_x_b"], 2.0)
    np.testing.assert_allclose(table["root_vel_y_b"], 0.0, atol=1e-12)
    np.testing.assert_allclose(table.select(["root_ang_vel_z_b", "root_ang_vel_z_w"]), 0.0, atol=1e-12)
    with pytest.raises(ValueError, match="no field 'kne_dof_vel' and nothing to derive it from; did you mean knee"):
        table["kne_dof_vel"]


def test_a_whole_turn_goes_on_across_the_seam() -> None:
    yaw = np.linspace(0.0, 2 * np.pi, 9)
    fields = ("root_rot_w", "root_rot_x", "root_rot_y", "root_rot_z")
    frames = np.stack((np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)), axis=1)
    library = MotionLibrary([clip(frames, fields, loop="wrap")], fields, 0.1, window=12)
    expected = np.cos(np.arange(len(library.frames)) * np.pi / 8)  # half the yaw, without a jump at the 8th frame
    np.testing.assert_allclose(library.frames[:, 0], expected, atol=1e-6)


def test_rates_of_a_clip_that_wraps_go_on_across_the_seam() -> None:
    t = np.linspace(0.0, 1.0, 9)  # one period in 8 steps of 0.125 s; the last frame is the first of the next
    wave = np.stack((np.cos(2 * np.pi * t), np.sin(2 * np.pi * t), 3.0 * t), axis=1)
    wave = np.concatenate((wave, np.zeros((9, 2))), axis=1)
    fields = ("a_dof_pos", "b_dof_pos", "root_pos_x", "root_pos_y", "root_pos_z")
    table = FieldTable("c", fields, wave, 0.125, wraps=True)
    # cosine: (cos 45 - cos -45) / 0.25 = 0; sine: 2 sin 45 / 0.25; a root that each cycle moves by 3 m: 3 m/s
    np.testing.assert_allclose(table["a_dof_vel"][[0, -1]], 0.0, atol=1e-12)
    np.testing.assert_allclose(table["b_dof_vel"][[0, -1]], math.sqrt(2.0) / 0.25)
    np.testing.assert_allclose(table["root_vel_x_w"], 3.0)
    clamped = FieldTable("c", fields, wave, 0.125)
    assert abs(clamped["a_dof_vel"][0]) > 0.4
    np.testing.assert_array_equal(clamped["a_dof_vel"][1:-1], table["a_dof_vel"][1:-1])
    library = MotionLibrary([clip(wave[:, :1], frame_time=0.125, loop="wrap")], ("a_dof_vel",), 0.125, window=10)
    np.testing.assert_allclose(library.frames[[0, 8, 16], 0], 0.0, atol=1e-6)


def test_a_cycle_that_turns_the_root_turns_the_differences_across_the_seam() -> None:
    """A quarter of a circle of 1 m radius in each cycle, at one speed: the rates are the same in every frame."""
    angle = np.linspace(0.0, np.pi / 2, 5)
    zero = 0 * angle
    yaw = angle + np.pi / 2  # it looks along its way
    columns = (np.cos(angle), np.sin(angle), zero, np.cos(yaw / 2), zero, zero, np.sin(yaw / 2))
    fields = ("root_pos_x", "root_pos_y", "root_pos_z", *(f"root_rot_{a}" for a in "wxyz"))
    table = FieldTable("c", fields, np.stack(columns, axis=1), 0.1, wraps=True, turns=True)
    speed = math.sin(np.pi / 8) / 0.1  # (sin 22.5 - sin -22.5) / 0.2 along the tangent
    seen = table.select(["root_vel_x_b", "root_vel_y_b", "root_ang_vel_z_b", "root_ang_vel_x_b"])
    np.testing.assert_allclose(seen, [[speed, 0.0, np.pi / 8 / 0.1, 0.0]] * 5, atol=1e-12)


def test_links_are_seen_from_the_root() -> None:
    t = np.arange(4) * 0.5
    root = [0 * t + 1, 0 * t, 0 * t, HALF + 0 * t, 0 * t, 0 * t, HALF + 0 * t]
    foot = [0 * t + 1, t, 0 * t - 1]  # ahead of a root that looks along y
    fields = ("root_pos_x", "root_pos_y", "root_pos_z", *(f"root_rot_{a}" for a in "wxyz"))
    fields += ("foot_pos_x_w", "foot_pos_y_w", "foot_pos_z_w")
    table = FieldTable("c", fields, np.stack((*root, *foot), axis=1), 0.5)
    np.testing.assert_allclose(table["foot_pos_x_b"], t, atol=1e-12)
    np.testing.assert_allclose(table["foot_pos_y_b"], 0.0, atol=1e-12)
    np.testing.assert_allclose(table["foot_pos_z_b"], -1.0)
    np.testing.assert_allclose(table["foot_vel_x_b"], 1.0)


# ---------------------------------------------------------------------------------------------------- one grid


def test_resampling_by_hand() -> None:
    library = MotionLibrary([clip([[0.0], [1.0], [3.0]])], ("a_dof_pos", "a_dof_vel"), 0.05)
    expected = [0.0, 0.5, 1.0, 2.0, 3.0]
    np.testing.assert_allclose(library.frames[:, 0], expected, rtol=1e-6)
    # velocities on the clip's own grid: (-3 0 + 4 1 - 3) / 0.2 = 5, 3 / 0.2 = 15, (0 - 4 1 + 3 3) / 0.2 = 25
    np.testing.assert_allclose(library.frames[:, 1], [5.0, 10.0, 15.0, 20.0, 25.0], rtol=1e-6)


def test_a_loop_goes_on_across_its_end() -> None:
    fields = ("a_dof_pos", "root_pos_x")
    frames = [[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]]  # period 0.2 s
    library = MotionLibrary([clip(frames, fields, loop="wrap", cycle_offset_position=True)], fields, 0.05, window=3)
    assert library.starts.tolist() == [4]
    np.testing.assert_allclose(library.frames[:, 0], [0.0, 0.5, 1.0, 0.5, 0.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(library.frames[:, 1], [0.0, 0.5, 1.0, 1.5, 2.0, 2.5], atol=1e-6)
    still = MotionLibrary([clip(frames, fields, loop="wrap")], fields, 0.05, window=3)
    np.testing.assert_allclose(still.frames[:, 1], [0.0, 0.5, 1.0, 1.5, 0.0, 0.5], atol=1e-6)
    clamped = MotionLibrary([clip(frames, fields)], fields, 0.05, window=3)
    assert (clamped.starts.tolist(), len(clamped.frames)) == ([3], 5)


def test_a_period_that_is_no_multiple_of_the_grid_stays_periodic() -> None:
    t = np.linspace(0.0, 1.0, 101)
    walk = clip(np.sin(2 * np.pi * t)[:, None], frame_time=0.01, loop="wrap")
    library = MotionLibrary([walk], ("a_dof_pos",), 0.03, window=10)
    times = np.arange(len(library.frames)) * 0.03
    np.testing.assert_allclose(library.frames[:, 0], np.sin(2 * np.pi * times), atol=6e-4)


def test_a_cycle_that_turns_does_not_continue_where_heading_matters() -> None:
    fields = tuple(f"root_rot_{axis}" for axis in "wxyz")
    turn = clip([[1, 0, 0, 0], [HALF, 0, 0, HALF]], fields, loop="wrap", cycle_offset_rotation=True)
    assert MotionLibrary([turn], fields, 0.1).starts.tolist() == [1]
    both = clip([[0.0], [1.0]], loop="wrap", cycle_offset_rotation=True)
    assert len(MotionLibrary([both], ("a_dof_pos",), 0.05).frames) == 3  # two grid times and one across the end


def test_resampling_error_and_unit_quaternions() -> None:
    """60 frames a second to 50: joints within 1e-3 rad, quaternions within 1e-6 of unit length."""
    t = np.arange(601) / 60.0
    angle = 0.5 * np.sin(2 * np.pi * t)
    yaw = 1.3 * t
    frames = np.stack((angle, np.cos(yaw / 2), 0 * t, 0 * t, np.sin(yaw / 2)), axis=1)
    fields = ("knee_dof_pos", *(f"root_rot_{axis}" for axis in "wxyz"))
    library = MotionLibrary([clip(frames, fields, 1 / 60)], (*fields, "knee_dof_vel"), 0.02)
    times = np.arange(len(library.frames)) * 0.02
    found = library.frames.double().numpy()
    assert np.abs(found[:, 0] - 0.5 * np.sin(2 * np.pi * times)).max() < 1e-3
    assert np.abs(found[:, 5] - np.pi * np.cos(2 * np.pi * times)).max() < 0.02 * np.pi
    assert np.abs(np.linalg.norm(found[:, 1:5], axis=1) - 1.0).max() < 1e-6
    yaw_found = np.unwrap(2 * np.arctan2(found[:, 4], found[:, 1]))
    assert np.abs(yaw_found - 1.3 * times).max() < 1e-3


# ----------------------------------------------------------------------------------------------------- sampling


def test_windows_stay_in_their_clip_and_follow_the_weights() -> None:
    one = clip(np.arange(5.0)[:, None], weight=1.0)
    two = clip(100 + np.arange(3.0)[:, None], weight=3.0)
    never = clip(1000 + np.arange(3.0)[:, None], weight=0.0)
    library = MotionLibrary([one, two, never], ("a_dof_pos",), 0.1, window=3)
    windows = library.sample(8000, torch.Generator().manual_seed(0)).squeeze(-1)
    assert torch.equal(windows.diff(dim=1), torch.ones(8000, 2))
    assert windows.max() < 103
    share = (windows[:, 0] >= 100).float().mean()
    assert abs(share - 0.75) < 0.02
    counts = torch.bincount(windows[windows[:, 0] < 100, 0].long())
    assert len(counts) == 3  # starts 0, 1, 2
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.05


def test_reference_states_name_their_place() -> None:
    library = MotionLibrary([clip([[0.0], [1.0], [2.0]]), clip([[5.0], [6.0]])], ("a_dof_pos",), 0.1)
    state = library.sample_states(100, torch.Generator().manual_seed(0))
    expected = torch.where(state.clip == 0, state.frame, 5 + state.frame).float()
    assert torch.equal(state.values[:, 0], expected)
    assert set(state.clip.tolist()) == {0, 1}


def test_the_same_seed_draws_the_same() -> None:
    library = MotionLibrary([clip(np.arange(50.0)[:, None])], ("a_dof_pos",), 0.1)
    first, second = (library.sample(20, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_config_selects_frames_and_weights(tmp_path: Path) -> None:
    path = str(write(tmp_path / "w.json", {"a": header(), "b": header(Frames=[[7.0, 7.0], [8.0, 8.0], [9.0, 9.0]])}))
    library = MotionLibrary.load(MotionsConfig(files=(path,), weights={"a": 0.0}, frame_begin=1), ("a_dof_pos",), 0.02)
    assert library.sample(10, GENERATOR).unique().tolist() == [8.0, 9.0]
    assert library.starts.tolist() == [1, 1]  # a part of a cycle does not wrap
    with pytest.raises(ValueError, match="names an unknown clip 'aa'; did you mean a"):
        MotionLibrary.load(MotionsConfig(files=(path,), weights={"aa": 0.0}), ("a_dof_pos",), 0.02)
    with pytest.raises(ValueError, match="leave 0"):
        MotionLibrary.load(MotionsConfig(files=(path,), frame_begin=5), ("a_dof_pos",), 0.02)
    with pytest.raises(ValueError, match="at least 2 frames"):
        MotionsConfig(frame_begin=4, frame_end=5)


def test_bad_libraries_are_refused() -> None:
    motion = clip([[0.0], [1.0]])
    with pytest.raises(ValueError, match="at least one clip"):
        MotionLibrary([], ("a_dof_pos",), 0.1)
    with pytest.raises(ValueError, match="each feature field once"):
        MotionLibrary([motion], ("a_dof_pos", "a_dof_pos"), 0.1)
    with pytest.raises(ValueError, match="frame_time must be positive"):
        MotionLibrary([motion], ("a_dof_pos",), 0.0)
    with pytest.raises(ValueError, match="shorter than the window of 3 frames"):
        MotionLibrary([motion], ("a_dof_pos",), 0.1, window=3)
    with pytest.raises(ValueError, match="did you mean a_dof_pos"):
        MotionLibrary([motion], ("a_dof_pso",), 0.1)
    with pytest.raises(ValueError, match="all clips are 0"):
        MotionLibrary([clip([[0.0], [1.0]], weight=0.0)], ("a_dof_pos",), 0.1)


def test_a_grid_cannot_blow_a_clip_up() -> None:
    with pytest.raises(ValueError, match=r"a grid of 0.02 s over the clips .* claims .* GiB"):
        MotionLibrary([clip(np.zeros((2, 1)), frame_time=1e6)], ("a_dof_pos",), 0.02)
    with pytest.raises(ValueError, match="'a_dof_vel' is beyond float32 on the grid"):
        MotionLibrary([clip([[0.0], [1e30], [0.0]], frame_time=1e-12)], ("a_dof_vel",), 1e-12)


# ------------------------------------------------------------------------------------------------------- mirror

RULE = MirrorRule(swap={"left": "right"}, flip=("hip_roll",))


def test_the_mirror_by_hand() -> None:
    fields = ("left_hip_roll_dof_pos", "right_hip_roll_dof_pos", "left_knee_dof_vel", "right_knee_dof_vel")
    columns, signs = mirror_table(fields, RULE)
    assert columns.tolist() == [1, 0, 3, 2]
    assert signs.tolist() == [-1, -1, 1, 1]
    fields = ("root_vel_x_b", "root_vel_y_b", "root_ang_vel_x_b", "root_ang_vel_y_b", "root_ang_vel_z_b")
    assert mirror_table(fields, RULE)[1].tolist() == [1, -1, -1, 1, -1]
    assert mirror_table([f"root_rot_{axis}" for axis in "wxyz"], RULE)[1].tolist() == [1, -1, 1, -1]
    with pytest.raises(ValueError, match="'right_knee_dof_pos', missing among"):
        mirror_table(("left_knee_dof_pos",), RULE)
    with pytest.raises(ValueError, match="does not tell its mirror image"):
        mirror_table(("policy[0]",), RULE)


def test_mirrored_clips_are_drawn_as_often_as_their_originals(tmp_path: Path) -> None:
    fields = ("left_hip_roll_dof_pos", "right_hip_roll_dof_pos")
    motion = clip([[1.0, 2.0], [3.0, 4.0]], fields)
    path = str(write_motions(tmp_path / "m.npz", [motion]))
    library = MotionLibrary.load(MotionsConfig(files=(path,), mirror=RULE), fields, 0.1)
    windows = library.sample(1000, torch.Generator().manual_seed(0))
    original, image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[-2.0, -1.0], [-4.0, -3.0]])
    is_image = (windows == image).all(-1).all(-1)
    assert ((windows == original).all(-1).all(-1) | is_image).all()
    assert abs(is_image.float().mean() - 0.5) < 0.05
    assert library.names == ("c", "c, mirrored")


# ------------------------------------------------------------------------------------------------------- report


def test_the_report_names_fields_ranges_and_gaps(tmp_path: Path) -> None:
    values = np.sin(np.linspace(0, 1, 200))
    values[120:] += 2.0
    motion = clip(np.stack((values, 0 * values), axis=1), ("a_dof_pos", "b_dof_pos"), loop="wrap")
    inside, seam = find_gaps(motion)
    assert (inside.frame, seam.frame) == (120, 0)
    assert inside.change == pytest.approx(2.005, abs=1e-3)
    text = describe([motion])
    assert "200 frames of 0.1 s = 19.90 s, loop wrap, weight 1" in text
    assert "b_dof_pos   0.0000 ..  0.0000" in text
    assert "a_dof_pos: frame 119 to 120 changes by 2.004" in text
    assert not find_gaps(clip(np.sin(np.linspace(0, 2 * np.pi, 200))[:, None], loop="wrap"))
    picture = draw_clips([motion], tmp_path / "m.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
