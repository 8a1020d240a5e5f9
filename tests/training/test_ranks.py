"""Several ranks train as one: two of N environments against one of 2N, run folders, deaths."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fresh import Fresh
from tests.parts import contract
from tests.training.ranks import CASES, STEPS, evaluated, outcome, settings, steer

from understudy.core import ranks
from understudy.core.randomness import mix
from understudy.ppo.metrics import over_ranks
from understudy.runs.checkpoint import load_checkpoint, step_checkpoints
from understudy.runs.folder import CHECKPOINT_KIND
from understudy.runs.metrics import read_metrics
from understudy.tasks.point_mass import PointMass
from understudy.tools.record import record_episodes
from understudy.training.loggers import Logger
from understudy.training.loop import resume, train


@pytest.fixture(scope="module")
def folder(fresh: Fresh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they have after all cases and trainings, and those that followed them."""
    place = tmp_path_factory.mktemp("ranks")
    shutil.copy(contract.demonstrations(), place / "expert.npz")
    train(settings(place, "alone", total_steps=2 * STEPS))
    code = f"""
import torch.multiprocessing as m
from tests.training import ranks
codes = []
for function in (ranks.prove, ranks.be_killed, ranks.start_again, ranks.raise_in_share):
    both = m.start_processes(function, args=({str(place)!r},), nprocs=2, start_method="fork", join=False)
    codes.append([process.join() or process.exitcode for process in both.processes])
assert codes == [[0, 0], [0, {-signal.SIGKILL}], [0, 0], [0, 0]], codes
"""
    fresh("-c", code, cwd=Path(__file__).parents[2])
    return place


@pytest.fixture(scope="module")
def proven(folder: Path) -> list[dict[str, Any]]:
    """What either rank has after some iterations of every case."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    """What the trainings told either rank."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_does_with_all_their_environments(case: str, proven: list[dict[str, Any]]) -> None:
    first, second = (found[case] for found in proven)
    alone = outcome(case, 0, 1)
    assert first.keys() == alone.keys()
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        error = torch.linalg.vector_norm((first[name] - expected).double())
        limit = 1e-5 if case.endswith("float32") else 1e-10
        assert error <= limit * torch.linalg.vector_norm(expected.double()), (name, error)


def last(run: Path) -> Any:
    return load_checkpoint(step_checkpoints(run / "checkpoints")[-1], CHECKPOINT_KIND)


def same(a: Any, b: Any) -> bool:
    """Nested states, equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or (a != a and b != b)


def test_steps_are_counted_over_all_ranks_and_rank_0_writes(folder: Path, told: list[dict[str, Any]]) -> None:
    assert [found["steps"] for found in told] == [4 * STEPS] * 2
    rows = read_metrics(folder / "straight" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]
    assert "evaluation/return" in rows[-1]
    assert len(json.loads((folder / "straight" / "run.json").read_text())) == 1


def test_ranks_draw_for_themselves(folder: Path) -> None:
    first = last(folder / "straight")
    (second,) = first["ranks"]
    assert second.keys() <= first["state"].keys()
    assert "policy" not in second
    assert not same(second["rng"]["own"], first["state"]["rng"]["own"])
    assert not same(second["env"], first["state"]["env"])
    gail = first["state"]["parts"]["gail"]
    assert not torch.equal(second["parts"]["gail"]["generator"], gail["generator"])
    rows, network = "discriminator.replay.rows", "discriminator.network.mlp.layers.0.weight"
    assert not torch.equal(second["parts"]["gail"]["modules"][rows], gail["modules"][rows])
    assert torch.equal(second["parts"]["gail"]["modules"][network], gail["modules"][network])


def test_resumes_bit_for_bit(folder: Path, told: list[dict[str, Any]]) -> None:
    assert [found["again"] for found in told] == [[4 * STEPS, True]] * 2
    straight, again = last(folder / "straight"), last(folder / "again")
    assert same(again["state"], straight["state"])
    assert same(again["ranks"], straight["ranks"])


def test_resumes_with_another_number_of_ranks(folder: Path, told: list[dict[str, Any]], capfd: Any) -> None:
    assert told[0]["grown"] == told[1]["grown"]
    assert told[0]["grown"][0] == 4 * STEPS
    notes: list[str] = []

    class Notes(Logger):
        def note(self, text: str) -> None:
            notes.append(text)

    before = last(folder / "straight")["state"]["policy"]
    shutil.copytree(folder / "straight", folder / "shrunk")
    run = resume(folder / "shrunk", total_steps=5 * STEPS, loggers=[Notes()])
    assert any("is of 2 processes, now there are 1" in note for note in notes)
    after = last(run.path)
    assert "ranks" not in after
    change = max(
        float((after["state"]["policy"][name] - x).abs().max()) for name, x in before.items() if "layers" in name
    )
    assert 0.0 < change < 0.1


def test_what_ends_one_rank_politely_ends_all(folder: Path, told: list[dict[str, Any]]) -> None:
    assert [found["signalled"] for found in told] == [[2 * STEPS, "SIGTERM"]] * 2
    assert last(folder / "signalled")["env_steps"] == 2 * STEPS
    assert [found["stops"] for found in told] == [[STEPS, "ppo/kl<=100"]] * 2


def test_an_evaluation_is_shared_out(told: list[dict[str, Any]]) -> None:
    alone = evaluated(PointMass(2))
    first, second = (found["shared"] for found in told)
    assert second == {"copies": None, "few": None, "own": None}
    assert len(set(alone["copies"])) > 1
    assert first["copies"] == alone["copies"]  # the same copies, seeds and episodes
    assert first["few"] == alone["few"]
    assert len(first["own"]) == 5
    assert first["own"][:2] == alone["own"][:2]  # rank 0 draws as a process alone; it plays three of the five
    assert not set(first["own"][3:]) & set(alone["own"])


def test_a_rank_that_raises_in_its_share_ends_all(folder: Path) -> None:
    assert "the lights went out" in (folder / "raised1.txt").read_text()
    assert (folder / "raised0.txt").read_text().startswith("another rank ended, or cannot be reached")
    assert last(folder / "raised")["env_steps"] == STEPS  # written before the evaluation


def test_a_round_of_dagger_is_shared_out(folder: Path, told: list[dict[str, Any]]) -> None:
    assert [found["asking"] for found in told] == [4 * STEPS] * 2
    rounds = sorted((folder / "asking" / "demonstrations").iterdir())
    assert [file.name for file in rounds] == ["round_000.npz", "round_001.npz"]
    seed = mix(0, "dagger/0") % 2**31
    shares = [record_episodes(PointMass(4), steer, 1, seed + 4 * rank, min_steps=32) for rank in range(2)]
    with np.load(rounds[0]) as found:
        assert found["lengths"].tolist() == [episode.length for share in shares for episode in share]
        assert found["lengths"].sum() >= 64
        np.testing.assert_array_equal(found["actions"], np.concatenate([e.actions for s in shares for e in s]))


def test_scripts_of_rsl_rl_train_together(folder: Path, told: list[dict[str, Any]]) -> None:
    assert told[0]["runner"] == told[1]["runner"]
    assert told[0]["runner"][0] == 2 * 4 * 8 * 3
    assert (folder / "runner0" / "model_2.pt").exists()
    assert not (folder / "runner1").exists()


def test_ranks_that_differ_are_refused(told: list[dict[str, Any]]) -> None:
    for found in told:
        assert "the configuration of rank 1 differs from rank 0's: 'seed: 1' and 'seed: 0'" in found["other"]
        assert "'env= is given' and 'env= is missing': start all processes with the same command" in found["object"]


def test_a_killed_rank_costs_an_interval(folder: Path) -> None:
    told = (folder / "killed.txt").read_text()
    assert told.startswith("another rank ended, or cannot be reached: its own error says why")
    assert f"This was after {4 * STEPS} steps in PointMass. Continue from the last checkpoint" in told
    assert [row["step"] for row in read_metrics(folder / "killed" / "metrics.jsonl")] == [
        STEPS * i for i in range(1, 5)
    ]
    assert len(json.loads((folder / "killed" / "run.json").read_text())) == 2
    straight, again = last(folder / "straight"), last(folder / "killed")
    assert same(again["state"], straight["state"])
    assert same(again["ranks"], straight["ranks"])


def test_metrics_are_means_sums_and_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    own = {
        "episode/return": math.nan,
        "episode/finished": 1.0,
        "ppo/ratio_min": 0.8,
        "ppo/ratio_max": 1.2,
        "ppo/kl": 0.1,
    }
    other = {
        "episode/return": 5.0,
        "episode/finished": 2.0,
        "ppo/ratio_min": 0.9,
        "ppo/ratio_max": 1.3,
        "env/speed": 2.0,
    }
    monkeypatch.setattr(ranks, "gather", lambda metrics: [metrics, other])
    assert over_ranks(own) == {
        **{"episode/return": 5.0, "episode/finished": 3.0, "ppo/ratio_min": 0.8, "ppo/ratio_max": 1.3},
        **{"ppo/kl": 0.1, "env/speed": 2.0},
    }
    assert math.isnan(over_ranks({"episode/length": math.nan})["episode/length"])


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks.own_device(cuda) == torch.device("cuda:1")
    assert ranks.own_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert ranks.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="device cuda:0 would be shared by 2 processes: set device to cuda"):
        ranks.own_device(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="which has 1 GPUs: use --nproc-per-node 1, or --device cpu"):
        ranks.own_device(cuda)


def test_restarts_need_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match="torchrun --max-restarts needs --run-dir"):
        train(dataclasses.replace(settings(tmp_path, "run"), run_dir=None))
