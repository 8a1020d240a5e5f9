"""`from_config`: every option of rsl_rl 2 to 5 and of st_rl arrives, and what cannot is named."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensordict import TensorDict
from tests.interop.rsl_rl_simulator import Simulator

import understudy as us
from understudy.core.schedules import Schedule
from understudy.interop.rsl_rl import from_config
from understudy.interop.rsl_rl.st_rl import ALGORITHMS
from understudy.parts.symmetry import MirrorSpec
from understudy.runs.config import TrainConfig, from_yaml, to_yaml

AMP = {
    "input_dim": 6,
    "hidden_dims": [16],
    "style_reward_coef": 2.0,
    "task_reward_lerp": 0.25,
    "discriminator_grad_pen": 5.0,
}
SEGMENTS = {"joints": 3, "velocity": 2}


@dataclasses.dataclass
class Models:
    """Two blocks of a configuration of rsl_rl 5 as dataclasses, as mjlab writes them."""

    @dataclasses.dataclass
    class Model:
        class_name: str = "MLPModel"
        hidden_dims: tuple[int, ...] = (32, 16)
        activation: str = "elu"
        distribution_cfg: dict[str, Any] | None = None
        cnn_cfg: dict[str, Any] | None = None
        rnn_type: str | None = None

    @dataclasses.dataclass
    class Algorithm:
        class_name: str = "PPO"
        num_learning_epochs: int = 3
        entropy_coef: float = 0.005
        rnd_cfg: dict[str, Any] | None = None

    num_steps_per_env: int = 8
    max_iterations: int = 10
    save_interval: int = 5
    seed: int = 42
    obs_groups: dict[str, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: {"actor": ("policy",), "critic": ("policy", "critic")}
    )
    actor: Model = dataclasses.field(
        default_factory=lambda: Models.Model(
            distribution_cfg={"class_name": "GaussianDistribution", "init_std": 0.8, "std_type": "log"}
        )
    )
    critic: Model = dataclasses.field(default_factory=Model)
    algorithm: Algorithm = dataclasses.field(default_factory=Algorithm)


def old(name: str = "PPO", policy: dict[str, Any] | None = None, **algorithm: Any) -> dict[str, Any]:
    """A configuration of st_rl."""
    kind = "StateAc" if name.startswith("Estimator") else "AmpActorCritic" if "APPO" in name or "ATP" in name else ""
    base: dict[str, Any] = {"class_name": kind or "ActorCritic", "obs_segments": SEGMENTS}
    base |= {"actor_hidden_dims": [16], "critic_hidden_dims": [16]}
    if kind == "AmpActorCritic":
        base["amp_discriminator"] = AMP
    if kind == "StateAc":
        base |= {"estimator_obs_components": ["joints"], "estimator_target_components": ["velocity"]}
        base |= {"estimator_kwargs": {"hidden_sizes": [8], "nonlinearity": "CELU"}, "replace_state_prob": 0.5}
    return {
        "num_steps_per_env": 8,
        "max_iterations": 2,
        "policy": base | (policy or {}),
        "algorithm": {"class_name": name, **algorithm},
    }


def value_of(config: TrainConfig, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


def test_a_configuration_of_today_as_a_dict_or_a_dataclass() -> None:
    given = Models()
    config = from_config(given, num_envs=16)
    plain = dataclasses.asdict(given)
    before = copy.deepcopy(plain)
    assert from_config(plain, num_envs=16) == config
    assert plain == before  # rsl_rl consumes it
    assert config.total_steps == 10 * 8 * 16
    assert config.checkpoint.interval == 5 * 8 * 16
    assert config.seed == 42
    assert config.policy.actor_groups == ("policy",)
    assert config.policy.critic_groups == ("policy", "critic")
    assert config.policy.hidden_sizes == (32, 16)
    assert config.policy.init == "default"
    assert config.policy.distribution.head_gain is None
    assert config.policy.distribution.init_std == 0.8
    assert not config.policy.normalize_observations
    assert config.ppo.epochs == 3
    assert config.ppo.minibatches == 4
    assert config.ppo.desired_kl == 0.01
    assert config.ppo.clip_apart
    assert config.ppo.advantage_normalization == "rollout"
    assert config.ppo.optimizer == us.ppo.optim.OptimizerConfig(learning_rate=1e-3, eps=1e-8, max_grad_norm=1.0)
    assert from_yaml(to_yaml(config)) == config


def test_the_defaults_are_those_of_the_version() -> None:
    two = from_config(old())
    assert (two.ppo.epochs, two.ppo.minibatches, two.ppo.gamma, two.ppo.entropy_coef) == (1, 1, 0.998, 0.0)
    assert two.ppo.desired_kl is None
    assert not two.ppo.clip_apart
    assert two.env.num_envs == 4096
    three = from_config({**old(), "obs_groups": {"policy": ["policy"], "critic": ["critic"]}})
    assert (three.ppo.epochs, three.ppo.minibatches, three.ppo.gamma, three.ppo.entropy_coef) == (5, 4, 0.99, 0.01)
    assert three.ppo.desired_kl == 0.01
    assert not three.ppo.clip_apart
    assert three.policy.critic_groups == ("critic",)
    gym = {**old(), "runner": {"num_steps_per_env": 24, "max_iterations": 3, "policy_class_name": "ActorCritic"}}
    del gym["num_steps_per_env"], gym["max_iterations"], gym["policy"]["class_name"]
    assert from_config(gym, num_envs=2).total_steps == 3 * 24 * 2


OPTIONS: dict[str, tuple[str, dict[str, Any], str, Any]] = {
    # option: algorithm, what is given (algorithm's keys, or `policy`), place here, value there
    "num_learning_epochs": ("PPO", {"num_learning_epochs": 3}, "ppo.epochs", 3),
    "num_mini_batches": ("PPO", {"num_mini_batches": 2}, "ppo.minibatches", 2),
    "clip_param": ("PPO", {"clip_param": 0.1}, "ppo.value_clip", 0.1),
    "gamma": ("PPO", {"gamma": 0.9}, "ppo.gamma", 0.9),
    "lam": ("PPO", {"lam": 0.8}, "ppo.gae_lambda", 0.8),
    "value_loss_coef": ("PPO", {"value_loss_coef": 2}, "ppo.value_coef", 2.0),
    "entropy_coef": ("PPO", {"entropy_coef": 0.1}, "ppo.entropy_coef", 0.1),
    "learning_rate": ("PPO", {"learning_rate": 1e-4}, "ppo.optimizer.learning_rate", 1e-4),
    "max_grad_norm": ("PPO", {"max_grad_norm": 0.3}, "ppo.optimizer.max_grad_norm", 0.3),
    "use_clipped_value_loss": ("PPO", {"use_clipped_value_loss": False}, "ppo.value_clip", None),
    "clip_min_std": ("PPO", {"clip_min_std": [0.1, 0.2]}, "policy.distribution.min_std", (0.1, 0.2)),
    "optimizer_class_name": ("PPO", {"optimizer_class_name": "AdamW"}, "ppo.optimizer.weight_decay", 0.01),
    "schedule": ("PPO", {"schedule": "adaptive"}, "ppo.desired_kl", 0.01),
    "desired_kl": ("PPO", {"schedule": "adaptive", "desired_kl": 0.02}, "ppo.desired_kl", 0.02),
    "empirical_normalization": ("PPO", {"empirical_normalization": True}, "policy.normalize_observations", True),
    "ppo": ("TPPO", {"ppo": {"gamma": 0.7, "class_name": "PPO"}}, "ppo.gamma", 0.7),
    "mimic_loss_coef": ("APPO", {"mimic_loss_coef": 0.1}, "parts.motion.tracking_weight", 0.1),
    "hidden_dims": ("APPO", {}, "parts.motion.discriminator.hidden_sizes", (16,)),
    "style_reward_coef": ("APPO", {}, "parts.motion.reward_weight", 0.75 * 2.0),
    "task_reward_lerp": ("ATPPO", {}, "ppo.reward_weight", 0.25),
    "discriminator_grad_pen": ("APPO", {}, "parts.motion.discriminator.gradient_penalty", 5.0),
    "teacher_policy": ("TPPO", {"teacher_policy": {"teacher_ac_path": "t.pt"}}, "parts.teacher.checkpoints", ("t.pt",)),
    "label_action_with_critic_obs": ("TPPO", {"label_action_with_critic_obs": False}, "parts.teacher.groups", {}),
    "update_times_scale": (
        "TPPO",
        {"update_times_scale": 7},
        "parts.teacher.teacher_forcing",
        Schedule(kind="exp", start=1.0, length=7, unit="iterations"),
    ),
    "teacher_act_prob": ("TPPO", {"teacher_act_prob": 0.3}, "parts.teacher.teacher_forcing", 0.3),
    "using_ppo": ("TPPO", {"using_ppo": False}, "ppo.surrogate_coef", 0.0),
    "distillation_loss_coef": (
        "TPPO",
        {"distillation_loss_coef": "tanh"},
        "parts.teacher.coef",
        Schedule(kind="tanh", start=1.0, length=100, unit="iterations"),
    ),
    "distill_target": ("TPPO", {"distill_target": "mse_sum"}, "parts.teacher.target", "mse_sum"),
    "distill_latent_coef": ("TPPO", {"distill_latent_coef": 0.5}, "parts.teacher.latent_coef", 0.5),
    "distill_latent_target": ("TPPO", {"distill_latent_target": "l1"}, "parts.teacher.latent_target", "l1"),
    "distill_latent_obs_component_mapping": (
        "TPPO",
        {"distill_latent_obs_component_mapping": {"joints": "truth"}},
        "parts.teacher.latents",
        {"actor/policy/joints": "actor/policy/truth"},
    ),
    "buffer_dilation_ratio": ("TPPO", {"buffer_dilation_ratio": 2.0}, "parts.teacher.rollouts", 2.0),
    "lr_scheduler_class_name": ("TPPO", {"lr_scheduler_class_name": "StepLR"}, "ppo.lr_scheduler.name", "StepLR"),
    "lr_scheduler": (
        "TPPO",
        {"lr_scheduler_class_name": "StepLR", "lr_scheduler": {"step_size": 3}},
        "ppo.lr_scheduler.options",
        {"step_size": 3},
    ),
    "hidden_state_resample_prob": (
        "TPPO",
        {"hidden_state_resample_prob": 0.2},
        "parts.teacher.resample_state_prob",
        0.2,
    ),
    "action_labels_from_sample": ("TPPO", {"action_labels_from_sample": True}, "parts.teacher.label", "sample"),
    "estimator_loss_func": ("EstimatorPPO", {"estimator_loss_func": "l1_loss"}, "parts.estimator.loss", "l1_loss"),
    "estimator_loss_kwargs": (
        "EstimatorPPO",
        {"estimator_loss_func": "huber_loss", "estimator_loss_kwargs": {"delta": 0.5}},
        "parts.estimator.loss_kwargs",
        {"delta": 0.5},
    ),
    "estimator_loss_coef": ("EstimatorTPPO", {"estimator_loss_coef": 0.5}, "parts.estimator.coef", 0.5),
    "estimator_obs_components": ("EstimatorPPO", {}, "policy.estimators.estimator.inputs", ("policy/joints",)),
    "estimator_target_components": ("EstimatorPPO", {}, "policy.estimators.estimator.targets", ("policy/velocity",)),
    "estimator_kwargs": ("EstimatorPPO", {}, "policy.estimators.estimator.hidden_sizes", (8,)),
    "replace_state_prob": ("EstimatorPPO", {}, "policy.estimators.estimator.replace_prob", 0.5),
    "use_actor_rnn": (
        "EstimatorPPO",
        {"policy": {"class_name": "StateAcRecurrent", "use_actor_rnn": True, "replace_state_prob": 0.0}},
        "policy.estimators.estimator.memory",
        "actor",
    ),
    "obs_segments": ("PPO", {}, "env.segments", {"policy": SEGMENTS}),
    "privileged_obs_segments": (
        "EstimatorPPO",
        {"policy": {"privileged_obs_segments": {"rest": 5, "velocity": (1, 2)}}},
        "env.segments.critic",
        {"rest": 5, "velocity": 2},
    ),
    "actor_hidden_dims": ("PPO", {"policy": {"actor_hidden_dims": [3]}}, "policy.hidden_sizes", (3,)),
    "critic_hidden_dims": ("PPO", {"policy": {"critic_hidden_dims": [3]}}, "policy.critic_hidden_sizes", (3,)),
    "activation": ("PPO", {"policy": {"activation": "lrelu"}}, "policy.activation", "leaky_relu"),
    "init_noise_std": ("PPO", {"policy": {"init_noise_std": 0.5}}, "policy.distribution.init_std", 0.5),
    "mu_activation": ("PPO", {"policy": {"mu_activation": "tanh"}}, "policy.distribution.mean_activation", "tanh"),
    "rnn_type": (
        "PPO",
        {"policy": {"class_name": "ActorCriticRecurrent", "rnn_type": "GRU"}},
        "policy.memory",
        "gru",
    ),
    "rnn_hidden_size": (
        "PPO",
        {"policy": {"class_name": "ActorCriticRecurrent", "rnn_hidden_size": 32}},
        "policy.memory_size",
        32,
    ),
    "rnn_num_layers": (
        "PPO",
        {"policy": {"class_name": "ActorCriticRecurrent", "rnn_num_layers": 2}},
        "policy.memory_layers",
        2,
    ),
    "encoder_component_names": (
        "PPO",
        {"policy": {"encoder_component_names": ["joints"], "encoder_output_size": 4}},
        "policy.encoder.only",
        ("policy/joints",),
    ),
    "encoder_output_size": (
        "PPO",
        {"policy": {"encoder_component_names": ["joints"], "encoder_output_size": 4}},
        "policy.encoder.hidden_sizes",
        (4,),
    ),
    "encoder_kwargs": (
        "PPO",
        {
            "policy": {
                "encoder_component_names": ["joints"],
                "encoder_output_size": 4,
                "encoder_kwargs": [{"hidden_sizes": 6, "nonlinearity": "Tanh"}],
            }
        },
        "policy.encoder.hidden_sizes",
        (6, 4),
    ),
    "critic_encoder_component_names": (
        "PPO",
        {
            "policy": {
                "encoder_component_names": ["joints"],
                "encoder_output_size": 4,
                "critic_encoder_component_names": ["velocity"],
            }
        },
        "policy.critic_encoder.only",
        ("policy/velocity",),
    ),
    "critic_encoder_kwargs": (
        "PPO",
        {
            "policy": {
                "encoder_output_size": 4,
                "critic_encoder_component_names": ["velocity"],
                "critic_encoder_class_name": "MlpModel",
                "critic_encoder_kwargs": {"hidden_sizes": [7]},
            }
        },
        "policy.critic_encoder.hidden_sizes",
        (7, 4),
    ),
}
WITHOUT_EFFECT = {
    *("actor_critic", "device"),  # built from the rest, and the runner's
    *("input_dim", "amp_obs_dim", "amp_obs_shape", "num_actor_obs", "num_critic_obs", "num_actions"),  # from the spaces
    *("teacher_policy_class_name", "encoder_class_name", "critic_encoder_class_name"),  # one kind there is
}
REFUSED = {
    "discriminator_loss_coef": ("APPO", {"discriminator_loss_coef": 0.0}),
    "dagger_loss_coef": ("APPO", {"dagger_loss_coef": 0.1}),
    "visual_component_name": ("PPO", {"policy": {"visual_component_name": "forward_depth"}}),
    "visual_kwargs": ("PPO", {"policy": {"visual_kwargs": {"channels": [64]}}}),
    "visual_latent_size": ("PPO", {"policy": {"visual_latent_size": 256}}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_st_rl_arrives(option: str) -> None:
    name, given, path, expected = OPTIONS[option]
    given = dict(given)
    config = from_config(old(name, given.pop("policy", None), **given))
    assert value_of(config, path) == expected
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_of_st_rl_is_refused(option: str) -> None:
    name, given = REFUSED[option]
    given = dict(given)
    with pytest.raises(ValueError, match=option):
        from_config(old(name, given.pop("policy", None), **given))


def test_no_option_of_st_rl_is_forgotten() -> None:
    pages = yaml.safe_load((Path(__file__).parents[1] / "test_docs_options.yaml").read_text())["st_rl"]
    named = {option for table, options in pages.items() if table != "Methods" for option in options.split()}
    assert named <= {*OPTIONS, *WITHOUT_EFFECT, *REFUSED}


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = old(
        "TPPO", {"activation": "mish", "hiden_dims": [3]}, gama=0.9, entropy_coef="much", teacher_act_prob="log"
    )
    wrong |= {"logger": "neptune", "maxiterations": 3}
    with pytest.raises(ValueError, match="cannot become a TrainConfig") as error:
        from_config(wrong)
    for said in (
        "policy.activation 'mish' has no counterpart",
        "policy.hiden_dims is unknown (did you mean",
        "algorithm.gama is unknown (did you mean gamma",
        "algorithm.entropy_coef must be a number, got 'much'",
        "algorithm.teacher_act_prob 'log' is neither a number nor one of linear, exp, tanh",
        "logger 'neptune' has no counterpart (known: tensorboard, wandb)",
        "maxiterations is unknown (did you mean max_iterations",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"algorithm": {"class_name": "PPPO"}}, r"algorithm\.class_name 'PPPO' is unknown"),
        ({"algorithm": {"class_name": "mine:PPO"}}, r"'mine:PPO' is unknown: a class of your own becomes a part"),
        ({"actor": {"class_name": "TransformerModel"}}, r"actor\.class_name 'TransformerModel' is unknown"),
        ({"critic": {"activation": "tanh"}}, "actor and critic have one activation here, not elu and tanh"),
        ({"actor": {"obs_normalization": True}}, "one obs_normalization here"),
        ({"actor": {"hidden_dims": [-1]}}, r"actor\.hidden_dims: -1, the size of the input, cannot be expressed"),
        ({"actor": {"hidden_dims": "big"}}, r"actor\.hidden_dims must be"),
        ({"algorithm": {"gamma": 1.5}}, r"gamma must lie in \[0, 1\]"),
        ({"algorithm": 3}, "algorithm must be a mapping or a dataclass"),
        ({"torch_compile_mode": "default"}, "torch_compile_mode: set ppo.capture"),
        ({"max_iterations": None}, "max_iterations is missing"),
        ({"max_iterations": 0}, "TrainConfig: max_iterations must be at least 1, got 0$"),
        ({"algorithm": {"rnd_cfg": {"weight": 1.0}}}, r"rnd_cfg\.weight is multiplied by the simulator's step there"),
        ({"algorithm": {"symmetry_cfg": {"data_augmentation_func": "a:b"}}}, r"from_config\(env=\)"),
    ],
)
def test_what_cannot_be_expressed_is_refused(change: dict[str, Any], said: str) -> None:
    given = dataclasses.asdict(Models())
    for key, value in change.items():
        given[key] = {**given[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=said):
        from_config(given)
    with pytest.raises(ValueError, match="must be a mapping or a dataclass"):
        from_config("train.yaml")
    with pytest.raises(ValueError, match=r"TrainConfig: num_envs must be at least 1, got 0$"):
        from_config(Models(), num_envs=0)


def mirror(env: Any, obs: TensorDict | None, actions: torch.Tensor | None) -> tuple[Any, Any]:
    """Left and right change places; entry 2 changes its sign."""
    sign = torch.tensor([1.0, 1.0, -1.0])
    if obs is not None:
        image = obs.clone()
        for name in ("policy", "critic"):
            x = obs[name]
            image[name] = torch.cat((x[:, [1, 0, 2]] * sign, x[:, 3:]), dim=-1)
        obs = torch.cat((obs, image))
    return obs, None if actions is None else torch.cat((actions, -actions))


def test_groups_have_the_names_that_they_have_here() -> None:
    given = dataclasses.asdict(Models()) | {
        "obs_groups": {"actor": ("actor",), "critic": ("actor", "privileged_state")}
    }
    config = from_config(given)
    assert (config.policy.actor_groups, config.policy.critic_groups) == (("policy",), ("policy", "critic"))
    both = given | {"obs_groups": {"actor": ("actor",), "critic": ("policy",)}}
    assert from_config(both).policy.actor_groups == ("actor",)
    assert from_config(given, env=Simulator()).policy.critic_groups == ("policy", "critic")
    assert from_config(given | {"obs_groups": {}}).policy.actor_groups == ("policy",)


def test_extensions_ask_the_environment() -> None:
    given = dataclasses.asdict(Models())
    given["algorithm"] |= {
        "rnd_cfg": {"weight": 5.0, "weight_schedule": {"mode": "step", "final_step": 100, "final_value": 0.0}},
        "symmetry_cfg": {"data_augmentation_func": mirror, "use_data_augmentation": True},
    }
    config = from_config(given, env=Simulator(3))
    rnd, symmetry = config.parts["rnd"], config.parts["symmetry"]
    assert isinstance(rnd, us.parts.RandomNetworkDistillationConfig)
    assert rnd.reward_weight == Schedule(kind="step", points=((0, 0.1), (300, 0.0)))
    assert rnd.predictor_hidden_sizes == (5,)
    assert isinstance(symmetry, us.parts.SymmetryConfig)
    assert symmetry.action == MirrorSpec(permutation=(0, 1), sign=(-1.0, -1.0))
    assert symmetry.observations["policy"] == MirrorSpec(permutation=(1, 0, 2, 3, 4), sign=(1.0, 1.0, -1.0, 1.0, 1.0))
    assert (config.ppo.surrogate_coef, config.ppo.value_coef, symmetry.augmentation_coef) == (0.5, 0.5, 0.5)
    given["algorithm"]["symmetry_cfg"]["data_augmentation_func"] = lambda env, obs, actions: (obs, actions)
    with pytest.raises(ValueError, match="it makes 1 copies of a minibatch"):
        from_config(given, env=Simulator(3))
    given["obs_groups"]["critic"] = ["critics"]
    with pytest.raises(
        ValueError, match=r"obs_groups name 'critics', which the environment lacks \(did you mean critic"
    ):
        from_config(given, env=Simulator(3))


PRIVILEGED = {**SEGMENTS, "friction": 2}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Policies that see what the critic of the others sees, as one vector or in segments."""
    paths = {}
    for cut in (False, True):
        given = old(policy={"obs_segments": PRIVILEGED if cut else None})
        config = from_config(given, env=Simulator(4, {"policy": 7}))
        run = dataclasses.replace(quiet(config), run_dir=str(tmp_path_factory.mktemp("teacher") / "run"))
        paths[cut] = str(us.train(run, env=Simulator(4, {"policy": 7})).path)
    return paths


def quiet(config: TrainConfig) -> TrainConfig:
    logging = dataclasses.replace(config.logging, console=False, tensorboard=False)
    evaluation = dataclasses.replace(config.evaluation, episodes=0)
    return dataclasses.replace(config, logging=logging, evaluation=evaluation)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("recurrent", [False, True])
def test_every_algorithm_trains(name: str, recurrent: bool, teachers: dict[bool, str], tmp_path: Path) -> None:
    given = old(name, empirical_normalization=True, num_mini_batches=2, num_learning_epochs=2)
    given["policy"]["class_name"] += "Recurrent" * recurrent
    if "TPPO" in name:
        given["algorithm"]["teacher_policy"] = {"class_name": "ActorCritic", "teacher_ac_path": teachers["Est" in name]}
    if name.startswith("Est"):
        given["policy"]["privileged_obs_segments"] = PRIVILEGED
    if name.startswith("A"):
        given["algorithm"]["mimic_loss_coef"] = 0.1
    config = dataclasses.replace(quiet(from_config(given, env=Simulator(4))), run_dir=str(tmp_path / "run"))
    run = us.train(config, env=Simulator(4))
    rows = run.metrics
    assert len(rows) == 2
    expected = {"PPO": set(), "T": {"teacher/distance"}, "E": {"estimator/loss"}, "A": {"motion/loss_exp"}}
    kinds = {"PPO"} | ({"T"} if "TPPO" in name else set()) | ({"E"} if "Est" in name else set())
    kinds |= {"A"} if name.startswith("A") else set()
    for kind in kinds:
        assert expected[kind] <= set(rows[-1])
    assert all(value == value for row in rows for key, value in row.items() if key.startswith("ppo/"))
