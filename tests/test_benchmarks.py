"""The benchmark harness: tables, parity of configurations, and that the counted work is the asked work. No timing."""

from __future__ import annotations

import argparse
import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.imitation import imitation
from benchmarks.learning import learning
from benchmarks.memory import __main__ as memory
from benchmarks.motion import gait, go1_replay, motion, pictures
from benchmarks.speed import __main__ as speed
from benchmarks.speed import against, frames, growth, harness, parts, peer, start, tables, tensor_env
from benchmarks.speed import workloads as w
from benchmarks.teacher import teacher
from tests.fresh import Fresh

from benchmarks import table
from understudy.recipes.basic import cartpole

ROOT = Path(__file__).resolve().parents[1]


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


def test_ratios_are_paired_by_round() -> None:
    assert tables.paired_ratios(lines()[:3], lines()[6:9]) == [3.0, 2.0, 4.0]
    assert tables.paired_ratios(lines()[:3], lines()[9:]) == [15.0, 7.5]


def test_summary_takes_medians_and_sorts_by_wall_time() -> None:
    rows = tables.summarize(lines(), "understudy")
    assert [row.peer for row in rows] == ["understudy-eager", "understudy", "fast", "slow"]
    fast = rows[2]
    assert (fast.wall_s, fast.collect_s, fast.update_s) == (8.0, 2.0, 6.0)
    assert (fast.ratio, fast.ratio_low, fast.ratio_high) == (3.0, 2.0, 4.0)  # not 8 / 3, the ratio of medians
    assert fast.cpu_ratio == 1.5
    assert rows[1].check == (1.0, 7.0)
    assert fast.check is None
    assert rows[3].runs == 2


def test_headline_is_the_fastest_peer_and_never_our_own_variant() -> None:
    rows = tables.summarize(lines(), "understudy")
    assert tables.fastest_peer(rows, "understudy").peer == "fast"
    text = tables.markdown(rows, {"broken": "could not be installed"}, "understudy")
    assert "Fastest peer / ours: **3.00** (fast; median of 3 paired runs)" in text
    assert "| broken | - | not run: could not be installed |" in text
    cells = {len(row.split("|")) for row in text.splitlines() if row.startswith("|")}
    assert cells == {11}, "a row of the table has another number of cells"


# ---------------------------------------------------------------------- speed: workloads


def test_workloads_are_those_of_the_comparison() -> None:
    w1, w2, w3 = (w.WORKLOADS[name] for name in ("W1", "W2", "W3"))
    assert (w1.total_steps, w1.minibatch_size, w1.gradient_steps) == (100_352, 256, 1568)
    assert (w2.total_steps, w2.minibatch_size, w2.gradient_steps) == (40_960, 64, 6400)
    assert (w3.total_steps, w3.minibatch_size, w3.gradient_steps) == (122_880, 6144, 100)
    bc, gail = w.WORKLOADS["W4-BC"], w.WORKLOADS["W4-GAIL"]
    assert (bc.minibatch_size, bc.gradient_steps, bc.episodes * w.EPISODE_LENGTH) == (256, 1950, 50_000)
    assert (gail.steps_per_iteration, gail.minibatch_size, gail.gradient_steps) == (16_384, 1024, 2 * (160 + 16))


def test_every_peer_has_a_module_and_pinned_requirements() -> None:
    for name, entry in w.PEERS.items():
        for method in entry.methods:
            assert (speed.HERE / "peers" / f"{w.module_of(name, method)}.py").is_file()
        assert all("==" in requirement for requirement in (*entry.requirements, *entry.without_dependencies))
        assert {name for name, _ in entry.unsupported} <= set(w.WORKLOADS)
    for workload in w.WORKLOADS:
        assert w.OURS in w.default_peers(workload)
        assert not any(name.startswith("understudy-") for name in w.default_peers(workload))
    assert w.default_peers("W4-GAIL") == ("understudy", "tianshou", "imitation")
    assert "imitation" not in w.default_peers("W1")


@pytest.mark.parametrize("name", ["W1", "W2", "W3"])
def test_our_configuration_is_the_workload(name: str) -> None:
    workload, ours = w.WORKLOADS[name], peer.peer_module("understudy", "ppo")
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


@pytest.mark.parametrize("name", ["understudy", "plain"])
def test_the_counted_work_of_images_is_the_asked_work(name: str) -> None:
    tiny = replace(w.WORKLOADS["W6"], num_envs=2, num_steps=4, num_epochs=2, num_minibatches=2)
    trainer = peer.peer_module(name, "ppo").build(harness.Job(workload=tiny, seed=0, device="cpu", variant="eager"))
    assert peer.warm_up(trainer) == 4
    before = trainer.steps
    trainer.run(1)
    assert trainer.steps - before == 8
    assert trainer.act(np.zeros((3, *frames.SHAPE), dtype=np.uint8)).shape == (3,)
    network = trainer.ppo.policy if name == "understudy" else trainer.agent
    trunk = (4 * 64 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 9 + 1) * 64 + (3136 + 1) * 512
    assert sum(x.numel() for x in network.parameters()) == trunk + 513 * (frames.ACTIONS + 1)


def test_a_student_comes_nearer_to_its_teacher() -> None:
    tiny = replace(w.WORKLOADS["W7"], num_envs=16, num_steps=4, num_epochs=3, num_minibatches=2, hidden=(16,))
    job = harness.Job(workload=tiny, seed=0, device="cpu", variant="eager")
    trainer = peer.peer_module("understudy", "distill").build(job)
    before = harness.check_score(trainer, job)
    assert peer.warm_up(trainer) == tiny.gradient_steps_per_iteration == 6
    trainer.run(10)
    assert trainer.steps == 11 * 64
    assert harness.check_score(trainer, job) < 0.7 * before


@pytest.mark.parametrize("name", ["understudy", "plain"])
def test_the_counted_work_is_the_asked_work(name: str) -> None:
    tiny = replace(w.WORKLOADS["W3"], num_envs=8, num_steps=4, num_epochs=3, num_minibatches=2, hidden=(8,))
    job = harness.Job(workload=tiny, seed=0, device="cpu", variant="eager")
    trainer = peer.peer_module(name, "ppo").build(job)
    assert peer.warm_up(trainer) == 6
    before = trainer.steps
    trainer.run(2)
    assert trainer.steps - before == 64
    assert trainer.clock.update_s > 0.0
    assert trainer.act(torch.zeros(5, 48).numpy()).shape == (5, 12)


@pytest.mark.parametrize(
    ("name", "peer_name"), [("W4-BC", "understudy"), ("W4-BC", "plain-bc"), ("W4-GAIL", "understudy")]
)
def test_the_counted_work_of_imitation_is_the_asked_work(name: str, peer_name: str) -> None:
    pytest.importorskip("mujoco")
    tiny = replace(w.WORKLOADS[name], hidden=(8,), episodes=1, num_minibatches=2)
    if name == "W4-BC":
        tiny = replace(tiny, num_steps=2 * 500)
    else:
        tiny = replace(tiny, num_steps=16, num_envs=2, num_epochs=3, disc_updates=4)
    trainer = peer.peer_module(peer_name, tiny.method).build(
        harness.Job(workload=tiny, seed=0, device="cpu", variant="")
    )
    assert peer.warm_up(trainer) == tiny.gradient_steps_per_iteration == (2 if name == "W4-BC" else 10)
    before = trainer.steps
    trainer.run(2)
    assert trainer.steps - before == 2 * tiny.steps_per_iteration
    assert trainer.act(torch.zeros(5, 17).numpy()).shape == (5, 6)


def test_demonstrations_are_one_expert_s() -> None:
    made, again = harness.make_demonstrations(2, seed=1), harness.make_demonstrations(2, seed=2)
    obs, actions = made.pairs()
    assert obs.shape == made.next_obs().shape == (2000, 17)
    assert (made.next_obs()[:999] == obs[1:1000]).all()
    assert abs(actions).max() <= 1.0
    fit = np.linalg.lstsq(obs, np.arctanh(actions.astype(np.float64)), rcond=None)[0]
    other_obs, other_actions = again.pairs()
    np.testing.assert_allclose(np.tanh(other_obs @ fit), other_actions, atol=1e-4)


def test_the_command_in_the_report_repeats_the_comparison() -> None:
    args = Namespace(workload="W1", runs=5, threads=1, device="cpu", iterations=None, peers=list(w.default_peers("W1")))
    assert speed.command_line(args) == "python -m benchmarks.speed --workload W1 --runs 5 --threads 1"
    args.peers, args.iterations = ["understudy", "skrl"], 3
    assert speed.command_line(args).endswith("--threads 1 --iterations 3 --peers understudy skrl")


def test_two_checkouts_are_compared_turn_by_turn() -> None:
    ours = [{"cpu": 1.0, "wall": 2.0}, {"cpu": 2.0, "wall": 2.0}, {"cpu": 4.0, "wall": 2.0}]
    other = [{"cpu": 1.0, "wall": 2.0}, {"cpu": 2.2, "wall": 3.0}, {"cpu": 6.0, "wall": 4.0}]
    pair = {"ours": ours, "other": other}
    assert against.ratios(pair, "wall") == [1.0, 1.5, 2.0]
    assert against.order(["a", "b"], 0) == against.order(["b", "a"], 1) == ["a", "b"]
    assert against.summary([pair, {"ours": ours, "other": ours}]) == (
        "speed over the other's 1.000 (cpu; pairs 1.000 to 1.100; turn 2.00 s), "
        "1.000 (wall; pairs 1.000 to 1.500; turn 2.00 s)"
    )


# ---------------------------------------------------------------------- speed: the tensor environment


def test_tensor_environment_truncates_resets_and_keeps_the_final_observation() -> None:
    env = tensor_env.TensorEnv(4, seed=3, min_length=2, max_length=2)
    action = torch.zeros(4, 12)
    assert not env.step(action).truncated.any()
    step = env.step(action)
    assert step.truncated.all()
    assert not step.terminated.any()
    assert not torch.allclose(step.final_obs, step.obs)
    assert torch.equal(step.obs, env.observe())
    assert not env.step(action).truncated.any()


def test_tensor_environment_reward_and_dynamics() -> None:
    env = tensor_env.TensorEnv(3, seed=0)
    env.x = torch.zeros(3, 48)
    action = torch.full((3, 12), 2.0)  # executed as 1
    step = env.step(action)
    x = torch.atanh(step.final_obs)
    torch.testing.assert_close(step.reward, 1.0 - x.square().mean(1) - 0.01, rtol=1e-4, atol=1e-5)
    noise = x - torch.ones(3, 12) @ env.b
    assert 0.03 < float(noise.std()) < 0.07


def test_tensor_environment_is_deterministic_in_its_seed() -> None:
    runs = []
    for seed in (1, 1, 2):
        env = tensor_env.TensorEnv(2, seed=seed)
        runs.append(torch.stack([env.step(torch.ones(2, 12)).obs for _ in range(5)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# ---------------------------------------------------------------------- growth, memory, learning


def test_growth_compares_neighbouring_sizes(tmp_path: Path) -> None:
    points = {8: growth.Point(100.0, 2.0, 30.0), 32: growth.Point(350.0, 1.5, 40.0)}
    assert growth.growth(points) == [(8, 32, 3.5)]
    curves = {"a": points, "a width": points}
    text = growth.markdown(curves, "here")
    assert "| environments | 8 | 32 |" in text
    assert "| width | 8 | 32 |" in text
    assert "| peak memory, MiB | 30 | 40 |" in text
    assert "8 to 32: 3.50x" in text
    growth.plot(curves, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_growth_changes_one_size_of_a_curve() -> None:
    of_count, of_width = growth.CURVES[0], growth.CURVES[-1]
    assert (of_count.job(32).num_envs, of_count.job(32).hidden) == (32, (64, 64))
    assert (of_width.job(32).num_envs, of_width.job(32).hidden) == (1024, (32, 32))
    assert of_count.sizes(quick=False) == (8, 32, 128, 512, 2048, 8192)
    assert of_count.sizes(quick=True) == of_width.sizes(quick=True) == (8, 64)


def test_starts_are_set_beside_our_first_iteration() -> None:
    ours, theirs = "**understudy** first iteration of train cartpole", "other, import and first iteration"
    lines = start.table({ours: [(1.0, 2.0), (3.0, 4.0), (2.0, 2.0)], theirs: [(4.0, 5.0)]}, {"lost": "no wheel"})
    assert f"| {ours} | 2.00 | 2.00 | 1.00 |" in lines
    assert f"| {theirs} | 4.00 | 5.00 | 2.50 |" in lines
    assert "| lost | not run: no wheel | | |" in lines


def test_parts_are_set_beside_plain_ppo() -> None:
    tiny = replace(w.WORKLOADS["W3"], num_envs=4, num_steps=4, num_epochs=1, num_minibatches=2, hidden=(8,))
    found = parts.measure({"all": parts.build(tiny, ("teacher", "gail"), "cpu")}, 1)
    assert found["all"][0][0] > 0.0
    lines = parts.table({"PPO": [(1.0, 2.0), (2.0, 2.0)], "all": [(3.0, 4.0), (4.0, 3.0)]})
    assert "| all | 3.50 | 3.50 | 2.50 | 1.75 |" in lines


def test_the_first_iteration_is_the_one_of_the_recipe() -> None:
    _, *words = start.OURS["first iteration of train cartpole"]
    assert words[2] == str(cartpole().ppo.num_steps * cartpole().env.num_envs) == str(start.FIRST)
    assert start.timed([sys.executable, "-c", "print(sum(range(1000)))"])[0] > 0.0


def test_the_picture_book_rewards_the_bar_and_keeps_the_final_page() -> None:
    book = frames.Book(4, seed=3)
    seen, lengths = book.reset(), []
    for _ in range(60):
        bars = seen[:, 0].mean(2).reshape(4, frames.ACTIONS, -1).min(2).argmax(1)
        step = book.step(bars)
        assert step.reward.tolist() == [1.0] * 4
        assert not step.terminated.any()
        lengths += step.truncated.tolist()
        ended = step.truncated
        assert (step.obs[~ended] == step.final_obs[~ended]).all()
        seen = step.obs
    assert book.step((bars + 1) % frames.ACTIONS).reward.sum() < 4.0
    again = frames.Book(4, seed=3)
    assert (again.reset() == frames.Book(4, seed=3).reset()).all()
    assert seen.dtype == np.uint8
    assert seen.shape == (4, *frames.SHAPE)


def test_memory_growth_ignores_the_warmup_and_a_spike() -> None:
    flat = [5.0] * 20 + [100.0] * 80
    assert memory.growth(flat) == 0.0
    flat[-3] = 900.0
    assert memory.growth(flat) == 0.0
    rising = [float(i) for i in range(100)]  # medians of 20..29 and 90..99
    assert memory.growth(rising) == 70.0
    with pytest.raises(ValueError, match="too few"):
        memory.growth([1.0] * 9)
    assert memory.resident() > 10 * memory.MIB


def test_learning_table_stands_beside_the_published_numbers() -> None:
    results = [
        {
            "env": "Hopper-v5", "seed": seed, "env_steps": 1000, "training_return": value, "evaluation_return": 10.0,
            "evaluation_episodes": 20, "steps_per_second": 500.0, "revision": "abc", "curve": [(0, 1.0), (10, value)],
        }
        for seed, value in ((1, 5.0), (0, 1.0))
    ]  # fmt: skip
    names = ("cpu", "cores", "parallel", "gymnasium", "mujoco", "torch", "date", "command")
    text = learning.markdown(results, ["Walker2d-v5 seed 0 failed: x"], dict.fromkeys(names, "?"))
    expected = "| Hopper-v5 | 0, 1 | 1,000 | **3 ± 3** | 10 ± 0 | 2609 ± 701 | 2410 ± 10 | 2383 ± 272 | 500 |"
    assert expected in text
    assert "failed: x" in text
    band = table.band([r["curve"] for r in results], points=3)
    assert band["steps"] == [0.0, 5.0, 10.0]
    assert (band["mean"], band["low"], band["high"]) == ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, 3.0, 5.0])


# ---------------------------------------------------------------------- jobs


def test_curves_are_thinned_from_the_end() -> None:
    points = [(float(i), float(i)) for i in range(1001)]
    points[999] = (999.0, float("nan"))
    thinned = table.thin(points, most=10)
    assert thinned[-1] == (1000, 1000.0)
    assert thinned[0] == (0, 0.0)
    assert len(thinned) == 11
    assert table.thin([(1.0, float("nan")), (2.0, 5.12345)], digits=2) == [(2, 5.12)]


@dataclass(frozen=True, kw_only=True)
class Sum(table.Job):
    """A job that takes no time."""

    number: int
    seed: int


class Sums(table.Question[Sum]):
    """A tiny question."""

    name = "sums"

    @classmethod
    def options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--numbers", nargs="+", type=int, default=[1])

    def jobs(self) -> list[Sum]:
        return [Sum(number=number, seed=seed) for seed in self.args.seeds for number in self.args.numbers]

    def work(self, job: Sum) -> dict[str, Any]:
        if job.number < 0:
            raise ValueError("negative")
        if job.number > 90:
            time.sleep(0.5)  # the jobs before it are in the store by then
            raise SystemExit("run was stopped by SIGTERM")
        return {"sum": job.number + job.seed, "revision": "abc", "pair": (1, 2)}

    def describe(self, row: table.Result) -> str:
        return f"{row['number']} + {row['seed']} = {row['sum']}"

    def report(self, results: Sequence[table.Result]) -> str:
        rows = [table.line(str(row["number"]), str(row["seed"]), str(row["sum"])) for row in results]
        return "\n".join([table.rule(3), *rows, "", self.measured(results, "torch", lead="by hand; ")])

    def draw(self, results: Sequence[table.Result], path: Path) -> None:
        path.write_text("picture")

    def words(self) -> list[str]:
        return ["--numbers", *map(str, self.args.numbers)]


def sums(folder: Path, *words: str) -> Sums:
    chosen = ("--output", str(folder / "results"), "--runs", str(folder / "runs"), "--parallel", "1")
    return Sums(table.parse(Sums, [*chosen, *words]))


def test_a_table_is_written_once_and_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="nothing is known yet: run without --known-only"):
        table.answer(sums(tmp_path, "--known-only"))
    question = sums(tmp_path, "--seeds", "0", "1")
    report = table.answer(question)
    told = capsys.readouterr().err
    assert all(text in told for text in ("1/2 ", "2/2 ", "1 + 0 = 1\n", "1 + 1 = 2\n"))
    assert report.startswith("|---|---|---|\n| 1 | 0 | 1 |\n| 1 | 1 | 2 |\n\nby hand; ")
    assert f"one thread each; torch {torch.__version__}; understudy abc; " in report
    assert report.endswith(" --numbers 1`")
    assert (tmp_path / "results" / "sums.md").read_text() == report
    assert (tmp_path / "results" / "sums.png").read_text() == "picture"
    rows = json.loads((tmp_path / "results" / "sums.json").read_text())
    assert rows[0] == {
        "key": '{"number": 1, "seed": 0}', "number": 1, "seed": 0, "sum": 1, "revision": "abc", "pair": [1, 2]
    }  # fmt: skip
    stored = [json.loads(text) for text in (tmp_path / "runs" / "sums.jsonl").read_text().splitlines()]
    assert sorted(stored, key=lambda row: row["seed"]) == rows
    # nothing is done twice, without the store neither; and a smaller table keeps the numbers of the larger one
    (tmp_path / "runs" / "sums.jsonl").unlink()
    monkeypatch.setattr(table, "processes", lambda _: pytest.fail("a known job was done again"))
    assert "| 1 | 0 | 1 |" not in table.answer(sums(tmp_path, "--seeds", "1"))
    assert json.loads((tmp_path / "results" / "sums.json").read_text()) == rows
    # what has finished since stands above the table
    (tmp_path / "runs" / "sums.jsonl").write_text(json.dumps({**rows[0], "sum": 7}) + "\n")
    assert "| 1 | 0 | 7 |" in table.answer(sums(tmp_path, "--seeds", "0", "--report-only"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run one after another in a thread: starting processes takes seconds."""
    monkeypatch.setattr(table, "processes", lambda _: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("in_this_process")
def test_a_training_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    question = sums(tmp_path, "--seeds", "0", "--numbers", "-5", "2")
    assert "| 2 | 0 | 2 |" in table.answer(question)
    assert question.failures == ["-5 0 failed: negative"]
    with pytest.raises(SystemExit, match="-5 0 failed: negative"):
        table.answer(sums(tmp_path / "other", "--seeds", "0", "--numbers", "-5"))


@pytest.mark.usefixtures("in_this_process")
def test_a_training_that_a_signal_ended_ends_the_table(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run was stopped by SIGTERM"):
        table.answer(sums(tmp_path, "--seeds", "0", "--numbers", "2", "99", "3", "4", "5", "6", "7", "8"))
    finished = [json.loads(text)["number"] for text in (tmp_path / "runs" / "sums.jsonl").read_text().splitlines()]
    assert finished == [2]  # kept; those that waited are dropped
    assert not (tmp_path / "results").exists()


def test_cells_have_mean_and_deviation() -> None:
    assert [table.cell(x, 1) for x in ([], [1.0], [1.0, 3.0])] == ["-", "1.0", "2.0 ± 1.4"]
    assert (table.cell([1234.0]), table.cell([1234.0], separator="")) == ("1,234", "1234")


def test_an_interrupted_training_goes_on_and_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    import understudy as us

    def train(total_steps: int) -> us.Run | None:
        config = us.recipes.cartpole(total_steps=total_steps)
        return table.train_in(tmp_path / "run", replace(config, evaluation=replace(config.evaluation, episodes=0)))

    first = train(1024)
    assert first is not None
    assert train(1024) is None
    (tmp_path / "run" / table.FINISHED).unlink()  # as if it had been interrupted at its last checkpoint
    further = train(2048)
    assert further is not None
    assert further.env_steps > first.env_steps
    steps = [row["step"] for row in further.metrics]
    assert steps == sorted(set(steps))
    assert steps[0] == first.env_steps < steps[-1]


def test_every_benchmark_explains_itself(fresh: Fresh) -> None:
    modules = [
        "advisor", "imitation", "imitation.loading", "learning", "memory", "motion", "motion.library_speed", "speed",
        "speed.against", "speed.collection", "speed.growth", "speed.parts", "speed.peer", "speed.start",
        "speed.tasks", "teacher",
    ]  # fmt: skip
    code = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("ended with", end.code)
"""
    done = fresh("-c", code, *modules, cwd=ROOT)
    assert done.stdout.count("usage: ") == done.stdout.count("ended with 0") == len(modules)
    assert [name for name in modules if f"python -m benchmarks.{name} " not in " ".join(done.stdout.split())] == []


def test_a_training_that_a_signal_ended_has_no_result() -> None:
    whole = Namespace(path=Path("runs/x"), stopped_by=None)
    assert table.completed(whole) is whole
    with pytest.raises(SystemExit, match="x was stopped by SIGTERM; start the benchmark again to continue"):
        table.completed(Namespace(path=Path("runs/x"), stopped_by="SIGTERM"))


# ---------------------------------------------------------------------- teachers and students


def taught(method: str, seed: int, test: float, curve: list[tuple[int, float]], rmse: float | None) -> dict[str, Any]:
    return {
        "method": method, "task": "Hopper-v5", "seed": seed, "total_steps": 80, "test_return": test, "seconds": 2.0,
        "env_steps": 100, "curve": curve, "rmse": rmse,
    }  # fmt: skip


def test_students_are_compared_with_the_teacher_of_their_seed() -> None:
    results = [
        taught("teacher", 0, 100.0, [], None),
        taught("teacher", 1, 200.0, [], None),
        taught("estimator-tppo", 0, 100.0, [(22, 10.0), (44, 90.0), (80, 95.0)], 0.5),
        taught("estimator-tppo", 1, 100.0, [(22, 20.0), (44, 100.0), (80, 105.0)], 0.25),
    ]
    assert teacher.soon(results[2:], {0: 100.0, 1: 200.0}) == [44, None]
    assert teacher.soon(results[2:], {0: 90.0, 1: 20.0}) == [44, 22]
    assert teacher.value_at(results[2]["curve"], 40) == 90.0  # a rollout later
    assert teacher.value_at(results[2]["curve"], 20) == 10.0
    assert teacher.value_at(results[2]["curve"], 100) is None  # the training was shorter
    expected = (
        "| TPPO, velocity estimated | 15 ± 7 | 95 ± 7 | 100 ± 7 | **100 ± 0** | 75 ± 35 % | 0k (1 of 2 seeds) | "
        "0.375 ± 0.177 | 50 | 0, 1 |"
    )
    assert expected in teacher.tables(results)
    assert [teacher.first(x) for x in ([], [None], [40_000, 60_000], [None, 40_000])] == [
        "-", "never (0 of 1 seeds)", "50k", "40k (1 of 2 seeds)",
    ]  # fmt: skip


def test_the_teacher_of_a_seed_comes_before_its_students(tmp_path: Path) -> None:
    words = ("--table", "hidden-velocity", "--tasks", "Hopper-v5", "--methods", "tppo", "ppo", "--seeds", "0", "1")
    question = teacher.Teacher(table.parse(teacher.Teacher, [*words, "--runs", str(tmp_path)]))
    jobs = question.jobs()
    assert [(job.method, job.seed) for job in jobs] == [
        ("teacher", 0), ("tppo", 0), ("ppo", 0), ("teacher", 1), ("tppo", 1), ("ppo", 1),
    ]  # fmt: skip
    assert jobs[0].total_steps == jobs[1].teacher_steps == 1_000_000
    assert question.teacher(jobs[0]) == question.teacher(jobs[1])
    config = question.config(jobs[1])
    assert config.parts["teacher"].checkpoints == (str(question.teacher(jobs[0])),)
    # a known teacher whose run is gone is trained again, where a student asks for it
    (question.teacher(jobs[3])).mkdir(parents=True)
    (question.teacher(jobs[3]) / "evaluation.json").touch()
    known = {job.key: {} for job in (jobs[0], jobs[3])}
    first, second = question.stages(jobs, known)
    assert ([job.seed for job in first], list(known)) == ([0, 1], [jobs[3].key])
    assert list(second) == [jobs[k] for k in (1, 2, 4, 5)]


# ---------------------------------------------------------------------- imitation


def imitation_question(*words: str) -> imitation.Imitation:
    return imitation.Imitation(table.parse(imitation.Imitation, words))


def imitation_result(job: Any, score: float) -> dict[str, Any]:
    return {
        "key": job.key, **vars(job), "revision": "abc", "test_return": score, "test_std": 0.0, "test_length": 1000.0,
        "seconds": 120.0, "asked_steps": 0.0, "curve": [(0, 0.0), (10, score)],
    }  # fmt: skip


def test_imitation_table_is_in_percent_of_the_expert(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    question = imitation_question("--tasks", "Hopper-v5", "--methods", "bc", "gail", "--seeds", "0", "1")
    expert, *jobs = question.jobs()
    assert [(job.method, job.seed, job.total_steps) for job in jobs] == [
        ("bc", 0, 0), ("bc", 1, 0), ("gail", 0, 1_000_000), ("gail", 1, 1_000_000),
    ]  # fmt: skip
    results = [imitation_result(expert, 2000.0), *(imitation_result(job, x) for job, x in zip(jobs, (1900.0, 2000.0)))]
    text = question.report(results)
    assert "| Hopper-v5 | expert (PPO) | 0 | **2000** | 100.0 % | 2 min | - | - |" in text
    assert "| Hopper-v5 | BC | 0, 1 | **1950 ± 71** | 97.5 % (95.0 %) | 2 min | 2243 ± 32 (85 %) | - |" in text
    assert "| Hopper-v5 | GAIL | - | - | - | - | 2671 ± 82 (102 %) | 1761 |" in text
    question.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_imitation_sweep_has_a_column_for_each_number_of_episodes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("--tasks", "Hopper-v5", "--methods", "bc", "--seeds", "0", "1", "--trajectories", "1", "25")
    question = imitation_question(*words)
    expert, *jobs = question.jobs()
    scores = {1: 500.0, 25: 1000.0}
    results = [imitation_result(expert, 1000.0), *(imitation_result(job, scores[job.trajectories]) for job in jobs)]
    text = question.report(results)
    assert "| task | method | 1 episode | 25 episodes |" in text
    assert "| Hopper-v5 | BC | 50.0 % (50.0 %) | 100.0 % (100.0 %) |" in text
    question.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_few_episodes_get_as_many_gradient_steps() -> None:
    from understudy.runs.config import OfflineConfig

    few = imitation.as_many_steps(OfflineConfig(epochs=100, patience=20), 5)
    assert (few.epochs, few.patience) == (500, 100)
    assert imitation.as_many_steps(OfflineConfig(epochs=100, patience=None), 25).patience is None


# ---------------------------------------------------------------------- motion


def moved(method: str, seed: int, score: float, energy: float) -> dict[str, Any]:
    points = [] if method == "ppo" else [(8, 0.5), (16, 0.25)]
    return {
        "task": "cheetah", "method": method, "seed": seed, "test_return": score, "energy": energy, "frechet": 4.0,
        "frequency": 3.0, "duty": [0.5, 0.25], "phase": [0.0, 0.75], "revision": "abc1234", "saturated": points,
    }  # fmt: skip


CLIPS = {"energy": 0.01, "frechet": 0.1, "frequency": 2.5}


def motion_question(folder: Path, task: str, *words: str) -> motion.Motion:
    places = ("--output", str(folder / "results"), "--runs", str(folder / "runs"))
    return motion.Motion(table.parse(motion.Motion, ["--task", task, *places, *words]))


def write_motion(question: motion.Motion, rows: list[dict[str, Any]]) -> Path:
    question.results.mkdir()
    stored = question.results / f"{question.name}.json"
    stored.write_text(json.dumps({"clips": CLIPS, "runs": rows}))
    return stored


def test_motion_table_has_shares_of_ppo_over_the_same_seeds(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    question = motion_question(tmp_path, "cheetah", "--seeds", "1", "2")
    results = [moved("ppo", 1, 100.0, 0.8), moved("ppo", 2, 300.0, 0.4), moved("appo-0.3", 1, 95.0, 0.2)]
    write_motion(question, [])
    text = question.report(results)
    # of PPO's seed 1 alone: 95 / 100 and 0.2 / 0.8
    assert "| appo-0.3 | 1 | 95 | 95 % | 0.200 | 25 % | 4.00 | 100 % | 3.00 | 0.50, 0.25 | 0.75 | 0.250 |" in text
    assert "| ppo | 1, 2 | 200 ± 141 | 100 % | 0.600 ± 0.283 |" in text
    assert "| atppo-0.5 | none | - |" in text
    assert "| other clips | | | | 0.010 | | 0.10 | | 2.50 |" in text


def test_a_motion_table_keeps_clips_and_runs_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setattr(pictures, "draw", lambda *_: None)
    words = ("--methods", "ppo", "--total-steps", "16", "--episodes", "1")
    larger = motion_question(tmp_path, "cheetah", *words, "--seeds", "1", "2")
    rows = [{"key": job.key, **moved("ppo", job.seed, 100.0, 0.5)} for job in larger.jobs()]
    stored = write_motion(larger, rows)
    smaller = motion_question(tmp_path, "cheetah", *words, "--seeds", "2", "--report-only")
    assert "| ppo | 2 | 100 |" in table.answer(smaller)
    assert json.loads(stored.read_text()) == {"clips": CLIPS, "runs": rows}


def test_motion_jobs_come_seed_by_seed_and_know_their_folder(tmp_path: Path) -> None:
    words = ("--seeds", "3", "4", "--methods", "ppo", "appo-0.5", "--total-steps", "16")
    question = motion_question(tmp_path, "ant", *words)
    jobs = question.jobs()
    assert [(job.method, job.seed) for job in jobs] == [("ppo", 3), ("appo-0.5", 3), ("ppo", 4), ("appo-0.5", 4)]
    assert question.folder(jobs[1]).parts[-3:] == ("runs", "ant", "appo-0.5-seed-3-steps-16")
    config = question.config(jobs[1])
    assert (config.env.id, config.seed, config.ppo.reward_weight) == ("Ant-v5", 3, 0.5)
    assert gait.TASKS["ant"].joints["ankle_4"] == 12
    assert table.curve([{"step": 1, "x": 0.5}, {"step": 2}, {"step": 3, "x": 1.5}], "x") == [(1, 0.5), (3, 1.5)]
    with pytest.raises(SystemExit):
        motion_question(tmp_path, "ant", "--methods", "atppo-0.5")


def test_blends_and_starts_are_in_a_method_s_name(tmp_path: Path) -> None:
    question = motion_question(tmp_path, "cheetah", "--total-steps", "100")
    plain, starts = (
        question.config(motion.Job(task="cheetah", method=method, seed=1, total_steps=100, episodes=1))
        for method in ("appo-0.3", "appo-0.3-rsi")
    )
    assert plain.ppo.reward_weight == 0.3
    assert plain.parts["motion"].reward_weight == 0.7
    assert (plain.env.id, starts.env.id) == ("HalfCheetah-v5", motion.FROM_CLIPS)
    assert starts.ppo == plain.ppo


def test_a_go1_is_posed_by_what_its_observations_tell() -> None:
    pytest.importorskip("imageio")
    frames = np.zeros((2, 123))
    frames[:, go1_replay.GRAVITY], frames[:, go1_replay.VELOCITY] = (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)
    frames[:, go1_replay.TURNING] = (0.0, 0.0, 0.5 * np.pi / go1_replay.STEP_TIME)  # a quarter turn each step
    frames[1, go1_replay.JOINTS.start] = 0.25
    pose = go1_replay.poses(frames)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(pose[:, :3], [[0.0, 0.02, 0.0], [-0.02, 0.02, 0.0]], atol=1e-12)
    np.testing.assert_allclose(pose[:, 3:7], [[half, 0.0, 0.0, half], [0.0, 0.0, 0.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(pose[:, 7:9], [[0.1, 0.9], [0.35, 0.9]])
    # nose down by 30 degrees, then on its right side by as much: gravity is minus the rotation's last row
    frames[:, go1_replay.TURNING] = 0.0
    frames[:, go1_replay.GRAVITY] = [[0.5, 0.0, -np.sqrt(0.75)], [0.0, -0.5, -np.sqrt(0.75)]]
    angle = np.pi / 12.0
    expected = [[np.cos(angle), 0.0, np.sin(angle), 0.0], [np.cos(angle), np.sin(angle), 0.0, 0.0]]
    np.testing.assert_allclose(go1_replay.poses(frames)[:, 3:7], expected, atol=1e-12)
    turned = go1_replay.rotations(*(np.array([x]) for x in (0.4, -0.3, 2.0)))[0]
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    w, x, y, z = go1_replay.quaternions(*(np.array([a]) for a in (0.4, -0.3, 2.0)))[0]
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    np.testing.assert_allclose(turned, rows, atol=1e-12)


def test_a_go1_s_gait_is_measured_from_its_observations() -> None:
    pytest.importorskip("envpool")
    import understudy as us

    config = us.recipes.go1_trot()
    env = replace(config.env, num_envs=2)
    made = env.make("cpu", 0)
    policy = us.ActorCritic(made.observation_space, made.action_space, config.policy)
    made.close()
    played = gait.play(gait.TASKS["go1"], policy, env, 2, 0)
    assert len(played.scores) == 2
    for clip, contact in zip(played.frames, played.contact):
        assert (clip.shape[1], contact.shape[1], contact.dtype) == (24, 4, bool)
        assert len(clip) == len(contact)
        assert contact.any()  # it falls, but stands first


def test_films_stand_side_by_side(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    image = pytest.importorskip("PIL.Image")
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
