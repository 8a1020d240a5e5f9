"""Tianshou's words over our formulas: the numbers that Tianshou 1.2.0 gave, and Tianshou itself if it is installed."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from understudy.interop import tianshou as ours
from understudy.interop.tianshou.batches import PlainBatch

NUMBERS = Path(__file__).with_name("tianshou_numbers.json")
ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "dual_clip": {"dual_clip": 1.5, "eps_clip": 0.05},
    "value_clip": {"value_clip": True, "eps_clip": 0.02},
    "recompute_advantage": {"recompute_advantage": True, "max_batchsize": 7},
    "advantage_normalization": {"advantage_normalization": False},
    "reward_normalization": {"reward_normalization": True},
    "max_grad_norm": {"max_grad_norm": 0.1},
    "both": {"reward_normalization": True, "recompute_advantage": True},
    "returns": {"gae_lambda": 0.7, "discount_factor": 0.8, "vf_coef": 0.9, "ent_coef": 0.1},
}
BOX, DISCRETE = spaces.Box(-2.0, 3.0, (2,)), spaces.Discrete(2)


def wave(*shape: int, start: float = 0.0) -> Tensor:
    return torch.sin(torch.arange(int(np.prod(shape)), dtype=torch.float64) * 1.7 + start).reshape(shape)


class Net(nn.Module):
    """A network with fixed weights, as actors, critics and discriminators there are called."""

    max_action, device = 1.0, "cpu"

    def __init__(self, size: int, out: int, std: bool = False) -> None:
        super().__init__()
        self.output_dim, self.std = out, std
        self.hidden, self.out = nn.Linear(size, 8).double(), nn.Linear(8, out).double()
        self.log_std = nn.Parameter(wave(out) / 3) if std else None
        for k, layer in enumerate((self.hidden, self.out)):
            layer.weight.data, layer.bias.data = wave(*layer.weight.shape, start=k) / 2, wave(*layer.bias.shape) / 2

    def values(self, obs: Any) -> Tensor:
        return self.out(self.hidden(torch.as_tensor(obs, dtype=torch.float64)).tanh())

    def forward(self, obs: Any, act: Any = None, info: Any = None) -> Any:
        return self.values(obs)


class Actor(Net):
    def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
        out = self.values(obs)
        return (out if self.log_std is None else (out, self.log_std.exp().expand_as(out))), state


class Expert:
    """The first rows of some data, so that nothing is drawn at random."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def sample(self, batch_size: int) -> Any:
        return self.batch[np.arange(batch_size)], np.arange(batch_size)

    def unfinished_index(self) -> np.ndarray:
        return np.array([11, 23])


def data(discrete: bool, start: float = 0.0, rows: int = 24) -> dict[str, np.ndarray]:
    obs = wave(rows + 1, 3, start=start).numpy()
    act = (np.arange(rows) * 7 % 3 > 1).astype(int) if discrete else wave(rows, 2, start=3 + start).numpy()
    end = {"terminated": np.arange(rows) % 10 == 6, "truncated": np.arange(rows) % 9 == 4}
    return {"obs": obs[:-1], "act": act, "rew": 3 * wave(rows, start=5).numpy(), "obs_next": obs[1:], **end}


def train(source: Any, case: str, discrete: bool, gail: bool, buffer: Any, expert: Any = None) -> dict[str, Any]:
    """Two updates of two passes, each over the whole batch; losses, gradients and weights."""
    actor, critic = Actor(3, 2, std=not discrete), Net(3, 1)
    parameters = [*actor.parameters(), *critic.parameters()]
    if gail:
        disc_net = Net(5, 1)
        adversary = {
            "expert_buffer": expert,
            "disc_net": disc_net,
            "disc_optim": torch.optim.SGD(disc_net.parameters(), lr=0.1),
            "disc_update_num": 1,
        }
        parameters += disc_net.parameters()
    policy = (source.GAILPolicy if gail else source.PPOPolicy)(
        actor=actor,
        critic=critic,
        optim=torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1),
        dist_fn=(lambda x: Categorical(logits=x)) if discrete else (lambda x: Independent(Normal(*x), 1)),
        action_space=DISCRETE if discrete else BOX,
        action_scaling=not discrete,
        **OPTIONS[case],
        **(adversary if gail else {}),
    )
    policy.is_within_training_step = True
    found: dict[str, Any] = {}
    for k in range(2):
        stats = policy.update(0, buffer, batch_size=None, repeat=2)
        for name, number in stats.get_loss_stats_dict().items():
            found[f"{name} {k}"] = number
        found[f"std of vf_loss {k}"] = stats.vf_loss.std
    for name, tensors in (("grad", [x.grad for x in parameters]), ("data", [x.data for x in parameters])):
        found[name] = [float((x * wave(*x.shape)).sum()) for x in tensors]
    return found


def clone(source: Any, discrete: bool, batch: Any) -> dict[str, Any]:
    actor = Actor(3, 2)
    policy = source.ImitationPolicy(
        actor=actor, optim=torch.optim.SGD(actor.parameters(), lr=0.1), action_space=DISCRETE if discrete else BOX
    )
    losses = [policy.learn(batch).loss for _ in range(3)]
    return {"losses": losses, "data": [float((x.data * wave(*x.shape)).sum()) for x in actor.parameters()]}


CASES = [
    *itertools.product(["ppo"], OPTIONS, [False, True]),
    *itertools.product(["gail"], OPTIONS, [False]),
    *itertools.product(["clone"], ["defaults"], [False, True]),
]


@pytest.mark.parametrize(("kind", "case", "discrete"), CASES)
def test_plain_data_give_the_numbers_of_the_original(kind: str, case: str, discrete: bool) -> None:
    """Losses and gradients; the tolerance is that of the original's ratios, which it rounds to float32."""
    batch = data(discrete)
    if kind == "clone":
        found = clone(ours, discrete, SimpleNamespace(**batch))
    else:
        expert = Expert(ours.as_batch(data(discrete, start=9.0)))
        found = train(ours, case, discrete, kind == "gail", batch, expert)
    expected = json.loads(NUMBERS.read_text())[f"{kind} {case} {discrete}"]
    assert set(found) == set(expected)
    for name, number in expected.items():
        assert found[name] == pytest.approx(number, rel=1e-6, abs=1e-7), name


def original_numbers() -> dict[str, Any]:
    """What Tianshou itself gives: the content of tianshou_numbers.json."""
    import tianshou.policy
    from tianshou.data import Batch, ReplayBuffer

    found = {}
    for kind, case, discrete in CASES:
        rows, buffer = data(discrete), ReplayBuffer(24)
        for k in range(24):
            buffer.add(Batch({name: x[k] for name, x in rows.items()} | {"info": {}}))
        if kind == "clone":
            numbers = clone(tianshou.policy, discrete, Batch(rows, info=Batch()))
        else:
            expert = Expert(Batch(data(discrete, start=9.0)))
            numbers = train(tianshou.policy, case, discrete, kind == "gail", buffer, expert)
        found[f"{kind} {case} {discrete}"] = numbers
    return found


needs_tianshou = pytest.mark.skipif(importlib.util.find_spec("tianshou") is None, reason="tianshou is not installed")


@needs_tianshou
def test_the_numbers_are_those_of_the_original_installed() -> None:
    kept = json.loads(NUMBERS.read_text())
    for name, numbers in original_numbers().items():
        for key, number in numbers.items():
            assert kept[name][key] == pytest.approx(number, rel=1e-9, abs=1e-12), (name, key)


@needs_tianshou
def test_the_example_trains_the_same_weights_with_the_import_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collector, vector buffer, trainer and modules of Tianshou; shuffled minibatches, two steps of the adversary."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "coming_from")
    import tianshou_after
    import tianshou_before

    before, after = (module.main(epochs=1, steps=200) for module in (tianshou_before, tianshou_after))
    assert type(before).__module__.startswith("tianshou")
    assert isinstance(after, ours.GAILPolicy)
    from tianshou.policy import BasePolicy

    assert isinstance(after, BasePolicy)
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=2e-5)
    after.load_state_dict(before.state_dict())


@needs_tianshou
def test_offline_imitation_in_the_trainer_of_the_original() -> None:
    """OfflineTrainer, schedulers of several optimizers, and a test collector; the same seed, the same weights."""
    import gymnasium
    import tianshou.policy
    from tianshou.data import Batch, Collector, ReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OfflineTrainer
    from tianshou.utils import MultipleLRSchedulers

    found = []
    for source in (tianshou.policy, ours):
        buffer = ReplayBuffer(24)
        for k in range(24):
            rows = {**data(True), "obs": wave(24, 4).numpy(), "obs_next": wave(24, 4).numpy()}
            buffer.add(Batch({name: x[k] for name, x in rows.items()} | {"info": {}}))
        actor = Actor(4, 2)
        optim = torch.optim.Adam(actor.parameters(), lr=0.01)
        schedule = MultipleLRSchedulers(torch.optim.lr_scheduler.StepLR(optim, 3, 0.5))
        envs = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")])
        envs.seed(0)
        policy = source.ImitationPolicy(
            actor=actor, optim=optim, action_space=envs.action_space[0], lr_scheduler=schedule
        )
        trainer = OfflineTrainer(
            policy=policy, buffer=buffer, test_collector=Collector(policy, envs), max_epoch=2, step_per_epoch=5,
            batch_size=8, episode_per_test=1, show_progress=False,
        )  # fmt: skip
        assert trainer.run().gradient_step == 10
        assert optim.param_groups[0]["lr"] == pytest.approx(0.01 / 8)
        found.append(list(actor.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-9)


def test_the_examples_differ_in_the_import_alone() -> None:
    before, after = (
        (ROOT / "examples" / "coming_from" / f"tianshou_{name}.py").read_text().splitlines()
        for name in ("before", "after")
    )
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    of_code = [(a, b) for a, b in changed if not a.startswith(('"""', "    python examples"))]
    assert of_code == [("from tianshou.policy import GAILPolicy", "from understudy.interop.tianshou import GAILPolicy")]


def imitation(space: spaces.Space[Any], **options: Any) -> Any:
    actor = Actor(3, 2)
    optim = torch.optim.SGD(actor.parameters(), lr=0.1)
    return ours.ImitationPolicy(actor=actor, optim=optim, action_space=space, **options)


def ppo(discrete: bool = False, **options: Any) -> Any:
    actor, critic = Actor(3, 2, std=not discrete), Net(3, 1)
    optim = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1)
    chosen = {
        "dist_fn": (lambda x: Categorical(logits=x)) if discrete else (lambda x: Independent(Normal(*x), 1)),
        "action_space": DISCRETE if discrete else BOX,
        "action_scaling": not discrete,
    }
    return ours.PPOPolicy(actor=actor, critic=critic, optim=optim, **chosen | options)


def test_map_action_clips_to_one_without_scaling_too() -> None:
    raw = torch.tensor([[-4.0, 0.5]])
    for options, expected in (
        ({}, [[-1.0, 0.5]]),
        ({"action_scaling": True}, [[-2.0, 1.75]]),
        ({"action_bound_method": "tanh"}, raw.tanh()),
        ({"action_bound_method": None}, raw),
        ({"action_scaling": True, "action_bound_method": "tanh"}, -2.0 + 2.5 * (np.tanh(raw.numpy()) + 1.0)),
    ):
        policy = imitation(BOX, **options)
        mapped = policy.map_action(raw)
        np.testing.assert_allclose(mapped, expected, rtol=1e-6)
        if options and policy.action_bound_method != "clip":
            np.testing.assert_allclose(policy.map_action_inverse(mapped), raw, rtol=1e-3)
    np.testing.assert_allclose(
        imitation(BOX, action_scaling=True).map_action_inverse(np.array([-2.0, 1.75])), [-1, 0.5]
    )
    assert imitation(DISCRETE).map_action(torch.tensor([1, 0])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="action_bound_method"):
        imitation(BOX, action_scaling=True, action_bound_method=None).map_action(raw)


def test_a_single_observation_gives_an_action_for_the_environment() -> None:
    assert imitation(DISCRETE).compute_action(np.zeros(3)) in (0, 1)
    action = imitation(BOX, action_scaling=True).compute_action(np.zeros(3))
    assert action.astype(np.float32) in BOX


def test_statistics_of_a_sequence() -> None:
    stats = ours.SequenceSummaryStats.from_sequence([1.0, 2.0, 6.0])
    assert (stats.mean, stats.max, stats.min) == (3.0, 6.0, 1.0)
    assert stats.std == pytest.approx(np.std([1, 2, 6]))
    assert ours.SequenceSummaryStats.from_sequence([]).std == 0.0
    told = ours.PPOTrainingStats(loss=stats, clip_loss=stats, vf_loss=stats, ent_loss=stats, gradient_steps=7)
    assert told.get_loss_stats_dict() == {
        "loss": 3.0, "clip_loss": 3.0, "vf_loss": 3.0, "ent_loss": 3.0, "gradient_steps": 7
    }  # fmt: skip


def test_evaluation_takes_the_mode_and_training_samples() -> None:
    policy = ppo(deterministic_eval=True)
    batch = {"obs": np.zeros((64, 3))}
    out = policy(batch)
    assert torch.equal(out.act, out.dist.mode)
    assert out.state is None
    policy.is_within_training_step = True
    assert policy(batch).act.std(0).min() > 0.1


def test_an_update_steps_the_schedule_and_restores_the_mode() -> None:
    policy = imitation(BOX)
    policy.lr_scheduler = torch.optim.lr_scheduler.StepLR(policy.optim, 1, 0.5)
    policy.eval()
    stats = policy.update(8, data(False))
    assert policy.optim.param_groups[0]["lr"] == 0.05
    assert stats.train_time > 0.0
    assert (policy.training, policy.updating) == (False, False)
    assert policy.update(8, None) == ours.TrainingStats()


def test_advantages_stop_where_the_rows_of_another_environment_begin() -> None:
    batch = {**data(False), "terminated": np.zeros(24, bool), "truncated": np.zeros(24, bool)}
    whole = ppo().process_fn(batch, Expert(None), np.arange(24))
    half = ppo().process_fn({name: x[:12] for name, x in batch.items()})
    torch.testing.assert_close(whole.adv[:12], half.adv)
    assert not torch.equal(ppo().process_fn(batch).adv[:12], half.adv)


def test_discrete_actions_enter_the_discriminator_one_hot() -> None:
    """The published class raises there: it joins `[n, 3]` and `[n]`."""
    rows: list[Tensor] = []
    disc_net = Net(5, 1)
    disc_net.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0]))
    policy = gail(disc_net, expert_buffer=data(True, start=9.0))
    policy.update(0, data(True), batch_size=8, repeat=1)
    torch.testing.assert_close(rows[0][:, 3:], nn.functional.one_hot(torch.as_tensor(data(True)["act"]), 2).double())


def gail(disc_net: nn.Module, **options: Any) -> Any:
    actor, critic = Actor(3, 2), Net(3, 1)
    chosen = {
        "optim": torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1),
        "disc_optim": torch.optim.SGD(disc_net.parameters(), lr=0.1),
        "dist_fn": lambda x: Categorical(logits=x),
        "action_space": DISCRETE,
        "action_scaling": False,
        "expert_buffer": data(True),
    }
    return ours.GAILPolicy(actor=actor, critic=critic, disc_net=disc_net, **chosen | options)


def test_the_discriminator_learns_to_tell_and_rewards_what_looks_like_the_expert() -> None:
    torch.manual_seed(0)
    policy = gail(Net(5, 1), disc_update_num=8, expert_buffer={**data(True), "act": np.ones(24, int)})
    policy.disc_optim.param_groups[0]["lr"] = 1.0
    batch = {**data(True), "act": np.zeros(24, int)}
    for _ in range(40):
        stats = policy.update(0, batch, batch_size=None, repeat=1)
    assert stats.acc_pi.mean == stats.acc_exp.min == 1.0
    assert stats.disc_loss.mean < 0.2
    like, unlike = (policy.process_fn({**batch, "act": np.full(24, k)}).rew for k in (1, 0))
    assert like.min() > 2.0 > 0.2 > unlike.max()


@pytest.mark.parametrize("size", [-1, 1, 4, 5, 7, 24, 30])
def test_plain_parts_hold_every_row_once(size: int) -> None:
    batch = PlainBatch({"act": np.arange(24), "info": None})
    parts = list(batch.split(size, merge_last=True))
    assert sorted(np.concatenate([part.act for part in parts])) == list(range(24))
    assert all(len(part.act) >= min(size, 24) for part in parts)
    assert [len(part.act) for part in batch.split(5, shuffle=False)] == [5, 5, 5, 5, 4]


class EmptyBuffer:
    """Tianshou's before anything was added: it can be asked, and has a length."""

    def __len__(self) -> int:
        return 0

    def sample(self, batch_size: int) -> Any:
        raise KeyError("obs")

    def unfinished_index(self) -> Any:
        return np.array([], int)


def test_bad_input_is_one_sentence() -> None:
    def refuses(words: str, call: Any) -> None:
        with pytest.raises(ValueError, match=words):
            call()

    refuses("action_bound_method must be", lambda: imitation(BOX, action_bound_method="none"))
    refuses("action_scaling is for a Box", lambda: imitation(DISCRETE, action_scaling=True))
    refuses("act in a Box or in discrete", lambda: imitation(spaces.Text(3)))
    refuses("dual_clip must be greater", lambda: ppo(dual_clip=0.5))
    refuses("gae_lambda must lie", lambda: ppo(gae_lambda=1.5))
    refuses("eps_clip must be", lambda: ppo(eps_clip=-0.1))
    refuses("disc_update_num must be", lambda: gail(Net(5, 1), disc_update_num=0))
    refuses("25 steps", lambda: gail(Net(5, 1), disc_update_num=25).update(0, data(True), batch_size=8, repeat=1))
    batch = data(False)
    refuses("has no obs_next", lambda: ppo().process_fn({k: x for k, x in batch.items() if k != "obs_next"}))
    refuses("has no adv, returns, v_s, logp_old", lambda: ppo().learn(batch, 8, 1))
    refuses(r"wrap a Normal", lambda: ppo(dist_fn=lambda x: Normal(*x)).process_fn(batch))
    refuses("one shape", lambda: imitation(BOX).learn({**batch, "act": batch["act"][:, :1]}))
    refuses("has no rows", lambda: ppo().process_fn({k: x[:0] for k, x in batch.items()}))
    refuses(
        "same number of rows, got .*24.*23",
        lambda: imitation(BOX).learn({**batch, "act": batch["act"][1:]}),
    )
    refuses("got 'expert.hdf5': load a file with ReplayBuffer", lambda: gail(Net(5, 1), expert_buffer="expert.hdf5"))
    refuses("the buffer has no rows", lambda: gail(Net(5, 1), expert_buffer=EmptyBuffer()))
    nested = {**data(True), "obs": {"a": batch["obs"]}}
    refuses("these are nested", lambda: gail(Net(5, 1)).disc(nested))
    spoilt = ppo()
    refuses("not finite", lambda: spoilt.update(0, {**batch, "rew": np.full(24, np.nan)}, batch_size=8, repeat=1))
    assert all(x.isfinite().all() for x in spoilt.parameters())
    refuses("one shape", lambda: ppo().process_fn({**batch, "rew": np.zeros((24, 2))}))
