"""The benchmark harness: tables, parity of configurations, and that the counted work is the asked work. No timing."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


class Loader:
    """Imports benchmark modules, which live on the path only while a benchmark runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, folder: str, module: str) -> ModuleType:
        for path in (BENCHMARKS.parent / "examples", BENCHMARKS, BENCHMARKS / folder):
            self.monkeypatch.syspath_prepend(str(path))
        return importlib.import_module(module)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loader]:
    before = set(sys.modules)
    yield Loader(monkeypatch)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(BENCHMARKS):
            del sys.modules[name]  # "run" means three different files


def line(peer: str, round_number: int, wall: float, cpu: float = 1.0, check: float | None = None) -> dict[str, Any]:
    return {
        "peer": peer, "version": "1.0", "round": round_number, "wall_s": wall, "collect_s": wall / 4,
        "update_s": 3 * wall / 4, "cpu_s": cpu, "warmup_s": 0.5, "check_before": 1.0, "check_return": check,
    }  # fmt: skip


def lines() -> list[dict[str, Any]]:
    ours = [line("understudy", n, wall, 2.0, 7.0 if n == 0 else None) for n, wall in enumerate((2.0, 4.0, 3.0))]
    variant = [line("understudy-eager", n, 2.5) for n in range(3)]
    fast = [line("fast", n, wall, 3.0) for n, wall in enumerate((6.0, 8.0, 12.0))]
    slow = [line("slow", n, 30.0) for n in range(2)]  # failed in the last round
    return [*ours, *variant, *fast, *slow]


# ---------------------------------------------------------------------- speed: tables


def test_ratios_are_paired_by_round(load: Loader) -> None:
    tables = load("speed", "tables")
    assert tables.paired_ratios(lines()[:3], lines()[6:9]) == [3.0, 2.0, 4.0]
    assert tables.paired_ratios(lines()[:3], lines()[9:]) == [15.0, 7.5]


def test_summary_takes_medians_and_sorts_by_wall_time(load: Loader) -> None:
    tables = load("speed", "tables")
    rows = tables.summarize(lines(), "understudy")
    assert [row.peer for row in rows] == ["understudy-eager", "understudy", "fast", "slow"]
    fast = rows[2]
    assert (fast.wall_s, fast.collect_s, fast.update_s) == (8.0, 2.0, 6.0)
    assert (fast.ratio, fast.ratio_low, fast.ratio_high) == (3.0, 2.0, 4.0)  # not 8 / 3, the ratio of medians
    assert fast.cpu_ratio == 1.5
    assert rows[1].check == (1.0, 7.0)
    assert fast.check is None
    assert rows[3].runs == 2


def test_headline_is_the_fastest_peer_and_never_our_own_variant(load: Loader) -> None:
    tables = load("speed", "tables")
    rows = tables.summarize(lines(), "understudy")
    assert tables.fastest_peer(rows, "understudy").peer == "fast"
    text = tables.markdown(rows, {"broken": "could not be installed"}, "understudy")
    assert "Fastest peer / ours: **3.00** (fast; median of 3 paired runs)" in text
    assert "| broken | - | not run: could not be installed |" in text
    cells = {len(row.split("|")) for row in text.splitlines() if row.startswith("|")}
    assert cells == {11}, "a row of the table has another number of cells"


# ---------------------------------------------------------------------- speed: workloads


def test_workloads_are_those_of_the_comparison(load: Loader) -> None:
    w = load("speed", "workloads")
    w1, w2, w3 = (w.WORKLOADS[name] for name in ("W1", "W2", "W3"))
    assert (w1.total_steps, w1.minibatch_size, w1.gradient_steps) == (100_352, 256, 1568)
    assert (w2.total_steps, w2.minibatch_size, w2.gradient_steps) == (40_960, 64, 6400)
    assert (w3.total_steps, w3.minibatch_size, w3.gradient_steps) == (122_880, 6144, 100)
    bc, gail = w.WORKLOADS["W4-BC"], w.WORKLOADS["W4-GAIL"]
    assert (bc.minibatch_size, bc.gradient_steps, bc.episodes * w.EPISODE_LENGTH) == (256, 1950, 50_000)
    assert (gail.steps_per_iteration, gail.minibatch_size, gail.gradient_steps) == (16_384, 1024, 2 * (160 + 16))


def test_every_peer_has_a_module_and_pinned_requirements(load: Loader) -> None:
    w = load("speed", "workloads")
    for name, peer in w.PEERS.items():
        for method in peer.methods:
            assert (BENCHMARKS / "speed" / "peers" / f"{w.module_of(name, method)}.py").is_file()
        assert all("==" in requirement for requirement in (*peer.requirements, *peer.without_dependencies))
        assert {name for name, _ in peer.unsupported} <= set(w.WORKLOADS)
    for workload in w.WORKLOADS:
        assert w.OURS in w.default_peers(workload)
        assert not any(name.startswith("understudy-") for name in w.default_peers(workload))
    assert w.default_peers("W4-GAIL") == ("understudy", "tianshou", "imitation")
    assert "imitation" not in w.default_peers("W1")


@pytest.mark.parametrize("name", ["W1", "W2", "W3"])
def test_our_configuration_is_the_workload(load: Loader, name: str) -> None:
    workload = load("speed", "workloads").WORKLOADS[name]
    ours = load("speed", "peers.understudy")
    ppo, policy = ours.ppo_config(workload, ""), ours.policy_config(workload)
    assert (ppo.num_steps, ppo.epochs, ppo.minibatches) == (
        workload.num_steps,
        workload.num_epochs,
        workload.num_minibatches,
    )
    assert ppo.value_clip == (0.2 if name == "W3" else None)
    assert ppo.desired_kl == (0.01 if name == "W3" else None)
    assert (ppo.gamma, ppo.gae_lambda, ppo.clip_epsilon) == (0.99, 0.95, 0.2)
    assert (ppo.value_coef, ppo.entropy_coef) == (workload.value_coef, workload.entropy_coef)
    assert ppo.optimizer.max_grad_norm == workload.max_grad_norm
    assert ppo.optimizer.learning_rate == workload.learning_rate
    assert ppo.advantage_normalization == workload.normalize_advantage
    assert (policy.hidden_sizes, policy.activation) == (workload.hidden, workload.activation)
    assert policy.critic_hidden_sizes is None
    assert not policy.shared_trunk
    assert not policy.normalize_observations


@pytest.mark.parametrize("module", ["understudy", "plain_ppo"])
def test_the_counted_work_is_the_asked_work(load: Loader, module: str) -> None:
    workloads, harness, peer = (load("speed", name) for name in ("workloads", "harness", "peer"))
    tiny = replace(workloads.WORKLOADS["W3"], num_envs=8, num_steps=4, num_epochs=3, num_minibatches=2, hidden=(8,))
    trainer = load("speed", f"peers.{module}").build(harness.Job(workload=tiny, seed=0, device="cpu", variant="eager"))
    assert peer.warm_up(trainer) == 6
    before = trainer.steps
    trainer.run(2)
    assert trainer.steps - before == 64
    assert trainer.clock.update_s > 0.0
    assert trainer.act(torch.zeros(5, 48).numpy()).shape == (5, 12)


@pytest.mark.parametrize(
    ("name", "peer_name"), [("W4-BC", "understudy"), ("W4-BC", "plain-bc"), ("W4-GAIL", "understudy")]
)
def test_the_counted_work_of_imitation_is_the_asked_work(load: Loader, name: str, peer_name: str) -> None:
    pytest.importorskip("mujoco")
    workloads, harness, peer = (load("speed", name) for name in ("workloads", "harness", "peer"))
    tiny = replace(workloads.WORKLOADS[name], hidden=(8,), episodes=1, num_minibatches=2)
    if name == "W4-BC":
        tiny = replace(tiny, num_steps=2 * 500)
    else:
        tiny = replace(tiny, num_steps=16, num_envs=2, num_epochs=3, disc_updates=4)
    module = load("speed", f"peers.{workloads.module_of(peer_name, tiny.method)}")
    trainer = module.build(harness.Job(workload=tiny, seed=0, device="cpu", variant=""))
    assert peer.warm_up(trainer) == tiny.gradient_steps_per_iteration == (2 if name == "W4-BC" else 10)
    before = trainer.steps
    trainer.run(2)
    assert trainer.steps - before == 2 * tiny.steps_per_iteration
    assert trainer.act(torch.zeros(5, 17).numpy()).shape == (5, 6)


def test_demonstrations_are_one_expert_s(load: Loader) -> None:
    harness = load("speed", "harness")
    made, again = harness.make_demonstrations(2, seed=1), harness.make_demonstrations(2, seed=2)
    obs, actions = made.pairs()
    assert obs.shape == made.next_obs().shape == (2000, 17)
    assert (made.next_obs()[:999] == obs[1:1000]).all()
    assert abs(actions).max() <= 1.0
    fit = np.linalg.lstsq(obs, np.arctanh(actions.astype(np.float64)), rcond=None)[0]
    other_obs, other_actions = again.pairs()
    np.testing.assert_allclose(np.tanh(other_obs @ fit), other_actions, atol=1e-4)


def test_the_command_in_the_report_repeats_the_comparison(load: Loader) -> None:
    run = load("speed", "run")
    args = run.argparse.Namespace(
        workload="W1", runs=5, threads=1, device="cpu", iterations=None, peers=list(run.default_peers("W1"))
    )
    assert run.command_line(args) == "python benchmarks/speed/run.py --workload W1 --runs 5 --threads 1"
    args.peers, args.iterations = ["understudy", "skrl"], 3
    assert run.command_line(args).endswith("--threads 1 --iterations 3 --peers understudy skrl")


# ---------------------------------------------------------------------- speed: the tensor environment


def test_tensor_environment_truncates_resets_and_keeps_the_final_observation(load: Loader) -> None:
    env = load("speed", "tensor_env").TensorEnv(4, seed=3, min_length=2, max_length=2)
    action = torch.zeros(4, 12)
    assert not env.step(action).truncated.any()
    step = env.step(action)
    assert step.truncated.all()
    assert not step.terminated.any()
    assert not torch.allclose(step.final_obs, step.obs)
    assert torch.equal(step.obs, env.observe())
    assert not env.step(action).truncated.any()


def test_tensor_environment_reward_and_dynamics(load: Loader) -> None:
    env = load("speed", "tensor_env").TensorEnv(3, seed=0)
    env.x = torch.zeros(3, 48)
    action = torch.full((3, 12), 2.0)  # executed as 1
    step = env.step(action)
    x = torch.atanh(step.final_obs)
    torch.testing.assert_close(step.reward, 1.0 - x.square().mean(1) - 0.01, rtol=1e-4, atol=1e-5)
    noise = x - torch.ones(3, 12) @ env.b
    assert 0.03 < float(noise.std()) < 0.07


def test_tensor_environment_is_deterministic_in_its_seed(load: Loader) -> None:
    module = load("speed", "tensor_env")
    runs = []
    for seed in (1, 1, 2):
        env = module.TensorEnv(2, seed=seed)
        runs.append(torch.stack([env.step(torch.ones(2, 12)).obs for _ in range(5)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# ---------------------------------------------------------------------- growth, memory, learning


def test_growth_compares_ten_times_the_environments(load: Loader) -> None:
    growth = load("speed", "growth")
    assert growth.growth({1: 100.0, 3: 290.0, 10: 700.0, 30: 1450.0}) == [(1, 10, 7.0), (3, 30, 5.0)]
    assert "Ten times the environments: 1 to 10: 7.0x" in growth.markdown({"a": {1: 1.0, 10: 7.0}}, "here")


def test_memory_growth_ignores_the_warmup_and_a_spike(load: Loader) -> None:
    memory = load("memory", "run")
    flat = [5.0] * 20 + [100.0] * 80
    assert memory.growth(flat) == 0.0
    flat[-3] = 900.0
    assert memory.growth(flat) == 0.0
    rising = [float(i) for i in range(100)]  # medians of 20..29 and 90..99
    assert memory.growth(rising) == 70.0
    with pytest.raises(ValueError, match="too few"):
        memory.growth([1.0] * 9)
    assert memory.resident() > 10 * memory.MIB


def test_learning_table_stands_beside_the_published_numbers(load: Loader) -> None:
    run = load("learning", "run")
    results = [
        {
            "env": "Hopper-v5", "seed": seed, "env_steps": 1000, "training_return": value, "evaluation_return": 10.0,
            "evaluation_episodes": 20, "steps_per_second": 500.0, "revision": "abc", "curve": [(0, 1.0), (10, value)],
        }
        for seed, value in ((1, 5.0), (0, 1.0))
    ]  # fmt: skip
    names = ("cpu", "cores", "parallel", "gymnasium", "mujoco", "torch", "date", "command")
    text = run.markdown(results, ["Walker2d-v5 seed 0 failed: x"], dict.fromkeys(names, "?"))
    expected = "| Hopper-v5 | 0, 1 | 1,000 | **3 ± 3** | 10 ± 0 | 2609 ± 701 | 2410 ± 10 | 2383 ± 272 | 500 |"
    assert expected in text
    assert "failed: x" in text
    band = run.band([r["curve"] for r in results], points=3)
    assert band["steps"] == [0.0, 5.0, 10.0]
    assert (band["mean"], band["low"], band["high"]) == ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, 3.0, 5.0])


# ---------------------------------------------------------------------- jobs


def test_curves_are_thinned_from_the_end(load: Loader) -> None:
    thin = load(".", "jobs").thin
    points = [(float(i), float(i)) for i in range(1001)]
    points[999] = (999.0, float("nan"))
    thinned = thin(points, most=10)
    assert thinned[-1] == (1000, 1000.0)
    assert thinned[0] == (0, 0.0)
    assert len(thinned) == 11
    assert thin([(1.0, float("nan")), (2.0, 5.12345)], digits=2) == [(2, 5.12)]


def test_finished_jobs_are_not_repeated(load: Loader, tmp_path: Path) -> None:
    jobs = load(".", "jobs")
    committed, store = tmp_path / "table.json", tmp_path / "runs" / "table.jsonl"
    assert jobs.read_known(committed, store) == {}
    job, known, called = jobs.KeyedJob(), {}, []
    options = {"store": store, "parallel": 1, "describe": str, "after": lambda: called.append(dict(known))}
    jobs.run_missing([job], known, vars, **options)  # its result: the fields of the job, none
    assert known == {job.key: {}} == called[0]
    assert store.read_text() == "{}\n"
    jobs.run_missing([job], known, vars, **options)
    assert len(called) == 1
    store.write_text('{"key": "b", "x": 2}\n')
    committed.write_text('{"runs": [{"key": "a", "x": 1}, {"key": "b", "x": 1}]}')
    assert {key: row["x"] for key, row in jobs.read_known(committed, store).items()} == {"a": 1, "b": 2}
    assert [jobs.cell(x, 1) for x in ([], [1.0], [1.0, 3.0])] == ["-", "1.0", "2.0 ± 1.4"]


def test_a_training_that_a_signal_ended_has_no_result(load: Loader) -> None:
    completed = load(".", "jobs").completed
    whole = Namespace(path=Path("runs/x"), stopped_by=None)
    assert completed(whole) is whole
    with pytest.raises(SystemExit, match="x was stopped by SIGTERM; start the benchmark again to continue"):
        completed(Namespace(path=Path("runs/x"), stopped_by="SIGTERM"))


# ---------------------------------------------------------------------- teachers and students


def taught(method: str, seed: int, test: float, curve: list[tuple[int, float]], rmse: float | None) -> dict[str, Any]:
    return {
        "method": method, "task": "Hopper-v5", "seed": seed, "total_steps": 80, "test_return": test, "seconds": 2.0,
        "env_steps": 100, "curve": curve, "rmse": rmse,
    }  # fmt: skip


def test_students_are_compared_with_the_teacher_of_their_seed(load: Loader) -> None:
    run = load("teacher", "run")
    results = [
        taught("teacher", 0, 100.0, [], None),
        taught("teacher", 1, 200.0, [], None),
        taught("estimator-tppo", 0, 100.0, [(22, 10.0), (44, 90.0), (80, 95.0)], 0.5),
        taught("estimator-tppo", 1, 100.0, [(22, 20.0), (44, 100.0), (80, 105.0)], 0.25),
    ]
    assert run.soon(results[2:], {0: 100.0, 1: 200.0}) == [44, None]
    assert run.soon(results[2:], {0: 90.0, 1: 20.0}) == [44, 22]
    assert run.value_at(results[2]["curve"], 40) == 90.0  # a rollout later
    assert run.value_at(results[2]["curve"], 20) == 10.0
    assert run.value_at(results[2]["curve"], 100) is None  # the training was shorter
    expected = (
        "| TPPO, velocity estimated | 15 ± 7 | 95 ± 7 | 100 ± 7 | **100 ± 0** | 75 ± 35 % | 0k (1 of 2 seeds) | "
        "0.375 ± 0.177 | 50 | 0, 1 |"
    )
    assert expected in run.table(results)
    assert [run.first(x) for x in ([], [None], [40_000, 60_000], [None, 40_000])] == [
        "-", "never (0 of 1 seeds)", "50k", "40k (1 of 2 seeds)",
    ]  # fmt: skip


def test_the_teacher_of_a_seed_comes_before_its_students(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load("teacher", "run")
    words = ["run.py", "--table", "hidden-velocity", "--tasks", "Hopper-v5", "--methods", "tppo", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", words)
    jobs: list[Any] = []
    monkeypatch.setattr(run, "run_all", lambda found, *_: jobs.extend(found) or sys.exit())
    with pytest.raises(SystemExit):
        run.main()
    assert [(job.method, job.seed) for job in jobs] == [("teacher", 0), ("tppo", 0), ("teacher", 1), ("tppo", 1)]
    assert jobs[0].total_steps == jobs[1].teacher_steps == 1_000_000
    assert jobs[0].teacher == jobs[1].teacher
    config = run.configuration(jobs[1])
    assert config.parts["teacher"].checkpoints == (str(jobs[0].teacher),)


# ---------------------------------------------------------------------- imitation


def imitation_args(run: ModuleType, *words: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", *words])
        return run.parse_args()


def imitation_result(job: Any, score: float) -> dict[str, Any]:
    return {
        "key": job.key, **vars(job), "revision": "abc", "test_return": score, "test_std": 0.0, "test_length": 1000.0,
        "seconds": 120.0, "asked_steps": 0.0, "curve": [(0, 0.0), (10, score)],
    }  # fmt: skip


def test_imitation_table_is_in_percent_of_the_expert(load: Loader, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, report = load("imitation", "run"), load("imitation", "report")
    args = imitation_args(run, "--tasks", "Hopper-v5", "--methods", "bc", "gail", "--seeds", "0", "1")
    (expert,), jobs = run.expert_jobs(args), run.learner_jobs(args)
    assert [(job.method, job.seed, job.total_steps) for job in jobs] == [
        ("bc", 0, 0), ("bc", 1, 0), ("gail", 0, 1_000_000), ("gail", 1, 1_000_000),
    ]  # fmt: skip
    results = [imitation_result(expert, 2000.0), *(imitation_result(job, x) for job, x in zip(jobs, (1900.0, 2000.0)))]
    text = report.main_table(results, args)
    assert "| Hopper-v5 | expert (PPO) | 0 | **2000** | 100.0 % | 2 min | - | - |" in text
    assert "| Hopper-v5 | BC | 0, 1 | **1950 ± 71** | 97.5 % (95.0 %) | 2 min | 2243 ± 32 (85 %) | - |" in text
    assert "| Hopper-v5 | GAIL | - | - | - | - | 2671 ± 82 (102 %) | 1761 |" in text
    report.plot(results, args, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_imitation_sweep_has_a_column_for_each_number_of_episodes(load: Loader, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, report = load("imitation", "run"), load("imitation", "report")
    words = ("--tasks", "Hopper-v5", "--methods", "bc", "--seeds", "0", "1", "--trajectories", "1", "25")
    args = imitation_args(run, *words)
    (expert,), jobs = run.expert_jobs(args), run.learner_jobs(args)
    scores = {1: 500.0, 25: 1000.0}
    results = [imitation_result(expert, 1000.0), *(imitation_result(job, scores[job.trajectories]) for job in jobs)]
    text = report.sweep_table(results, args)
    assert "| task | method | 1 episode | 25 episodes |" in text
    assert "| Hopper-v5 | BC | 50.0 % (50.0 %) | 100.0 % (100.0 %) |" in text
    report.plot(results, args, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_few_episodes_get_as_many_gradient_steps(load: Loader) -> None:
    from understudy.runs.config import OfflineConfig

    run = load("imitation", "run")
    few = run.as_many_steps(OfflineConfig(epochs=100, patience=20), 5)
    assert (few.epochs, few.patience) == (500, 100)
    assert run.as_many_steps(OfflineConfig(epochs=100, patience=None), 25).patience is None


# ---------------------------------------------------------------------- motion


def moved(method: str, seed: int, score: float, energy: float) -> dict[str, Any]:
    points = [] if method == "ppo" else [(8, 0.5), (16, 0.25)]
    return {
        "task": "cheetah", "method": method, "seed": seed, "test_return": score, "energy": energy, "frechet": 4.0,
        "frequency": 3.0, "duty": [0.5, 0.25], "phase": [0.0, 0.75], "revision": "abc1234", "saturated": points,
    }  # fmt: skip


def test_motion_table_has_shares_of_ppo_over_the_same_seeds(load: Loader) -> None:
    pytest.importorskip("mujoco")
    run = load("motion", "run")
    args = Namespace(task="cheetah", seeds=[1, 2], methods=run.METHODS["cheetah"], total_steps=16, episodes=1)
    results = [moved("ppo", 1, 100.0, 0.8), moved("ppo", 2, 300.0, 0.4), moved("appo-0.3", 1, 95.0, 0.2)]
    clips = {"energy": 0.01, "frechet": 0.1, "frequency": 2.5}
    text = run.table(args, results, clips)
    # of PPO's seed 1 alone: 95 / 100 and 0.2 / 0.8
    assert "| appo-0.3 | 1 | 95 | 95 % | 0.200 | 25 % | 4.00 | 100 % | 3.00 | 0.50, 0.25 | 0.75 | 0.250 |" in text
    assert "| ppo | 1, 2 | 200 ± 141 | 100 % | 0.600 ± 0.283 |" in text
    assert "| atppo-0.5 | none | - |" in text
    assert "| other clips | | | | 0.010 | | 0.10 | | 2.50 |" in text


def test_a_smaller_motion_table_keeps_the_numbers_of_a_larger_one(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    run = load("motion", "run")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(load("motion", "pictures"), "draw", lambda *_: None)
    args = Namespace(task="cheetah", seeds=[1, 2], methods=["ppo"], total_steps=16, episodes=1, report_only=True)
    rows = [{"key": job.key, **moved("ppo", job.seed, 100.0, 0.5)} for job in run.make_jobs(args)]
    (tmp_path / "results").mkdir()
    stored = tmp_path / "results" / "cheetah.json"
    clips = {"energy": 0.01, "frechet": 0.1, "frequency": 2.5}
    stored.write_text(json.dumps({"clips": clips, "runs": rows}))
    args.seeds = [2]
    assert "| ppo | 2 | 100 |" in run.report(args, run.run_all(run.make_jobs(args), args))
    assert json.loads(stored.read_text()) == {"clips": clips, "runs": rows}


def test_motion_jobs_come_seed_by_seed_and_know_their_folder(load: Loader) -> None:
    run = load("motion", "run")
    args = Namespace(task="ant", seeds=[3, 4], methods=["ppo", "appo-0.5"], total_steps=16, episodes=1)
    jobs = run.make_jobs(args)
    assert [(job.method, job.seed) for job in jobs] == [("ppo", 3), ("appo-0.5", 3), ("ppo", 4), ("appo-0.5", 4)]
    assert jobs[1].folder.parts[-3:] == ("runs", "ant", "appo-0.5-seed-3-steps-16")
    config = run.method_config(jobs[1])
    assert (config.env.id, config.seed, config.ppo.reward_weight) == ("Ant-v5", 3, 0.5)
    assert run.TASKS["ant"].joints["ankle_4"] == 12
    assert run.curve([{"step": 1, "x": 0.5}, {"step": 2}, {"step": 3, "x": 1.5}], "x") == [(1, 0.5), (3, 1.5)]


def test_blends_and_starts_are_in_a_method_s_name(load: Loader) -> None:
    run = load("motion", "run")
    plain, starts = (
        run.method_config(run.Job(task="cheetah", method=method, seed=1, total_steps=100, episodes=1))
        for method in ("appo-0.3", "appo-0.3-rsi")
    )
    assert plain.ppo.reward_weight == 0.3
    assert plain.parts["motion"].reward_weight == 0.7
    assert (plain.env.id, starts.env.id) == ("HalfCheetah-v5", run.FROM_CLIPS)
    assert starts.ppo == plain.ppo


def test_a_go1_is_posed_by_what_its_observations_tell(load: Loader) -> None:
    pytest.importorskip("imageio")
    replay = load("motion", "go1_replay")
    frames = np.zeros((2, 123))
    frames[:, replay.GRAVITY], frames[:, replay.VELOCITY] = (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)
    frames[:, replay.TURNING] = (0.0, 0.0, 0.5 * np.pi / replay.STEP_TIME)  # a quarter turn each step
    frames[1, replay.JOINTS.start] = 0.25
    pose = replay.poses(frames)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(pose[:, :3], [[0.0, 0.02, 0.0], [-0.02, 0.02, 0.0]], atol=1e-12)
    np.testing.assert_allclose(pose[:, 3:7], [[half, 0.0, 0.0, half], [0.0, 0.0, 0.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(pose[:, 7:9], [[0.1, 0.9], [0.35, 0.9]])
    # nose down by 30 degrees, then on its right side by as much: gravity is minus the rotation's last row
    frames[:, replay.TURNING] = 0.0
    frames[:, replay.GRAVITY] = [[0.5, 0.0, -np.sqrt(0.75)], [0.0, -0.5, -np.sqrt(0.75)]]
    angle = np.pi / 12.0
    expected = [[np.cos(angle), 0.0, np.sin(angle), 0.0], [np.cos(angle), np.sin(angle), 0.0, 0.0]]
    np.testing.assert_allclose(replay.poses(frames)[:, 3:7], expected, atol=1e-12)
    turned = replay.rotations(*(np.array([x]) for x in (0.4, -0.3, 2.0)))[0]
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    w, x, y, z = replay.quaternions(*(np.array([a]) for a in (0.4, -0.3, 2.0)))[0]
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    np.testing.assert_allclose(turned, rows, atol=1e-12)


def test_a_go1_s_gait_is_measured_from_its_observations(load: Loader) -> None:
    pytest.importorskip("envpool")
    import understudy as us

    gait = load("motion", "gait")
    config = us.recipes.go1_trot()
    env = replace(config.env, num_envs=2)
    made = env.make("cpu", 0)
    policy = us.ActorCritic(made.observation_space, made.action_space, config.policy)
    made.close()
    played = gait.play(gait.TASKS["go1"], policy, env, 2, 0)
    assert len(played.scores) == 2
    for frames, contact in zip(played.frames, played.contact):
        assert (frames.shape[1], contact.shape[1], contact.dtype) == (24, 4, bool)
        assert len(frames) == len(contact)
        assert contact.any()  # it falls, but stands first


def test_films_stand_side_by_side(load: Loader, tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    image = pytest.importorskip("PIL.Image")
    pictures = load("motion", "pictures")
    films = {}
    for name, shade, length in (("dark", 40, 120), ("light", 200, 100)):
        films[name] = tmp_path / f"{name}.mp4"
        with imageio.get_writer(films[name], format="FFMPEG", fps=25, macro_block_size=2) as writer:
            for k in range(length):
                frame = np.full((96, 128, 3), shade, np.uint8)
                frame[40:56, k : k + 16] = 255 - shade  # equal frames would be one in the GIF
                writer.append_data(frame)
    text = pictures.side_by_side(films, tmp_path / "both.mp4")
    assert text.endswith("from left to right: dark, light")
    frames = list(iter(imageio.get_reader(tmp_path / "both.mp4")))  # the reader itself says it has no end
    assert (len(frames), frames[0].shape) == (100, (96, 256, 3))  # as long as the shortest
    assert frames[50][60:, :128].mean() < 60  # below the names
    assert frames[50][60:, 128:].mean() > 180
    gif = image.open(pictures.shorten(tmp_path / "both.mp4", tmp_path / "both.gif"))
    assert gif.size == (480, 180)
    assert gif.n_frames == 25  # 2 s are left of the 2.4
