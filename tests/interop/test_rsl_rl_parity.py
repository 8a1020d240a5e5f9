"""Whole iterations of `from_config`'s PPO equal those of rsl_rl 5.4.2, whose weights are kept in `rsl_rl_weights.json`.

`python -m tests.interop.test_rsl_rl_parity` writes them anew, where rsl_rl is installed.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tests.interop.rsl_rl_simulator import Simulator
from torch import Tensor

from understudy.interop.rsl_rl import Runner
from understudy.ppo.ppo import PPO

KEPT = Path(__file__).with_name("rsl_rl_weights.json")
SIZES = {"policy": 5, "critic": 7}
ITERATIONS, STEPS, ENVS = 3, 8, 12
MODEL = {"class_name": "MLPModel", "hidden_dims": [16, 8], "activation": "elu"}
NOISE = {"class_name": "GaussianDistribution", "init_std": 0.8, "std_type": "log"}


def mirror(env: Any, obs: TensorDict | None, actions: Tensor | None) -> tuple[Any, Any]:
    """The first two entries of each group change places, the third its sign; so do both actions."""
    if obs is not None:
        image = obs.clone()
        for name in SIZES:
            x = obs[name]
            image[name] = torch.cat((x[:, [1, 0]], -x[:, 2:3], x[:, 3:]), dim=-1)
        obs = torch.cat((obs, image))
    return obs, None if actions is None else torch.cat((actions, -actions))


def memory(kind: str, **options: Any) -> dict[str, Any]:
    model = {"class_name": "RNNModel", "rnn_type": kind, "rnn_hidden_dim": 6, "hidden_dims": [8], **options}
    return {"actor": model, "critic": model}


SYMMETRY = {"data_augmentation_func": mirror, "mirror_loss_coeff": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fixed": {"schedule": "fixed", "learning_rate": 3e-3},
    "adaptive": {"desired_kl": 1e-3, "num_learning_epochs": 3},
    "adaptive-up": {"desired_kl": 0.5, "num_learning_epochs": 3},
    "unclipped-value": {"use_clipped_value_loss": False, "value_loss_coef": 0.3},
    "tight-clip": {"clip_param": 0.02, "learning_rate": 5e-3, "schedule": "fixed"},
    "clipped-gradients": {"max_grad_norm": 0.05},
    "loose-gradients": {"max_grad_norm": 100.0},
    "minibatch-advantages": {"normalize_advantage_per_mini_batch": True},
    "discount": {"gamma": 0.9, "lam": 0.8, "entropy_coef": 0.1},
    "no-entropy": {"entropy_coef": 0.0, "num_mini_batches": 3},
    "adamw": {"optimizer": "adamw", "schedule": "fixed"},
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-2},
    "rmsprop": {"optimizer": "rmsprop", "schedule": "fixed", "learning_rate": 1e-4},
    "tanh": {"actor": {"activation": "tanh"}, "critic": {"activation": "tanh"}},
    "other-critic": {"critic": {"hidden_dims": [32]}},
    "scalar-std": {"actor": {"distribution_cfg": {**NOISE, "std_type": "scalar"}}, "entropy_coef": 0.05},
    "fixed-std": {"actor": {"distribution_cfg": {**NOISE, "learn_std": False}}},
    "lstm": memory("lstm"),
    "gru": {**memory("gru"), "desired_kl": 1e-3},
    "gru-two-layers": memory("gru", rnn_num_layers=2),
    "mirror-loss": {"symmetry_cfg": {**SYMMETRY, "use_mirror_loss": True}},
    "augmentation": {"symmetry_cfg": {**SYMMETRY, "use_data_augmentation": True}, "use_clipped_value_loss": False},
}


def train_cfg(case: str) -> dict[str, Any]:
    given = dict(CASES[case])
    actor = {**MODEL, "distribution_cfg": NOISE, **given.pop("actor", {})}
    critic = {**MODEL, **given.pop("critic", {})}
    algorithm = {"class_name": "PPO", "num_learning_epochs": 2, "num_mini_batches": 4, **given}
    return {
        "num_steps_per_env": STEPS,
        "max_iterations": ITERATIONS,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy", "critic"]},
        "actor": actor,
        "critic": critic,
        "algorithm": algorithm,
    }


@contextmanager
def one_order(recurrent: bool) -> Iterator[None]:
    """rsl_rl draws one order of rows for all epochs, and none of sequences: so do both here."""
    original = torch.randperm

    def randperm(count: int, **options: Any) -> Tensor:
        if recurrent:
            return torch.arange(count)
        return original(count, generator=torch.Generator().manual_seed(count))

    torch.randperm = randperm
    try:
        yield
    finally:
        torch.randperm = original


def ours(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """First and last weights, under rsl_rl's names, and the actions of all steps."""
    torch.manual_seed(0)
    env = Recording(ENVS, SIZES, gives_final=False)
    runner = Runner(env, train_cfg(case))
    first = renamed(runner.alg.ppo)
    with one_order("actor.rnn.rnn.weight_ih_l0" in first), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # time limits bootstrap from V(s_t), as there
        runner.learn(ITERATIONS)
    return first, renamed(runner.alg.ppo), env.actions


class Recording(Simulator):
    """Keeps the actions that it gets."""

    def step(self, actions: Tensor) -> Any:
        self.actions = [*vars(self).get("actions", []), actions.clone()]
        return super().step(actions)


def renamed(ppo: PPO) -> dict[str, Tensor]:
    """All weights, under rsl_rl's names."""
    named = {}
    for name, x in ppo.policy.named_parameters():
        side, *rest = name.split(".")
        if name.startswith("head.std"):
            key = f"actor.distribution.{rest[-1]}_param"
        elif side in ("head", "value_head"):
            critic, layers = side == "value_head", 2 * len(ppo.policy.config.hidden_sizes)
            layers = 2 * len(ppo.policy.config.critic_hidden_sizes or ()) if critic else layers
            key = f"{'critic' if critic else 'actor'}.mlp.{layers}.{rest[-1]}"
        elif rest[0] == "memory":
            key = f"{side}.rnn.rnn.{rest[1]}"
        else:
            key = f"{side}.mlp.{rest[-2]}.{rest[-1]}"
        named[key] = x.detach().clone()
    return named


def theirs(case: str, first: dict[str, Tensor], actions: list[Tensor]) -> dict[str, Tensor]:
    """rsl_rl's weights after the same iterations: the same simulator, and it samples the same actions."""
    env = Simulator(ENVS, SIZES, gives_final=False)
    alg = algorithm(case, env)
    give_weights(alg, first)
    with one_order(alg.actor.is_recurrent):
        for i in range(ITERATIONS):
            iterate(alg, env, actions[i * STEPS : (i + 1) * STEPS])
    return weights(alg)


def algorithm(case: str, env: Simulator) -> Any:
    from rsl_rl.algorithms import PPO as RslPPO

    cfg = copy.deepcopy(train_cfg(case)) | {"multi_gpu": None}
    cfg["algorithm"].setdefault("rnd_cfg", None)
    cfg["critic"].pop("distribution_cfg", None)
    return RslPPO.construct_algorithm(env.get_observations(), env, cfg, "cpu")  # type: ignore[arg-type]


def iterate(alg: Any, env: Simulator, actions: list[Tensor]) -> None:
    """One iteration of rsl_rl's runner, which samples these actions."""
    obs = env.get_observations()
    with torch.inference_mode():
        for action in actions:
            alg.actor.distribution.sample = lambda action=action: action
            alg.act(obs)
            obs, rewards, dones, extras = env.step(action)
            alg.process_env_step(obs, rewards, dones, extras)
        alg.compute_returns(obs)
    del alg.actor.distribution.sample
    alg.update()


def weights(alg: Any) -> dict[str, Tensor]:
    named = [*alg.actor.named_parameters(prefix="actor"), *alg.critic.named_parameters(prefix="critic")]
    return {name: x.detach() for name, x in named}


def give_weights(alg: Any, given: dict[str, Tensor]) -> None:
    for side, model in (("actor", alg.actor), ("critic", alg.critic)):
        found = {name: given[f"{side}.{name}"] for name, _ in model.named_parameters() if f"{side}.{name}" in given}
        model.load_state_dict(found, strict=len(found) == len(list(model.parameters())))


@pytest.mark.parametrize("case", CASES)
def test_three_iterations_are_those_of_rsl_rl(case: str) -> None:
    pytest.importorskip("rsl_rl")
    first, last, actions = ours(case)
    expected = theirs(case, first, actions)
    assert difference(last, expected) < 2e-5
    assert difference(first, expected) > 1e-4  # they did move


@pytest.mark.parametrize("case", ["adaptive", "scalar-std"])
def test_each_iteration_of_a_long_training_is_rsl_rls_from_the_same_state(case: str) -> None:
    """Two trainings part by rounding alone, in a clip or the learning rate's steps: so each iteration is compared."""
    pytest.importorskip("rsl_rl")
    torch.manual_seed(0)
    env = Recording(ENVS, SIZES, gives_final=False)
    ppo = Runner(env, train_cfg(case)).alg.ppo
    alg = algorithm(case, env)
    differences = []
    with one_order(recurrent=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # time limits bootstrap from V(s_t), as there
        ppo.collector.reset()
        for _ in range(60):
            twin = copy.deepcopy(env)
            give_weights(alg, renamed(ppo))
            ppo.iterate()
            iterate(alg, twin, env.actions[-STEPS:])
            differences.append(difference(renamed(ppo), weights(alg)))
    assert sorted(differences)[55] < 2e-6  # a sample at a clip's bound may fall on either side
    assert max(differences) < 2e-3


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_that_rsl_rl_had(case: str) -> None:
    kept = json.loads(KEPT.read_text())[case]
    last = ours(case)[1]
    found = {name: [float(x.double().sum()), float(x.double().square().sum())] for name, x in last.items()}
    kept.pop("actor.distribution.log_std_param" if case == "fixed-std" else "", None)  # a weight there
    assert set(kept) == set(found)
    for name, sums in kept.items():
        assert found[name] == pytest.approx(sums, rel=2e-3, abs=2e-4), name


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of a weight, relative to the largest weight of its tensor."""
    shared = [name for name in one if name in other]
    assert len(shared) >= len(one) - 1  # a fixed deviation is a weight there
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max().clamp(min=1e-3)) for n in shared)


if __name__ == "__main__":
    written = {}
    for name in sys.argv[1:] or CASES:
        start, last, played = ours(name)
        expected = theirs(name, start, played)
        print(f"{name:24s} {difference(last, expected):.1e}  moved {difference(start, expected):.1e}")
        written[name] = {
            key: [float(x.double().sum()), float(x.double().square().sum())] for key, x in expected.items()
        }
    if len(written) == len(CASES):
        KEPT.write_text(json.dumps(written, indent=1) + "\n")
