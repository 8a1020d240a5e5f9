"""Arrow and Parquet: LeRobot's datasets as it writes them, trajectories of `imitation`, Minari's Arrow storage."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from understudy.data.demonstrations.demonstrations import Demonstrations
from understudy.data.demonstrations.read import open_recording

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

LENGTHS = (3, 1, 4)
LAST = np.cumsum(LENGTHS) - 1
STEPS = sum(LENGTHS)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
RNG = np.random.default_rng(0)
STATE, ACTED = RNG.normal(size=(STEPS, 3)).astype(np.float32), RNG.uniform(-1, 1, (STEPS, 2)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (STEPS, 4, 6, 3), dtype=np.uint8)
EPISODE = np.repeat(np.arange(3), LENGTHS)
SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (3,), np.float32)})


def load(source: Any, space: spaces.Dict = SPACE, **options: Any) -> Demonstrations:
    return Demonstrations.load(source, **{"observation_space": space, "action_space": ACTIONS, **options})


def check(demos: Demonstrations, terminated: Any = LAST) -> None:
    """Every number is the one that was written; final observations repeat the last one."""
    assert demos.lengths.tolist() == list(LENGTHS)
    drawn = demos.gather(demos.rows)
    following = np.concatenate((STATE[1:], STATE[-1:]))
    following[LAST] = STATE[LAST]
    np.testing.assert_array_equal(drawn["obs", "policy"], STATE)
    np.testing.assert_array_equal(drawn["next_obs", "policy"], following)
    np.testing.assert_array_equal(drawn["executed_action"], ACTED)
    assert np.flatnonzero(drawn["terminated"]).tolist() == list(terminated)


# ----------------------------------------------------------------------------------------------------- LeRobot


def rows(values: np.ndarray) -> Any:
    """A column as `datasets` writes it: numbers, or lists of a fixed size."""
    flat = pa.array(values.reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def frames(**changes: Any) -> dict[str, Any]:
    columns = {
        "observation.state": rows(STATE),
        "observation.image": pa.array([{"bytes": png(image), "path": None} for image in IMAGES]),
        "action": rows(ACTED),
        "next.reward": rows(np.arange(STEPS, dtype=np.float32)),
        "next.done": pa.array(np.isin(np.arange(STEPS), LAST)),
        "next.success": pa.array([False, False, True, False, False, False, False, True]),
        "timestamp": rows(np.concatenate([np.arange(n) / 10 for n in LENGTHS]).astype(np.float32)),
        "frame_index": rows(np.concatenate([np.arange(n) for n in LENGTHS])),
        "episode_index": rows(EPISODE),
        "index": rows(np.arange(STEPS)),
        "task_index": rows(np.zeros(STEPS, np.int64)),
    }
    return {name: column for name, column in (columns | changes).items() if column is not None}


def lerobot(folder: Path, version: str = "v3.0", told: Any = (), features: Any = (), **changes: Any) -> Path:
    """`DatasetWriter.save_episode`: v2 one file for each episode, v3 several episodes in a file (here two and one)."""
    table = pa.table(frames(**changes))
    shapes = {
        "observation.state": ("float32", [3]),
        "observation.image": ("image", [4, 6, 3]),
        "action": ("float32", [2]),
    }
    shapes |= {name: ("float32", [1]) for name in ("next.reward",)} | {"next.done": ("bool", [1])} | dict(features)
    info = {
        "codebase_version": version, "robot_type": "so100", "total_episodes": 3, "total_frames": STEPS, "fps": 10,
        "chunks_size": 1000, "splits": {"train": "0:2", "valid": "2:3"},
        "features": {name: {"dtype": kind, "shape": shape, "names": None} for name, (kind, shape) in shapes.items()},
    } | dict(told)  # fmt: skip
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=4))
    (folder / "data" / "chunk-000").mkdir(parents=True)
    first = np.append(0, LAST + 1)
    pieces = pairwise(first) if version < "v3" else ((0, 4), (4, STEPS))
    for number, (start, end) in enumerate(pieces):
        name = f"episode_{number:06d}" if version < "v3" else f"file-{number:03d}"
        group = 2 if version >= "v3" else None  # several row groups, whose borders are not the episodes'
        pq.write_table(table[start:end], folder / "data" / "chunk-000" / f"{name}.parquet", row_group_size=group)
    return folder


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_columns_episodes_splits_and_images(tmp_path: Path, caplog: Any, version: str) -> None:
    folder = lerobot(tmp_path / "d", version)
    demos = load(folder, file_observations=("state",))
    check(demos)
    assert demos.returns.tolist() == [3.0, 3.0, 22.0]
    assert "has no final observations" in caplog.text
    assert "does not tell ends of the task from time limits (next.done)" in caplog.text
    assert load(folder, file_observations=("state",), subset="valid").lengths.tolist() == [4]
    assert load(folder, file_observations=("state",), only_success=True).lengths.tolist() == [3, 4]
    seen = load(folder, spaces.Dict({"policy": spaces.Dict({"image": spaces.Box(0, 255, (4, 6, 3), np.uint8)})}))
    kept = np.delete(seen.observations["policy", "image"].numpy(), LAST + 1 + np.arange(3), axis=0)
    np.testing.assert_array_equal(kept, IMAGES)
    with open_recording(folder) as recording:
        assert (recording.kind, recording.metadata) == (f"LeRobot {version}", {"fps": 10.0, "robot": "so100"})


def test_a_lone_state_needs_no_name_and_matrices_keep_their_shape(tmp_path: Path) -> None:
    lone = dict.fromkeys(("observation.image", "next.done", "next.reward", "next.success"))
    told = {
        "features": {name: {"dtype": "float32", "shape": [n]} for name, n in (("observation.state", 3), ("action", 2))}
    }
    check(load(lerobot(tmp_path / "d", told=told, **lone)), terminated=())
    matrix = pa.array(STATE[:, :, None].repeat(2, 2).tolist(), type=pa.list_(pa.list_(pa.float32())))  # an Array2D
    folder = lerobot(
        tmp_path / "e", features={"observation.tactile": ("float32", [3, 2])}, **{"observation.tactile": matrix}
    )
    space = spaces.Dict({"policy": spaces.Dict({"tactile": spaces.Box(-np.inf, np.inf, (3, 2), np.float32)})})
    np.testing.assert_array_equal(load(folder, space).observations["policy", "tactile"][0, :, 1], STATE[0])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobots_videos_are_cut_into_episodes(tmp_path: Path, version: str) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder = lerobot(
        tmp_path / "d",
        version,
        features={"observation.images.top": ("video", [32, 48, 3])},
        **{"observation.image": None},
    )
    info = json.loads((folder / "meta" / "info.json").read_text())
    del info["features"]["observation.image"]
    (folder / "meta" / "info.json").write_text(json.dumps(info))

    def film(path: Path, grey: range) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ffmpeg.write_frames(str(path), (48, 32), fps=10, macro_block_size=1)
        writer.send(None)
        for shade in grey:
            writer.send(np.full((32, 48, 3), 25 * shade, np.uint8))
        writer.close()

    videos = folder / "videos"
    if version < "v3":
        for k, (end, n) in enumerate(zip(LAST + 1, LENGTHS)):
            film(videos / "chunk-000" / "observation.images.top" / f"episode_{k:06d}.mp4", range(end - n, end))
    else:
        film(videos / "observation.images.top" / "chunk-000" / "file-000.mp4", range(STEPS))
        (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        key = "videos/observation.images.top"
        places = {
            "episode_index": [0, 1, 2], f"{key}/chunk_index": [0] * 3, f"{key}/file_index": [0] * 3,
            f"{key}/from_timestamp": [0.0, 0.3, 0.4], f"{key}/to_timestamp": [0.3, 0.4, 0.8],
        }  # fmt: skip
        pq.write_table(pa.table(places), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    space = spaces.Dict({"policy": spaces.Box(0, 255, (32, 48, 3), np.uint8)})
    demos = load(folder, space, groups={"policy": "images.top"})
    shown = np.delete(demos.observations["policy"].float().mean((1, 2, 3)).numpy(), LAST + 1 + np.arange(3), axis=0)
    np.testing.assert_allclose(shown, 25 * np.arange(STEPS), atol=3)
    small = spaces.Dict({"policy": spaces.Box(0, 255, (16, 48, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"has shape \(32, 48, 3\), the environment's has \(16, 48, 3\)"):
        load(folder, small, groups={"policy": "images.top"})
    for file in videos.rglob("*.mp4"):
        file.unlink()
    with pytest.raises(ValueError, match=r"d has no videos/.*mp4: download its videos, too"):
        load(folder, space, groups={"policy": "images.top"})


HOLE = rows(np.array([0, 1, 2, 0, 0, 1, 3, 4]))


WIDE = rows(np.concatenate((ACTED, ACTED), 1))
SHORT, GAP = (
    pa.array([[1.0], *ACTED[1:].tolist()]),
    pa.array([None, *ACTED[1:].tolist()], type=pa.list_(pa.float32(), 2)),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"told": {"total_episodes": 4}}, "should hold 4 episodes one after another, its files hold 3 in 3 pieces"),
        ({"episode_index": rows(np.array([0, 0, 0, 1, 2, 2, 1, 1]))}, "its files hold 3 in 4 pieces"),
        ({"told": {"codebase_version": "v1.6"}}, "is of LeRobot's version v1.6: v2 and v3 are read"),
        ({"told": {"fps": "fast"}}, "meta/info.json is damaged"),
        ({"features": {"observation.force": ("float32", [6])}}, "has no observation.force, which its meta/info.json"),
        ({"features": {"action": ("float32", [4])}}, r"action has shape \(2,\), meta/info.json says \(4,\)"),
        ({"action": None}, "has no action: it holds observation.state"),
        ({"action": rows(np.full_like(ACTED, np.nan))}, r"trajectory 0, step 0: actions is .*not finite"),
        ({"action": WIDE, "features": {"action": ("float32", [4])}}, r"actions has shape \(3, 4\), expected \(3, 2\)"),
        ({"action": SHORT}, "action: rows are missing or differ in size"),
        ({"action": GAP}, "action: rows are missing"),
        ({"next.reward": pa.array([None, *range(1, STEPS)])}, "next.reward holds gaps: store numbers"),
    ],
)
def test_lerobot_datasets_that_are_not_what_they_should_be(tmp_path: Path, changes: Any, message: str) -> None:
    folder = lerobot(tmp_path / "d", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, file_observations=("state",))
    assert str(folder) in str(caught.value)


def test_lerobot_missing_frames_are_said_and_cut_files_and_bombs_refused(
    tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    load(lerobot(tmp_path / "hole", frame_index=HOLE), file_observations=("state",))
    assert "lacks frames in 1 episodes (the first: episode 2), which jump there" in caplog.text
    cut = lerobot(tmp_path / "cut")
    file = next((cut / "data").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut is damaged or of another format"):
        load(cut, file_observations=("state",))
    bomb = lerobot(tmp_path / "bomb")
    for file in (bomb / "data").rglob("*.parquet"):
        many = {name: rows(np.zeros((400_000, 2) if name == "action" else 400_000, np.int64)) for name in frames()}
        pq.write_table(pa.table(many), file)
    monkeypatch.setenv("UNDERSTUDY_MAX_UNPACKED_GIB", "0.0001")
    with pytest.raises(ValueError, match=r"claims 0.0 GiB in [\d,]+ bytes, so it is damaged"):
        load(bomb, file_observations=("state",))
    (tmp_path / "empty" / "meta").mkdir(parents=True)
    (tmp_path / "empty" / "meta" / "info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"empty: meta/info.json is damaged"):
        load(tmp_path / "empty")


# --------------------------------------------------------------------------------------------------- imitation


def imitation(folder: Path, **changes: Any) -> Path:
    """`imitation.data.serialize.save`: a Hugging Face dataset on disk, each trajectory a row of nested lists."""
    first = np.append(0, LAST + 1)
    pieces = list(pairwise(first))
    columns = {
        "obs": pa.array(
            [[*STATE[a:b].tolist(), STATE[b - 1].tolist()] for a, b in pieces], pa.list_(pa.list_(pa.float32()))
        ),
        "acts": pa.array([ACTED[a:b].tolist() for a, b in pieces], pa.list_(pa.list_(pa.float32()))),
        "infos": pa.array([["{}"] * (b - a) for a, b in pieces]),
        "terminal": pa.array([True, False, True]),
        "rews": pa.array([[1.0] * (b - a) for a, b in pieces]),
    }
    table = pa.table({name: column for name, column in (columns | changes).items() if column is not None})
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    for number, part in enumerate((table[:2], table[2:])):
        with pa.ipc.new_stream(folder / f"data-{number:05d}-of-00002.arrow", table.schema) as writer:
            writer.write_table(part)
    return folder


def test_imitations_trajectories(tmp_path: Path) -> None:
    demos = load(imitation(tmp_path / "d"))
    check(demos, terminated=LAST[[0, 2]])
    assert demos.returns.tolist() == [3.0, 1.0, 4.0]
    assert bool(load(imitation(tmp_path / "e", rews=None)).returns.isnan().all())
    with pytest.raises(ValueError, match=r"f has no acts: it holds obs, terminal"):
        load(imitation(tmp_path / "f", acts=None, rews=None))


def test_what_imitation_itself_writes(tmp_path: Path) -> None:
    serialize = pytest.importorskip("imitation.data.serialize")
    types = pytest.importorskip("imitation.data.types")
    first = np.append(0, LAST + 1)
    written = [
        types.TrajectoryWithRew(
            obs=np.concatenate((STATE[a:b], STATE[b - 1 : b])), acts=ACTED[a:b], rews=np.ones(b - a), infos=None,
            terminal=k != 1,
        )
        for k, (a, b) in enumerate(pairwise(first))
    ]  # fmt: skip
    serialize.save(tmp_path / "d", written)
    check(load(tmp_path / "d"), terminated=LAST[[0, 2]])


# ------------------------------------------------------------------------------------------------------ Minari


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.filterwarnings("ignore")
def test_minaris_arrow_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    first = np.append(0, LAST + 1)
    space = spaces.Dict(
        {"pose": spaces.Box(-np.inf, np.inf, (3, 1), np.float32), "camera": spaces.Box(0, 255, (32, 48, 3), np.uint8)}
    )
    buffers = [
        EpisodeBuffer(
            id=k,
            observations={
                "pose": np.concatenate((STATE[a:b], STATE[b - 1 : b]))[:, :, None],
                "camera": np.full((b - a + 1, 32, 48, 3), 60 * k, np.uint8),
            },
            actions=ACTED[a:b],
            rewards=np.ones(b - a),
            terminations=np.arange(a, b) == (b - 1 if k != 1 else -1),
            truncations=np.arange(a, b) == (b - 1 if k == 1 else -1),
        )
        for k, (a, b) in enumerate(pairwise(first))
    ]
    kinds = {"observation_space": space, "action_space": ACTIONS}
    minari.create_dataset_from_buffers("line/expert-v0", buffers, data_format=kind, **kinds)
    demos = load("line/expert-v0", spaces.Dict({"policy": space}))
    drawn = demos.gather(demos.rows)
    np.testing.assert_array_equal(drawn["obs", "policy", "pose"][..., 0], STATE)
    np.testing.assert_array_equal(drawn["executed_action"], ACTED)
    np.testing.assert_allclose(drawn["obs", "policy", "camera"].float().mean((1, 2, 3)), 60 * EPISODE, atol=2)
    assert np.flatnonzero(drawn["terminated"]).tolist() == [2, 7]
    folder = tmp_path / "line" / "expert-v0" / "data"
    file = folder / "1" / f"part-0.{kind}"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged or of another format"):
        load("line/expert-v0", spaces.Dict({"policy": space}))
    file.unlink()
    with pytest.raises(ValueError, match="should hold 3 episodes, numbered from 0 on; it has 2"):
        load("line/expert-v0", spaces.Dict({"policy": space}))
