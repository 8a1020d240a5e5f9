from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

import understudy as us
from understudy.core.schedules import Schedule
from understudy.envs.registry import EnvConfig
from understudy.nn.heads import DistributionConfig
from understudy.nn.policy import PolicyConfig
from understudy.parts import PARTS, RandomNetworkDistillationConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.recipes import RECIPES
from understudy.runs.codec import from_plain, to_plain
from understudy.runs.config import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    TrainConfig,
    from_yaml,
    to_yaml,
)


def everything() -> TrainConfig:
    return TrainConfig(
        total_steps=12_345,
        seed=7,
        run_dir="runs/über",
        recipe="mine",
        device="cpu",
        torch_threads=2,
        env=EnvConfig(id="Hopper-v5", groups={"policy": "a", "critic": "a+b"}, kwargs={"x": 1, "y": 0.5, "z": "text"}),
        policy=PolicyConfig(
            hidden_sizes=(256, 128),
            critic_hidden_sizes=(),
            distribution=DistributionConfig(min_std=(0.1, 0.2), max_std=2.0),
        ),
        ppo=PPOConfig(
            clip_epsilon=Schedule(kind="linear", start=0.2, end=0.05),
            entropy_coef=Schedule(kind="piecewise", points=((0, 0.01), (1000, 0.0))),
            optimizer=OptimizerConfig(learning_rate=1e-5, max_grad_norm=None),
        ),
        parts={"curiosity": RandomNetworkDistillationConfig(), "second_2": RandomNetworkDistillationConfig()},
        evaluation=EvaluationConfig(interval=5, episodes=3, deterministic=False, video=True, env_kwargs={"x": False}),
        checkpoint=CheckpointConfig(interval=None, keep_last=1, reset_env=True),
        logging=LoggingConfig(console=False, tensorboard=False, wandb=True, wandb_project="x"),
    )


def test_yaml_reloads_to_an_equal_config() -> None:
    config = everything()
    again = from_yaml(to_yaml(config))
    assert again == config
    assert again.policy.hidden_sizes == (256, 128)
    assert type(again.policy.critic_hidden_sizes) is tuple
    assert type(again.env.kwargs["x"]) is int
    assert to_yaml(again) == to_yaml(config)
    assert "learning_rate: linear" not in to_yaml(config)
    assert "clip_epsilon: linear:0.2:0.05" in to_yaml(config)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_reloads(name: str) -> None:
    config = RECIPES[name]()
    assert config.recipe == name
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("name", sorted(PARTS))
def test_part_configs_carry_their_registered_name(name: str) -> None:
    required = [f for f in dataclasses.fields(PARTS[name]) if f.default is f.default_factory is dataclasses.MISSING]
    if required:
        pytest.skip("has no defaults")
    part = PARTS[name]()
    assert to_plain({"p": part})["p"]["part"] == name
    config = TrainConfig(total_steps=1, env=EnvConfig(id="CartPole-v1"), parts={"p": part})
    assert from_yaml(to_yaml(config)).parts == {"p": part}


def edited(old: str, new: str) -> str:
    text = to_yaml(everything())
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gae_lambda:", "gae_lamda:", r"there is no option ppo\.gae_lamda; did you mean gae_lambda"),
        ("total_steps:", "totl_steps:", r"there is no option totl_steps; did you mean total_steps"),
        ("total_steps: 12345", "", "the config lacks total_steps"),
        ("seed: 7", "seed: 7.5", r"^seed must be a whole number, got 7\.5"),
        ("seed: 7", "seed: true", r"^seed must be a whole number, got True"),
        ("gae_lambda: 0.95", "gae_lambda: high", r"^ppo\.gae_lambda must be a number, got 'high'"),
        ("surrogate: clip", "surrogate: klip", r"^ppo\.surrogate must be one of clip.*did you mean clip"),
        ("wandb: true", "wandb: maybe", "^logging.wandb must be true or false"),
        (
            "hidden_sizes: [256, 128]",
            "hidden_sizes: [256, x]",
            r"^policy\.hidden_sizes\[1\] must be a whole number, got 'x'",
        ),
        ("clip_epsilon: linear:0.2:0.05", "clip_epsilon: liner:0.2:0.05", "did you mean linear"),
        ("part: random-network-distillation", "part: random-network", "did you mean random-network-distillation"),
        ("env:", "env: [", "not valid YAML"),
        ("total_steps: 12345", "total_steps: 0", "total_steps must be at least 1"),
    ],
)
def test_bad_yaml_says_where_and_how_to_mend_it(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_yaml(edited(old, new))


def test_numbers_as_yaml_reads_them() -> None:
    # YAML 1.1 reads 3e-4, without a dot, as text, and 1 as an int
    text = edited("learning_rate: 1.0e-05", "learning_rate: 3e-4").replace("gamma: 0.99", "gamma: 1")
    config = from_yaml(text)
    assert config.ppo.optimizer.learning_rate == 3e-4
    assert type(config.ppo.gamma) is float


def test_a_file_that_moves_the_rate_takes_the_place_of_a_recipe_s_schedule() -> None:
    recipe = us.recipes.ppo("CartPole-v1", total_steps=300_000)
    assert isinstance(recipe.ppo.optimizer.learning_rate, us.Schedule)
    first = recipe.ppo.optimizer.learning_rate.start
    for text in ("ppo: {lr_scheduler: {name: StepLR, options: {step_size: 9}}}", "ppo: {desired_kl: 0.01}"):
        assert from_yaml(text, over=recipe).ppo.optimizer.learning_rate == first
    assert from_yaml("ppo: {epochs: 3}", over=recipe).ppo.optimizer == recipe.ppo.optimizer
    with pytest.raises(ValueError, match="at most one mechanism may change the learning rate"):
        from_yaml("ppo: {desired_kl: 0.01, optimizer: {learning_rate: 'linear:1e-3:0'}}", over=recipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"torch_threads": 0}, "torch_threads must be at least 1, got 0"),
        ({"parts": {"my part": RandomNetworkDistillationConfig()}}, "'my part'; use a plain identifier"),
        ({"parts": {"x": 3}}, "parts must in each entry be a PartConfig, written"),
        ({"env": "CartPole-v1"}, r"EnvConfig\(id=...\), in a file {id: ...}, got 'CartPole-v1'"),
        ({"seed": 1.5}, r"seed must be a whole number, got 1\.5"),
    ],
)
def test_a_config_that_cannot_work_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(everything(), **settings)


def test_nested_configs_check_themselves() -> None:
    for wrong in (
        lambda: EvaluationConfig(interval=0),
        lambda: EvaluationConfig(episodes=-1),
        lambda: CheckpointConfig(interval=0),
        lambda: CheckpointConfig(keep_last=0),
    ):
        with pytest.raises(ValueError, match="must be at least"):
            wrong()


def test_device() -> None:
    assert everything().torch_device().type == "cpu"
    with pytest.raises(ValueError, match=r"'gpu'.*try 'auto' or 'cpu'"):
        dataclasses.replace(everything(), device="gpu").torch_device()


@dataclass(frozen=True, kw_only=True)
class Odd:
    pair: tuple[int, float] = (1, 2.0)
    items: list[str] = field(default_factory=list)
    place: Path = Path("a/b")
    kind: Literal[1, "x"] = 1
    nested: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)


def test_plain_data_of_other_types() -> None:
    odd = Odd(pair=(3, 4.0), items=["a"], place=Path("/x"), kind="x", nested={"a": {"b": (1, 2)}})
    assert from_plain(Odd, to_plain(odd)) == odd
    with pytest.raises(ValueError, match=r"^pair must have 2 values, got \[1\]"):
        from_plain(Odd, {"pair": [1]})
    with pytest.raises(ValueError, match="cannot hold a object, which no config file can"):
        to_plain({"x": object()})


@pytest.mark.parametrize("name", ["kwargs", "my_kwargs", "run_dir", "wandb_project"])
def test_a_part_needs_consent_whatever_its_name(name: str) -> None:
    text = f"total_steps: 1\nenv: {{id: CartPole-v1}}\nparts: {{{name}: {{part: 'no_such_module_of_mine:Config'}}}}\n"
    with pytest.raises(ValueError, match="--allow-import no_such_module_of_mine"):
        from_yaml(text)


def test_a_run_folder_in_the_home_folder_is_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a shell nobody else replaces the ~; a folder called so would be made."""
    monkeypatch.setenv("HOME", "/home/somebody")
    config = TrainConfig(env=EnvConfig(id="CartPole-v1"), total_steps=1, run_dir="~/runs/x")
    assert config.run_dir == "/home/somebody/runs/x"
